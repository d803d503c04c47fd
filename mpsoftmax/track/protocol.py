"""What a tracker is told, and when. All of it happens on rank 0, between steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mpsoftmax.config import Config
from mpsoftmax.evaluate.curves import Curves
from mpsoftmax.evaluate.hardest import JudgedPairs

Line = Mapping[str, Any]
"""One line of metrics.jsonl: {"kind": ..., "step": ..., values..., "timing": {...}}.

Kinds: train, eval (with "set"), skip (a skipped step, and why), centres (exact class centres were set),
linking.
"""


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A run begins, or goes on after a restart."""

    config: Config
    folder: Path
    """The run folder."""
    num_steps: int
    """Optimiser steps of the whole run."""
    start: int
    """Steps already taken: 0, or those of the checkpoint it goes on from."""
    world: int
    """Ranks."""
    written: Sequence[Line] = ()
    """What earlier processes of this run wrote up to `start`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain values: data (images, classes, datasets), parameters of the backbone, the environment."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation set was judged; its figures came as a line too."""

    step: int
    name: str
    """Of the set."""
    figures: Mapping[str, float]
    curves: Curves
    pairs: JudgedPairs | None = None
    """Every pair with its similarity; None where track.report is off."""


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A complete checkpoint lies on disk."""

    step: int
    path: Path
    best: bool
    """Whether the evaluation at this step is the best so far, by track.best."""
    figures: Mapping[str, float]
    """Figures of an evaluation at this very step, as SET/FIGURE; empty where there was none."""
    read_backbone: Callable[[], dict[str, Tensor]]
    """The backbone's tensors, whole, on the CPU, read from the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """No more is to come from this process."""

    outcome: Literal["finished", "stopped", "failed"]
    """finished: all steps taken; stopped: it ended early as it was asked to; failed: by an error."""
    step: int
    error: str
    """What ended it; empty unless failed."""


class Callback:
    """Base of trackers: every method does nothing until overridden.

    Classes of your own are named in track.callbacks and made without arguments. A method that raises is not
    called again in this run: the failure is said, and training goes on.
    """

    def on_start(self, run: RunStart) -> None:
        """Before the first step. Raising here stops the run before it begins."""

    def on_line(self, line: Line) -> None:
        """A line went into metrics.jsonl."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """After the lines of an evaluation, once a set."""

    def on_checkpoint(self, saved: SavedCheckpoint) -> None:
        """A checkpoint is complete, and the evaluation of its step, where there is one, is over."""

    def on_alert(self, title: str, text: str) -> None:
        """Something a person should look at: a loss that is not finite, a run that stopped early."""

    def on_end(self, ending: Ending) -> None:
        """The last call."""


def numbers_of(line: Line) -> dict[str, float]:
    """The numbers of a line of metrics by the names they have in W&B and TensorBoard."""
    prefix = f"{line['kind']}/{line['set']}" if "set" in line else line["kind"]
    values = {f"{prefix}/{key}": value for key, value in line.items() if key != "timing"}
    for key, value in line.get("timing", {}).items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        values |= {
            f"timing/{key}" if name is None else f"timing/{key}/{name}": v for name, v in inner
        }
    del values[f"{prefix}/step"]
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
