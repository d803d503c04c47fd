"""All trackers of a run, told one after the other; silent on every rank but 0."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mpsoftmax.config import Config
from mpsoftmax.evaluate.curves import Curves
from mpsoftmax.evaluate.hardest import JudgedPairs
from mpsoftmax.track.best import Best
from mpsoftmax.track.callbacks import load_callbacks
from mpsoftmax.track.display import Display
from mpsoftmax.track.json_lines import MetricsFile, lines_up_to
from mpsoftmax.track.protocol import Callback, Ending, Evaluation, Line, RunStart, SavedCheckpoint
from mpsoftmax.track.redaction import redacted_text
from mpsoftmax.track.run_record import RunRecord

ReadBackbone = Callable[[Path], dict[str, Tensor]]


class Log:
    """What the training loop talks to.

    metrics.jsonl is part of the run: failing to write it ends the run. Any other tracker that fails is said
    to have failed and not told any more.

    Args:
        config: The resolved configuration.
        folder: The run folder.
        num_steps: Steps of the whole run.
        start: Steps already taken.
        rank: Of this process; on ranks other than 0 every call does nothing.
        world: Ranks.
        read_backbone: The backbone's tensors from a checkpoint directory.
        facts: See RunStart.

    Raises:
        ValueError: a tracker cannot start.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        num_steps: int,
        start: int,
        rank: int,
        *,
        world: int,
        read_backbone: ReadBackbone,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._trackers: list[Callback] = []
        self._last, self._num_steps = start, num_steps
        self._read_backbone = read_backbone
        self._waiting: dict[int, Path] = {}  # checkpoints whose evaluation may still come
        if rank != 0:
            return
        self._metrics, self._display = MetricsFile(), Display()
        others = [*chosen_trackers(config), *load_callbacks(config)]
        run = RunStart(
            config=config,
            folder=folder,
            num_steps=num_steps,
            start=start,
            world=world,
            written=lines_up_to(folder / MetricsFile.NAME, start),
            facts=facts or {},
        )
        start_all([*others, self._metrics, self._display], run)
        self._trackers = [self._metrics, *others, self._display]
        self._best = Best(config.track.best, self._metrics.kept)

    def say(self, text: str) -> None:
        """One line for people."""
        if self._trackers:
            self._display.say(text)

    def lacks_evaluation(self, step: int, num_sets: int) -> bool:
        """Whether metrics.jsonl lacks the evaluation of all sets at `step`, where the run goes on from."""
        return bool(self._trackers) and self._metrics.lacks_evaluation(step, num_sets)

    def write(self, line: Line) -> None:
        """One line of metrics."""
        self._last = max(self._last, line["step"])
        if not self._trackers:
            return
        self._tell_saved(before=line["step"])
        self._best.see(line)
        self._tell("on_line", line)
        if line["kind"] in ("train", "skip") and line.get("loss", 0.0) is None:
            self.alert("loss not finite", f"step {line['step']} of {self._num_steps}")

    def evaluated(
        self,
        step: int,
        lines: Iterable[Line],
        curves: Mapping[str, Curves],
        pairs: Mapping[str, JudgedPairs] | None = None,
    ) -> None:
        """The lines of an evaluation, a set each, and the sets' curves and pairs."""
        for line in lines:
            self.write({"kind": "eval", "step": step, **line})
            if self._trackers:
                figures = {key: value for key, value in line.items() if key != "set"}
                found = Evaluation(
                    step=step,
                    name=line["set"],
                    figures=figures,
                    curves=curves[line["set"]],
                    pairs=(pairs or {}).get(line["set"]),
                )
                self._tell("on_evaluation", found)
        self._tell_saved(before=step + 1)

    def checkpoint(self, step: int, path: Path) -> None:
        """A complete checkpoint lies at `path`.

        Trackers hear of it with the evaluation of its step, whichever is first; where none comes, with the
        next line of a later step, or at the end.
        """
        if not self._trackers:
            return
        self._waiting[step] = path
        if self._best.newest == step or self._last > step:
            self._tell_saved(before=step + 1)

    def _tell_saved(self, before: int | None) -> None:
        """Tell of waiting checkpoints of steps below `before`; None: of all."""
        for step in sorted(self._waiting):
            if before is not None and step >= before:
                continue
            path = self._waiting.pop(step)
            if not path.exists():
                self.say(f"tracking: {path} was removed before trackers could be told of it")
                continue
            best, figures = self._best.at(step)
            read = functools.partial(self._read_backbone, path)
            saved = SavedCheckpoint(
                step=step, path=path, best=best, figures=figures, read_backbone=read
            )
            self._tell("on_checkpoint", saved)

    def alert(self, title: str, text: str) -> None:
        """Something a person should look at."""
        self._tell("on_alert", title, redacted_text(text))

    def close(self, step: int | None = None, error: BaseException | None = None) -> None:
        """Close every tracker.

        Args:
            step: Steps taken; None: those of the last line.
            error: What ended the run before its last step.
        """
        if not self._trackers:
            return
        self._tell_saved(before=None)
        ending = ending_of(self._last if step is None else step, self._num_steps, error)
        if ending.outcome != "finished":
            text = f"step {ending.step} of {self._num_steps}: {ending.error}".rstrip(": ")
            self._tell("on_alert", f"training {ending.outcome}", text)
        self._tell("on_end", ending)
        self._trackers = []

    def _tell(self, method: str, *arguments: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                if tracker is self._metrics:
                    raise
                self._trackers.remove(tracker)
                what = f"{type(tracker).__name__}.{method}: {type(error).__name__}: {error}"
                self._display.say(
                    f"tracking: {redacted_text(what)}; it is told no more of this run"
                )


def chosen_trackers(config: Config) -> list[Callback]:
    """RUN/report, Weights & Biases and TensorBoard, as configured."""
    trackers: list[Callback] = [RunRecord()] if config.track.report else []
    if config.track.wandb != "disabled":
        from mpsoftmax.track.wandb_run import WeightsAndBiases

        trackers.append(WeightsAndBiases())
    if config.track.tensorboard:
        from mpsoftmax.track.tensorboard import TensorBoard

        trackers.append(TensorBoard())
    return trackers


def start_all(trackers: Iterable[Callback], run: RunStart) -> None:
    """Let trackers start, in order; where one cannot, those before it end."""
    started: list[Callback] = []
    try:
        for tracker in trackers:
            start_tracker(tracker, run)
            started.append(tracker)
    except ValueError as error:
        for tracker in started:
            tracker.on_end(ending_of(run.start, run.num_steps, error))
        raise


def start_tracker(tracker: Callback, run: RunStart) -> None:
    """Let a tracker start; what it cannot do is a ValueError, which all ranks can agree on."""
    try:
        tracker.on_start(run)
    except ValueError:
        raise
    except Exception as error:  # whatever foreign code raises
        kind = type(tracker)
        text = redacted_text(f"{type(error).__name__}: {error}")
        raise ValueError(f"track: {kind.__module__}:{kind.__qualname__}: {text}") from error


def ending_of(step: int, num_steps: int, error: BaseException | None) -> Ending:
    """How a run ended, in words without secrets."""
    if error is not None and not isinstance(error, SystemExit | KeyboardInterrupt):
        text = redacted_text(f"{type(error).__name__}: {error}")
        return Ending(outcome="failed", step=step, error=text)
    outcome = "finished" if step >= num_steps else "stopped"
    return Ending(outcome=outcome, step=step, error="")
