"""From an arcface_torch config to a configuration of ours, with a line for each key.

Source: insightface recognition/arcface_torch, configs/base.py and train_v2.py, which says what a key does.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mpsoftmax.config import apply_override, from_tree, plain
from mpsoftmax.data.new_files import new_files
from mpsoftmax.migrate.config_file import ForeignConfig, read_config_file
from mpsoftmax.migrate.config_keys import KEYS
from mpsoftmax.migrate.translation import Sizes, Translation

PUBLISHED: dict[str, Any] = {
    "margin_list": (1.0, 0.5, 0.0),
    "network": "r50",
    "embedding_size": 512,
    "sample_rate": 1,
    "interclass_filtering_threshold": 0,
    "fp16": False,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "verbose": 2000,
    "frequent": 10,
    "gradient_acc": 1,
    "seed": 2048,
    "num_workers": 2,
    "save_all_states": False,
}
"""What the published base.py gives to a config that lies beside none."""
CLIP_NORM = 5.0
"""train_v2.py writes it into its code."""
WITHOUT: dict[str, str] = {
    "resume": "a run folder that holds a run is resumed; run.resume: false refuses it instead",
    "dali": "no DALI: data.workers decode and augment",
    "dali_aug": "write the augmentations that you want as a list under data.augment (docs/data.md)",
    "wandb_key": "never copied: log in with `wandb login` or WANDB_API_KEY",
    "wandb_log_all": "one log of the whole run, written by rank 0; numbers are over all ranks",
    "wandb_resume": "a resumed run always continues its W&B run",
}


def translate(foreign: ForeignConfig, world: int, overrides: Iterable[str] = ()) -> Translation:
    """A configuration of ours.

    Args:
        foreign: The config.
        world: GPUs it was made for: batch_size is of each.
        overrides: key.path=value of ours, applied last.

    Raises:
        ValueError: a value has no meaning, here or there; names the key.
    """
    assumed = {key: value for key, value in PUBLISHED.items() if key not in foreign.values}
    values = {**assumed, **foreign.values}
    made = Translation()
    sizes = Sizes.of(values, world)
    for key, value in values.items():
        if key in WITHOUT:
            made.put(key, "..." if key == "wandb_key" else value, {}, WITHOUT[key])
        elif key in KEYS:
            KEYS[key](made, key, value, values, sizes, foreign.path)
        else:
            made.put(key, value, {}, "not a key of arcface_torch's base.py")
    for key in assumed if foreign.base is None else ():
        made.put(
            key, PUBLISHED[key], {}, "no base.py beside the config: its published value is taken"
        )
    made.put(
        "(train_v2.py)",
        "",
        {"train.clip_norm": CLIP_NORM},
        "clip_grad_norm_ of the backbone's gradient",
    )
    made.put(
        "(lr_scheduler.py)", "", {"train.schedule.kind": "polynomial", "train.schedule.power": 1.0}
    )
    made.put("(dataset.py)", "", {"data.augment": "face"}, "mirroring, as there")
    for override in overrides:
        apply_override(made.tree, override)
    train = made.tree["train"]
    if "steps" not in train and "epochs" not in train:
        raise ValueError(
            "num_epoch: not given; allowed: num_epoch, or train.steps=N behind the command"
        )
    from_tree(made.tree)
    return made


def write_config(
    source: Path, destination: Path, world: int, overrides: Iterable[str] = ()
) -> Translation:
    """Translate a config into a YAML file.

    Args:
        source: Their config, .py.
        destination: A new .yaml file.
        world: GPUs it was made for.
        overrides: key.path=value of ours, applied last.

    Raises:
        ValueError: as `read_config_file` and `translate`; or the destination exists or is no .yaml.
    """
    if destination.suffix not in (".yaml", ".yml"):
        raise ValueError(f"destination: {destination}; allowed for a config: a file named .yaml")
    made = translate(read_config_file(source), world, overrides)
    with new_files(destination) as (partial,):
        head = f"# From {source.name} of arcface_torch, for {world} GPU(s): mpsoftmax convert.\n"
        partial.write_text(
            head + yaml.safe_dump(plain(made.tree), sort_keys=False), encoding="utf-8"
        )
    return made
