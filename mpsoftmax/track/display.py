"""Progress for people: a bar on a terminal, else a line every few seconds, and one an evaluation."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mpsoftmax.track.protocol import Callback, Ending, Line, RunStart

SECONDS_APART = 5.0
"""Of lines of training in a file: log_every may be 1."""


class Display(Callback):
    """What people see on standard output."""

    def __init__(self) -> None:
        self._num_steps, self._said = 0, -SECONDS_APART
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None

    def on_start(self, run: RunStart) -> None:
        """A bar, where there is a terminal."""
        self._num_steps = run.num_steps
        if not self._console.is_terminal:
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
        )
        progress = Progress(*columns, console=self._console)
        self._task = progress.add_task("", total=run.num_steps, completed=run.start)
        progress.start()
        self._progress = progress

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, markup=False)

    def on_line(self, line: Line) -> None:
        """Show a line of metrics."""
        if line["kind"] == "eval":
            self.say(describe_evaluation(line))
        elif line["kind"] == "train":
            text, step = describe_training(line), line["step"]
            if self._progress is not None:
                self._progress.update(self._task, completed=step, description=text)
            elif step == self._num_steps or time.monotonic() >= self._said + SECONDS_APART:
                self._said = time.monotonic()
                self.say(f"step {step}/{self._num_steps}  {text}")

    def on_end(self, ending: Ending) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()


def describe_training(line: Line) -> str:
    """Loss, target cosine, throughput and time left."""
    timing = line.get("timing", {})
    loss, cosine = line.get("loss"), line.get("target_cosine")
    words = ["loss not finite" if loss is None else f"loss {loss:.3f}"]
    if cosine is not None:
        words.append(f"target cosine {cosine:.2f}")
    if "images_per_s" in timing:
        words.append(f"{timing['images_per_s']:.0f} images/s")
    if "eta_s" in timing:
        words.append(f"{duration(timing['eta_s'])} left")
    return "  ".join(words)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def describe_evaluation(line: Line) -> str:
    """One line of text for one evaluation."""
    shown = ("accuracy", "auc", "recall_at_1", "top1")
    numbers = "  ".join(f"{key} {line[key]:.4f}" for key in shown if key in line)
    return f"step {line['step']}  {line['set']}: {numbers}"
