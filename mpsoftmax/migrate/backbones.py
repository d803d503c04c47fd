"""A pretrained backbone of insightface becomes a checkpoint directory of ours."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mpsoftmax.config import Config, apply_override, from_tree
from mpsoftmax.data.new_files import new_files
from mpsoftmax.migrate.networks import Detected, detect, fitted
from mpsoftmax.migrate.torch_files import read_file, state_dict_in
from mpsoftmax.migrate.writing import write_checkpoint
from mpsoftmax.train.engines.protocol import BACKBONE

SUFFIXES = (".pth", ".pt")


def convert_backbone(source: Path, folder: Path, overrides: Iterable[str] = ()) -> Detected:
    """Write a checkpoint directory that evaluate, embed, export and backbone.start_from open.

    Args:
        source: The state dict, or a checkpoint_gpu_*.pt that holds one.
        folder: A new directory.
        overrides: key.path=value of our configuration: preprocessing (data.crop), image size.

    Raises:
        ValueError: it is none of the networks known here, or does not fit; says what.
    """
    state = state_dict_in(source, read_file(source))
    net = detect(state)
    tree: dict[str, Any] = {"train": {"steps": 1, "precision": "fp32"}}
    config = config_of(tree, net, overrides)
    tensors = named(fitted(state, net))
    with new_files(folder) as (partial,):
        # The directory itself, and not a run folder: there is nothing in it that a training could resume.
        partial.mkdir()
        written = write_checkpoint(partial, config, 0, tensors, {})
        (partial / "latest").unlink()
        inside = partial.with_name(partial.name + ".inside")
        written.rename(inside)
        partial.rmdir()
        inside.rename(partial)
    return net


def config_of(tree: dict[str, Any], net: Detected, overrides: Iterable[str]) -> Config:
    """The configuration that a tree makes with this network in it.

    Raises:
        ValueError: the tree names another network, or a value is refused.
    """
    section, found = tree.setdefault("backbone", {}), net.section()
    for key in ("name", "embedding_dim"):
        if section.get(key, found[key]) != found[key]:
            raise ValueError(
                f"backbone.{key}: {section[key]}; the tensors are those of {net.name} with "
                f"embedding_dim {net.embedding_dim}"
            )
    if net.name == "mobilefacenet":  # a name for several widths and depths
        section.pop("options", None)
    section.update(found)
    tree.setdefault("data", {}).setdefault("image_size", list(net.image_size))
    for override in overrides:
        apply_override(tree, override)
    config = from_tree(tree)
    if config.data.image_size != net.image_size and net.name.startswith(("iresnet", "mobile")):
        raise ValueError(
            f"data.image_size: {list(config.data.image_size)}; allowed: {list(net.image_size)}, for which "
            "the last layer of these tensors was made"
        )
    return config


def named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names that checkpoints give them."""
    return {BACKBONE + name: value for name, value in state.items()}
