"""Engines that run the backbone: ddp, fsdp2, deepspeed. The head stays outside each."""

from mpsoftmax.config import Config
from mpsoftmax.train.engines.ddp import DDP
from mpsoftmax.train.engines.deepspeed import DeepSpeed
from mpsoftmax.train.engines.fsdp2 import FSDP2
from mpsoftmax.train.engines.protocol import Engine, Surroundings
from mpsoftmax.train.parts import named_part

ENGINES: dict[str, type] = {"ddp": DDP, "fsdp2": FSDP2, "deepspeed": DeepSpeed}

Description = DDP | FSDP2 | DeepSpeed


def describe_engine(config: Config) -> Description:
    """train.engine, checked by itself and against the rest of the configuration.

    Raises:
        ValueError: an unknown engine or field, or one that contradicts the configuration.
    """
    described: Description = named_part("train.engine", config.train.engine, ENGINES)
    if config.backbone.compile and not isinstance(described, DDP):
        raise ValueError("backbone.compile: true; allowed with train.engine: ddp only")
    described.check(config)
    return described


__all__ = ["ENGINES", "Engine", "Surroundings", "describe_engine"]
