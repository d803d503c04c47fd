"""In which precision the backbone runs, and the one loss scale that float16 needs."""

from dataclasses import replace
from typing import Any

import torch

from mpsoftmax.config import Config, LossScaleConfig

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def resolve_precision(config: Config, device: torch.device) -> tuple[Config, str | None]:
    """The configuration with `train.precision: auto` made a choice, and a line that says it.

    bfloat16 on a GPU that has it; float32 elsewhere: CPUs emulate bfloat16 unless they have units for it.
    """
    if config.train.precision != "auto":
        return config, None
    fit = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = "bf16" if fit else "fp32"
    train = replace(config.train, precision=chosen)
    where = device.type if fit or device.type == "cpu" else f"{device.type} without bfloat16"
    return replace(config, train=train), f"train.precision: auto is {chosen} on {where}"


def autocast_dtype(config: Config) -> torch.dtype | None:
    """What the backbone's products are lowered to; None: nothing is.

    An `auto` that nobody resolved (a checkpoint's is) means float32.
    """
    return AUTOCAST.get(config.train.precision)


class LossScale:
    """Factor on the loss in the backward pass: 1, or moved so that float16 gradients fit.

    One number for all ranks, backbone and head: halved by a step in which any of them overflowed (which is
    skipped), doubled after so many good ones. Powers of two, so that scaling itself rounds nothing.

    Args:
        config: Its numbers; None: the scale is 1 and stays.
    """

    def __init__(self, config: LossScaleConfig | None) -> None:
        self._config = config
        self.value = 1.0 if config is None else config.initial
        self._good = 0

    @property
    def moves(self) -> bool:
        """Whether there is one at all."""
        return self._config is not None

    def update(self, *, overflowed: bool) -> None:
        """Count one step."""
        config = self._config
        if config is None:
            return
        if overflowed:
            self.value, self._good = max(config.least, self.value * config.backoff), 0
            return
        self._good += 1
        if self._good >= config.growth_every:
            self.value, self._good = self.value * config.growth, 0

    def state(self) -> dict[str, Any] | None:
        """For the checkpoint: JSON."""
        return {"value": self.value, "good": self._good} if self.moves else None

    def load_state(self, state: dict[str, Any] | None) -> None:
        """What `state` gave; a run in another precision had none.

        Raises:
            ValueError: it is damaged.
        """
        if state is None or not self.moves:
            return
        value, good = state.get("value"), state.get("good")
        if not isinstance(value, int | float) or type(good) is not int:
            raise ValueError("checkpoint: state.json: loss_scale is damaged")
        if not 0 < value < float("inf") or good < 0:
            raise ValueError(
                f"checkpoint: state.json: loss_scale: {value} after {good}; allowed: a positive number"
            )
        self.value, self._good = float(value), good
