"""DeepSpeed's own configuration: which of its keys may be given, which must equal ours, what it is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpsoftmax.config import Config
from mpsoftmax.strict import parse_yaml, suggestion

FIELD = "train.engine.config"
AUTO = "auto"
PASSED_ON = (
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "flops_profiler",
    "comms_logger",
)
"""Keys that DeepSpeed alone decides about."""

ELSEWHERE = {
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "fp16": "train.precision: fp16, whose loss scale the head shares",
    "bf16": "train.precision: bf16, under which parameters stay float32",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
}
"""Keys that we decide about in another way: refused, with the key to use."""


def read_config(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The mapping given, or that of the JSON (or YAML) file at a path.

    Raises:
        ValueError: it cannot be read, or holds no mapping.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    try:
        text = Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{FIELD}: {given}: cannot be read: {error}") from error
    tree = parse_yaml(text, f"{FIELD}: {given}")  # JSON is YAML
    if not isinstance(tree, dict):
        raise ValueError(f"{FIELD}: {given} holds {type(tree).__name__}; allowed: a mapping")
    return tree


def settle(
    given: Mapping[str, Any], stage: int | None, config: Config, world: int | None = None
) -> dict[str, Any]:
    """What DeepSpeed is told: the given keys that are its own, and ours.

    Args:
        given: The user's configuration; "auto" anywhere at its top stands for ours.
        stage: train.engine.stage; None: the configuration's, or 1.
        config: Ours.
        world: Number of ranks; None: not known yet.

    Raises:
        ValueError: a key is unknown, not for us, or contradicts ours; names both.
    """
    own = {key: value for key, value in given.items() if value != AUTO}
    refuse_disabled_elsewhere(own)
    ours = equals(config)
    for key, (name, value) in ours.items():
        if key in own and own.pop(key) != value:
            raise ValueError(
                f"{FIELD}.{key}: {given[key]} contradicts {name}={value}; allowed: the same, auto, or "
                "left out"
            )
    check_micro_batch(own.pop("train_micro_batch_size_per_gpu", None), config, world)
    zero = own.pop("zero_optimization", {})
    for key in own:
        if key not in PASSED_ON:
            known = [*PASSED_ON, *ours, "train_micro_batch_size_per_gpu"]
            raise ValueError(f"{FIELD}.{key}: not a key for us{suggestion(key, known)}")
    check_zero(zero, stage)
    return {
        "steps_per_print": 10**9,
        **own,
        "zero_optimization": {**zero, "stage": zero_stage(zero, stage)},
        # Micro-batches differ in size and the loop says where a step ends: DeepSpeed counts single ones.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # the loop clips; left out it would be 1.0
        "zero_allow_untested_optimizer": True,
    }


def check_micro_batch(micro: Any, config: Config, world: int | None) -> None:
    """Raise ValueError for a share of a rank and micro-batch that is not ours; None: none was given."""
    train = config.train
    if (
        micro is not None
        and world is not None
        and micro * world * train.accumulation != train.batch_size
    ):
        raise ValueError(
            f"{FIELD}.train_micro_batch_size_per_gpu: {micro} contradicts train.batch_size="
            f"{train.batch_size} over {world} ranks and train.accumulation={train.accumulation}; allowed: "
            "their quotient, auto, or left out"
        )


def equals(config: Config) -> dict[str, tuple[str, Any]]:
    """DeepSpeed's keys that must say what ours say: (our key, our value)."""
    train = config.train
    return {
        "train_batch_size": ("train.batch_size", train.batch_size),
        "gradient_accumulation_steps": ("train.accumulation", train.accumulation),
        "gradient_clipping": ("train.clip_norm", train.clip_norm or 0),
    }


def refuse_disabled_elsewhere(own: dict[str, Any]) -> None:
    """Raise ValueError for a section that we decide about; one that is switched off is taken out."""
    for key, ours in ELSEWHERE.items():
        section = own.get(key)
        if isinstance(section, Mapping) and section.get("enabled") is False:
            own.pop(key)
        elif key in own:
            raise ValueError(f"{FIELD}.{key}: {section!r}; allowed: none: give {ours}")


def check_zero(zero: Any, stage: int | None) -> None:
    """Raise ValueError for a zero_optimization that is none, contradicts the stage, or offloads."""
    if not isinstance(zero, Mapping):
        raise ValueError(f"{FIELD}.zero_optimization: {zero!r}; allowed: a mapping")
    for key in zero:
        if key.startswith(("offload", "cpu_offload")) or key == "zenflow":
            raise ValueError(f"{FIELD}.zero_optimization.{key}: given; allowed: left out")
    own = zero.get("stage", AUTO)
    if stage is not None and own not in (AUTO, stage):
        raise ValueError(
            f"{FIELD}.zero_optimization.stage: {own} contradicts train.engine.stage={stage}; allowed: the "
            "same, or left out"
        )
    if zero_stage(zero, stage) not in (0, 1, 2, 3):
        raise ValueError(f"train.engine.stage: {zero_stage(zero, stage)}; allowed: 0, 1, 2, 3")


def zero_stage(zero: Mapping[str, Any], stage: int | None) -> Any:
    """The stage, wherever it was given; 1 where nowhere."""
    own = zero.get("stage", AUTO)
    if stage is not None:
        return stage
    return 1 if own == AUTO else own
