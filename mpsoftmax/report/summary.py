"""What was run, how it ended, and how good it is: the first things anyone asks."""

from collections.abc import Callable, Sequence
from typing import Any

from mpsoftmax.markup import Child, Markup, tag
from mpsoftmax.report import history
from mpsoftmax.report.blocks import Group, beside, missing, run_label, section, table, tile
from mpsoftmax.report.catalogue import figure_of
from mpsoftmax.report.run import Run
from mpsoftmax.report.words import MISSING, count, fixed, number, signed
from mpsoftmax.track.display import duration

OUTCOMES = {
    "finished": ("good", "finished"),
    "stopped": ("fair", "stopped before its last step"),
    "failed": ("bad", "failed"),
    "no end recorded": ("fair", "no end recorded: killed, or still running"),
    history.UNKNOWN: ("fair", "how it ended was not recorded"),
}


def summary(runs: Sequence[Run]) -> Markup:
    """Tiles of the first run (alone), the table of all."""
    notes = [missing(f"{run.name}:", f"{note}.") for run in runs for note in run.notes]
    alone = tag("div", tiles(runs[0]), class_="tiles") if len(runs) == 1 else None
    both = [facts_table(runs), figures_table(runs)]
    return section("summary", "Summary", alone, beside(*both) if alone else both, notes)


def tiles(run: Run) -> list[Markup]:
    """The figures that are seen first."""
    found = []
    for (name, key), best in list(history.best_figures(run).items())[:8]:
        if key not in ("accuracy", "recall_at_1", "top1"):
            continue
        span = history.interval_of(run, name, key)
        below = f"95 %: {span_of(span)}" if span else f"step {best.last_step:,}"
        found.append(tile(f"{figure_of(key).title}, {name}", fixed(best.last), below))
    lines = run.of_kind("train")
    if lines:
        loss = lines[-1].get("loss")
        shown = "not finite" if loss is None else number(loss)
        found.append(tile("Loss", shown, f"step {lines[-1]['step']:,}"))
    speed = history.throughput(run)
    if speed is not None:
        seconds = history.step_seconds(run)
        found.append(
            tile("Throughput", number(speed, 3), f"{duration(seconds or 0)} in steps", "images/s")
        )
    return found[:5]


def badge(run: Run) -> Markup:
    """How it ended, as a word with a colour."""
    kind, text = OUTCOMES.get(history.outcome(run), ("fair", history.outcome(run)))
    return tag("span", text, class_=f"badge {kind}")


def facts_table(runs: Sequence[Run]) -> Markup:
    """A row a fact, a column a run."""
    rows: list[list[Child]] = [
        [title, *(describe(run) for run in runs)]
        for title, describe in FACTS
        if describe is not badge or len(runs) > 1  # that of one run stands beside its name
    ]
    shown = [row for row in rows if any(cell not in ("", MISSING) for cell in row[1:])]
    head = ["", *(run_label(run.name, k) for k, run in enumerate(runs))]
    return table(head if len(runs) > 1 else ["", ""], shown, name="Run", class_="facts")


def steps_text(run: Run) -> str:
    """Steps taken of steps asked for, restarts, skipped steps."""
    asked = history.num_steps(run)
    taken = history.last_step(run)
    text = f"{taken:,}" + (f" of {asked:,}" if isinstance(asked, int) else "")
    batch = run.setting("train.batch_size")
    return f"{text}, {batch:,} images a step" if isinstance(batch, int) else text


def restarts_text(run: Run) -> str:
    """Where it went on after a restart."""
    if not run.sessions:
        return MISSING
    steps = history.restarts(run)
    return f"{len(steps)}, from step {', '.join(map(str, steps[:8]))}" if steps else "none"


def skipped_text(run: Run) -> str:
    """Skipped steps, and the losses that were not finite."""
    lines = run.of_kind("train")
    if not lines:
        return MISSING
    skipped = lines[-1].get("skipped_steps", 0)
    bad = sum("loss" in line and line["loss"] is None for line in lines)
    text = "none" if not skipped else f"{skipped:,}"
    return f"{text}; {count(bad, 'logged loss')} not finite" if bad else text


def data_text(run: Run) -> str:
    """Images and classes."""
    data = history.facts(run).get("data") or {}
    source = run.setting("data.train")
    shown = source if isinstance(source, str) else "several datasets" if source else ""
    if "num_images" in data:
        sizes = f"{data['num_images']:,} images of {data['num_classes']:,} classes"
        return f"{shown}: {sizes}" if shown else sizes
    return shown


def model_text(run: Run) -> str:
    """Backbone, its parameters, and the embedding's length."""
    name, dim = run.setting("backbone.name"), run.setting("backbone.embedding_dim")
    if name is None:
        return MISSING
    parameters = history.facts(run).get("parameters")
    size = f", {number(parameters)} parameters" if parameters else ""
    return f"{name}{size}, embedding {dim}"


def head_text(run: Run) -> str:
    """Objective, candidates, weights."""
    found = []
    for key in ("objective", "candidates", "weights", "negatives"):
        value = run.setting(f"head.{key}")
        if key == "objective" or value not in (None, "all", "learned"):
            found.append(part_text(value))
    return "; ".join(text for text in found if text) or MISSING


def part_text(value: Any) -> str:
    """A part of the head: its kind, and its own settings."""
    if isinstance(value, dict):
        rest = ", ".join(f"{key} {item}" for key, item in value.items() if key != "kind")
        return f"{value.get('kind', '')} ({rest})" if rest else str(value.get("kind", ""))
    return "" if value is None else str(value)


def world_text(run: Run) -> str:
    """Ranks, and what they ran on."""
    known = history.processes(run)
    if not known:
        return MISSING
    where = history.facts(run).get("environment") or {}
    device = ", ".join(where.get("gpus", ())) or where.get("processor") or where.get("device", "")
    ranks = count(known[-1].world or 1, "rank")
    return f"{ranks} on {device}" if device else ranks


def time_text(run: Run) -> str:
    """Wall time of all processes; time in steps."""
    wall, partly = history.wall_seconds(run)
    steps = history.step_seconds(run)
    words = []
    if wall is not None:
        words.append(f"{'at least ' if partly else ''}{duration(wall)} in all")
    if steps is not None:
        words.append(f"{duration(steps)} in steps")
    return ", ".join(words) or MISSING


def throughput_text(run: Run) -> str:
    """Images a second."""
    speed = history.throughput(run)
    return MISSING if speed is None else f"{number(speed, 3)} images/s"


def error_text(run: Run) -> str:
    """What ended the last process, where an error did."""
    known = history.processes(run)
    return known[-1].error if known else ""


FACTS: tuple[tuple[str, Callable[[Run], Child]], ...] = (
    ("Outcome", badge),
    ("Error", error_text),
    ("Data", data_text),
    ("Backbone", model_text),
    ("Head", head_text),
    ("Ranks", world_text),
    ("Steps", steps_text),
    ("Time", time_text),
    ("Throughput", throughput_text),
    ("Restarts", restarts_text),
    ("Skipped steps", skipped_text),
)


def figures_table(runs: Sequence[Run]) -> Markup:
    """Best and last figures of every evaluation set; of further runs the difference from the first."""
    found = [history.best_figures(run) for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    if not keys:
        return missing(
            "No evaluation.",
            "Name verification sets in data.eval, and train.eval_every to see progress.",
        )
    rows: list[list[Child] | Group] = []
    before: str | None = None
    for name, key in keys:
        first = found[0].get((name, key))
        if name != before:
            rows.append(Group(name))
        row: list[Child] = [figure_of(key).title]
        for k, run in enumerate(runs):
            own = found[k].get((name, key))
            middle = span_text(run, name, key) if k == 0 else difference(key, own, first)
            row += [MISSING] * 3 if own is None else [fixed(own.last), middle, best_text(own)]
        rows.append(row)
        before = name
    head: list[Child] = ["Figure"]
    for k, run in enumerate(runs):
        last: Child = [run_label(run.name, k), " last"] if len(runs) > 1 else "Last"
        head += [last, "Difference" if k else "95 % interval", "Best (step)"]
    return table(
        head, rows, numbers=range(1, len(head)), name="Evaluation figures", class_="figures"
    )


def span_text(run: Run, name: str, key: str) -> str:
    """The 95 % interval of a figure."""
    span = history.interval_of(run, name, key)
    return span_of(span) if span else MISSING


def span_of(span: tuple[float, float]) -> str:
    """An interval."""
    return f"{fixed(span[0])} .. {fixed(span[1])}"


def difference(key: str, own: history.Best | None, first: history.Best | None) -> Child:
    """By how much a run's last value differs from the first run's, and whether that is better."""
    if own is None or first is None:
        return MISSING
    change = own.last - first.last
    gain = figure_of(key).better * change
    return tag("span", signed(change), class_="better" if gain > 0 else "worse" if gain else None)


def best_text(own: history.Best) -> str:
    """The best value and its step."""
    return f"{fixed(own.best)} ({own.best_step:,})"
