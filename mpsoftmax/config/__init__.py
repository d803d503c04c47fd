"""The configuration: frozen dataclasses, one strict loader, every check.

A run is described by one YAML file and `key.path=value` overrides, both read by `load` and nothing else.
Unknown keys, wrong types and combinations without meaning are ValueErrors that name the path.
"""

from mpsoftmax.config.data_sections import DataConfig, DatasetConfig, GlyphsConfig, SyntheticConfig
from mpsoftmax.config.head_sections import BasketsConfig, HeadConfig, LinkingConfig
from mpsoftmax.config.loading import apply_override, from_tree, load, plain, to_tree, to_yaml
from mpsoftmax.config.sections import (
    BackboneConfig,
    Config,
    LossScaleConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrackConfig,
    TrainConfig,
)

__all__ = [
    "BackboneConfig",
    "BasketsConfig",
    "Config",
    "DataConfig",
    "DatasetConfig",
    "GlyphsConfig",
    "HeadConfig",
    "LinkingConfig",
    "LossScaleConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "SyntheticConfig",
    "TrackConfig",
    "TrainConfig",
    "apply_override",
    "from_tree",
    "load",
    "plain",
    "to_tree",
    "to_yaml",
]
