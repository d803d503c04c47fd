"""What a run tells the world: metrics.jsonl, Weights & Biases, and lines or a progress bar for people.

Rank 0 alone writes. metrics.jsonl is one JSON object a line; everything that depends on the clock sits under
"timing", so that two equal runs have equal files apart from it.
"""

import json
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpsoftmax.config import Config, to_tree


class Sink(Protocol):
    """Something that takes one line of metrics at a time."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take one line: {"kind": ..., "step": ..., values..., "timing": {...}}.

        Kinds: train, eval, centres (exact class centres were set), linking.
        """
        ...

    def close(self) -> None:
        """No more lines."""
        ...


class JsonLines:
    """metrics.jsonl; on resume, lines after the checkpoint's step are cut first."""

    def __init__(self, path: Path, resume_step: int) -> None:
        if path.exists():
            keep = [line for line in path.read_text().splitlines() if complete(line, resume_step)]
            replacement = path.with_suffix(".new")
            replacement.write_text("".join(line + "\n" for line in keep))
            os.replace(replacement, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append and flush."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def complete(line: str, last_step: int) -> bool:
    """Whether a line is whole and not later than `last_step` (a kill may have cut it short)."""
    try:
        return int(json.loads(line)["step"]) <= last_step
    except (ValueError, KeyError, TypeError):
        return False


class WeightsAndBiases:
    """One W&B run per run folder, found again after a restart by the id in RUN/wandb/run_id."""

    def __init__(self, config: Config, folder: Path) -> None:
        mode = config.track.wandb
        if mode == "online" and not has_credentials():
            raise ValueError(
                "track.wandb: 'online', but no WANDB_API_KEY is set and ~/.netrc names no W&B host; allowed "
                "without credentials: offline, disabled"
            )
        import wandb

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        id_file = folder / "wandb" / "run_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:8])
        self._run = wandb.init(
            mode=mode,
            project=config.track.project,
            name=config.track.name or folder.name,
            id=id_file.read_text().strip(),
            resume="allow" if mode == "online" else None,
            dir=str(folder),
            config=to_tree(config),
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=mode != "online",
                x_disable_meta=True,  # it copies every SLURM_ variable, SLURM_JWT among them
            ),
        )

    def write(self, line: Mapping[str, Any]) -> None:
        """Log the numbers, named kind/name, or eval/set/name."""
        values = {**line, **line.get("timing", {})}
        prefix = f"{line['kind']}/{line['set']}" if "set" in line else line["kind"]
        numbers = {
            f"{prefix}/{key}": value
            for key, value in values.items()
            if isinstance(value, int | float) and key != "step"
        }
        self._run.log(numbers, step=line["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def has_credentials() -> bool:
    """Whether W&B could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")


class Display:
    """Progress for people: a bar on a terminal, else one line an evaluation."""

    def __init__(self, num_steps: int, start: int) -> None:
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            progress = Progress(*columns, console=self._console)
            self._task = progress.add_task("", total=num_steps, completed=start)
            progress.start()
            self._progress = progress

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, markup=False)

    def write(self, line: Mapping[str, Any]) -> None:
        """Show a line of metrics."""
        if line["kind"] == "eval":
            self.say(describe_evaluation(line))
        elif line["kind"] == "train" and self._progress is not None:
            text = f"loss {line['loss']:.3f}  {line['timing']['images_per_s']:.0f} images/s"
            self._progress.update(self._task, completed=line["step"], description=text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()


def describe_evaluation(line: Mapping[str, Any]) -> str:
    """One line of text for one evaluation."""
    shown = ("accuracy", "auc", "recall_at_1", "top1")
    numbers = "  ".join(f"{key} {line[key]:.4f}" for key in shown if key in line)
    return f"step {line['step']}  {line['set']}: {numbers}"


class Log:
    """All sinks of a run; silent on every rank but 0."""

    def __init__(self, config: Config, folder: Path, num_steps: int, start: int, rank: int) -> None:
        self._sinks: list[Sink] = []
        self._display: Display | None = None
        if rank == 0:
            self._sinks.append(JsonLines(folder / "metrics.jsonl", start))
            if config.track.wandb != "disabled":
                self._sinks.append(WeightsAndBiases(config, folder))
            self._display = Display(num_steps, start)
            self._sinks.append(self._display)

    def say(self, text: str) -> None:
        """One line for people."""
        if self._display is not None:
            self._display.say(text)

    def write(self, line: Mapping[str, Any]) -> None:
        """One line of metrics."""
        for sink in self._sinks:
            sink.write(line)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
