"""How a run went, from its processes and its lines: outcome, restarts, time, best and last figures."""

import datetime
from dataclasses import dataclass
from typing import Any

from mpsoftmax.report.catalogue import evaluation_points, figure_of
from mpsoftmax.report.run import Run

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Process:
    """One process of a run, from its start to its end."""

    began: str
    first_step: int
    last_step: int | None
    world: int | None
    outcome: str
    """finished, stopped, failed, or "no end recorded"."""
    error: str
    seconds: float | None


@dataclass(frozen=True)
class Best:
    """The best value of a figure over the evaluations, and the last one."""

    best: float
    best_step: int
    last: float
    last_step: int


def processes(run: Run) -> list[Process]:
    """In the order they began."""
    found: list[Process] = []
    for number, line in enumerate(run.sessions):
        if line.get("kind") != "start":
            continue
        after = run.sessions[number + 1] if number + 1 < len(run.sessions) else {}
        end = after if after.get("kind") == "end" else {}
        found.append(
            Process(
                began=str(line.get("time", "")),
                first_step=int(line.get("step") or 0),
                last_step=end.get("step"),
                world=line.get("world"),
                outcome=str(end.get("outcome", "no end recorded")),
                error=str(end.get("error", "")),
                seconds=between(line.get("time"), end.get("time")),
            )
        )
    return found


def between(first: Any, second: Any) -> float | None:
    """Seconds between two times as they are written; None where one is missing."""
    try:
        start, stop = (datetime.datetime.fromisoformat(one) for one in (first, second))
        return (stop - start).total_seconds()
    except (TypeError, ValueError):
        return None


def outcome(run: Run) -> str:
    """finished, stopped, failed, "no end recorded" (killed, or still running), or unknown."""
    known = processes(run)
    if known:
        return known[-1].outcome
    return UNKNOWN


def last_step(run: Run) -> int:
    """The last step that is known of."""
    ends = [one.last_step for one in processes(run) if one.last_step is not None]
    return max([*ends[-1:], *(line["step"] for line in run.lines[-1:]), 0])


def num_steps(run: Run) -> int | None:
    """Steps that were asked for."""
    starts = [line.get("num_steps") for line in run.sessions if line.get("kind") == "start"]
    return starts[-1] if starts else run.setting("train.steps")


def restarts(run: Run) -> list[int]:
    """Steps that later processes went on from."""
    return [one.first_step for one in processes(run)[1:]]


def wall_seconds(run: Run) -> tuple[float | None, bool]:
    """Seconds over all processes, and whether some process's are not known."""
    known = [one.seconds for one in processes(run)]
    seconds = [one for one in known if one is not None]
    return (sum(seconds) if seconds else None), len(seconds) < len(known)


def step_seconds(run: Run) -> float | None:
    """Seconds spent in the steps that are logged, without evaluations and checkpoints."""
    total, before = 0.0, 0
    for line in run.of_kind("train"):
        timing = line.get("timing")
        seconds = timing.get("step_s") if isinstance(timing, dict) else None
        if isinstance(seconds, int | float):
            total += seconds * (line["step"] - before)
        before = line["step"]
    return total or None


def throughput(run: Run) -> float | None:
    """Images a second over all logged steps."""
    seconds, lines = step_seconds(run), run.of_kind("train")
    samples = lines[-1].get("samples") if lines else None
    return samples / seconds if seconds and isinstance(samples, int | float) else None


def best_figures(run: Run) -> dict[tuple[str, str], Best]:
    """By set and figure, in the order they were logged."""
    found = {}
    for name, figures in evaluation_points(run).items():
        for key, points in figures.items():
            known = [(step, value) for step, value in points if value is not None]
            if not known:
                continue
            sign = -1 if figure_of(key).better < 0 else 1
            step, value = max(known, key=lambda point: (sign * point[1], -point[0]))
            found[name, key] = Best(value, step, known[-1][1], known[-1][0])
    return found


def interval_of(run: Run, name: str, key: str) -> tuple[float, float] | None:
    """The 95 % interval of a set's newest figure, where it was computed."""
    verification = run.evaluations.get(name, {}).get("verification", {})
    if key in ("accuracy", "auc"):
        return as_interval(verification.get(f"{key}_interval"))
    if key.startswith("tar_at_far_"):
        for at in verification.get("tar_at_far", ()):
            if f"tar_at_far_{at['far']:g}" == key:
                return as_interval(at.get("interval"))
    return None


def as_interval(value: Any) -> tuple[float, float] | None:
    """Two numbers, or None."""
    whole = isinstance(value, list) and len(value) == 2 and None not in value
    return (value[0], value[1]) if whole else None


def facts(run: Run) -> dict[str, Any]:
    """What the newest process said of data, backbone and environment."""
    starts = [line for line in run.sessions if line.get("kind") == "start"]
    found = starts[-1].get("facts") if starts else None
    return found if isinstance(found, dict) else {}
