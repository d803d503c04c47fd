"""One trained model into one file, and what is told of it beside."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config
from mpsoftmax.data.new_files import new_files
from mpsoftmax.export.card import (
    Figure,
    judged_figures,
    logged_figures,
    model_card,
    training_facts,
)
from mpsoftmax.export.class_rows import write_class_rows
from mpsoftmax.export.graph import OPSET, check_onnx, onnx_bytes, write_program
from mpsoftmax.models import TrainedModel, open_model
from mpsoftmax.models.header import KEY, header
from mpsoftmax.models.onnx_file import BESIDE, FORMS, OnnxNet
from mpsoftmax.train.checkpoint import read_state
from mpsoftmax.train.datasets import open_training_images
from mpsoftmax.train.inputs import describe_data
from mpsoftmax.train.stored_rows import stored_table

SUFFIXES = (".onnx", ".safetensors", ".pt2", ".arrow")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        paths: The files, the model first.
        difference: Largest distance from the backbone's embeddings that the check found, as a share of their
            length; None where there was nothing to compare.
    """

    paths: tuple[Path, ...]
    difference: float | None


def export(
    model: str | Path,
    out: str | Path,
    *,
    form: str = BESIDE,
    opset: int = OPSET,
    figures: Sequence[str | Path] = (),
    names: bool = True,
    trust_code: bool = False,
) -> Exported:
    """Write a trained backbone as .onnx, .safetensors or .pt2, or its class rows as .arrow.

    Graphs are compared with the backbone before they get their name; weights are read back.

    Args:
        model: Run folder, checkpoint directory, or .safetensors.
        out: The file; its suffix says the format. .onnx and .pt2 get a .json beside, .safetensors a .md.
        form: Graphs only: "beside", or what pixels are normalised inside: "inside, uint8 NCHW" or "... NHWC".
        opset: .onnx only.
        figures: .safetensors only: files of `mpsoftmax evaluate --json` for the card.
        names: .arrow only: class names too, from the training data, which must be there.
        trust_code: Import the backbone that the checkpoint names.

    Raises:
        ValueError: something exists, does not go together, or the check failed: nothing is written then.
    """
    path = Path(out)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"export: {out}: suffix {suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if form not in FORMS:
        raise ValueError(f"export: form {form!r}; allowed: {FORMS}")
    if form != BESIDE and suffix not in (".onnx", ".pt2"):
        raise ValueError(f"export: --preprocessing inside with {suffix}; allowed: .onnx, .pt2")
    if figures and suffix != ".safetensors":
        raise ValueError(f"export: --figures with {suffix}; allowed: .safetensors, for its card")
    judged = [one for file in figures for one in judged_figures(Path(file))]
    opened = open_model(model, trust_code=trust_code)
    if isinstance(opened.net, OnnxNet):
        raise ValueError(f"model: {model}: is exported already; allowed: a run or a .safetensors")
    tree = described(opened)
    if suffix == ".arrow":
        return export_rows(path, opened, tree, names)
    net = copy.deepcopy(opened.net).cpu().float().eval()
    if suffix == ".safetensors":
        return export_weights(path, net, opened, tree, judged)
    return export_graph(path, net, opened.config, tree, form, opset)


def described(opened: TrainedModel) -> dict[str, Any]:
    """The header of a model that goes into its files."""
    source, config = opened.source, opened.config
    num_params = sum(one.numel() for one in opened.net.parameters())
    if source.is_dir():
        state = read_state(source)
        facts = training_facts(config, state.get("data"), num_params)
        run = source.parent.parent if source.parent.name == "checkpoints" else source
        return header(config, source=run.resolve().name, step=opened.step, training=facts)
    return {
        **header(config, source=source.stem, step=opened.step),
        **{key: opened.header[key] for key in ("source", "training") if key in opened.header},
    }


def export_graph(
    path: Path, net: nn.Module, config: Config, tree: dict[str, Any], form: str, opset: int
) -> Exported:
    """.onnx or .pt2, and a .json that says how to feed it."""
    size, beside = config.data.image_size, path.with_suffix(path.suffix + ".json")
    said = {**tree, "graph": graph_facts(config, form, path.suffix.lower(), opset)}
    metadata = {KEY: json.dumps(said)}
    with new_files(beside, path) as (side, target):
        if path.suffix.lower() == ".onnx":
            data = onnx_bytes(net, form, size, opset, metadata)
            worst = check_onnx(data, net, form, size)
            target.write_bytes(data)
        else:
            worst = write_program(target, net, form, size, metadata)
        said["graph"]["largest_difference"] = worst
        side.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return Exported((path, beside), worst)


def graph_facts(config: Config, form: str, suffix: str, opset: int) -> dict[str, Any]:
    """What a graph takes and gives."""
    height, width = config.data.image_size
    shapes = {"NHWC": ["batch", height, width, 3]}
    shape = shapes.get(form[-4:], ["batch", 3, height, width])
    inside = form != BESIDE
    return {
        "input": {
            "name": "images",
            "shape": shape,
            "dtype": "uint8" if inside else "float32",
            "values": "0..255, R, G, B" if inside else "(x - 127.5) / 127.5 of 0..255, R, G, B",
        },
        "output": {"name": "embeddings", "shape": ["batch", config.backbone.embedding_dim]},
        "normalisation": "inside the graph" if inside else "beside the graph: do it before",
        "crop_and_resize": "beside the graph: do it before",
        **({"opset": opset} if suffix == ".onnx" else {}),
    }


def export_weights(
    path: Path, net: nn.Module, opened: TrainedModel, tree: dict[str, Any], judged: list[Figure]
) -> Exported:
    """.safetensors, and its card as .md; read back and compared tensor by tensor."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise ValueError(
            "export: .safetensors needs safetensors (pip install safetensors)"
        ) from error
    from mpsoftmax.models.safetensors_file import read_safetensors

    run = opened.source.parent.parent
    figures = logged_figures(run / "metrics.jsonl", opened.step) if opened.source.is_dir() else []
    tensors = {name: one.contiguous().clone() for name, one in net.state_dict().items()}
    card = path.with_suffix(".md")
    with new_files(card, path) as (text, target):
        try:
            save_file(tensors, target, metadata={KEY: json.dumps(tree)})
        except (SafetensorError, OSError) as error:  # the first is what a full disk is to it, too
            raise ValueError(f"{path}: cannot be written: {error}") from error
        back, _ = read_safetensors(target)
        if any(not torch.equal(back[name], one) for name, one in tensors.items()):
            raise ValueError("export: what was written is not what was read back")
        text.write_text(model_card(tree, [*figures, *judged], path.name), encoding="utf-8")
    return Exported((path, card), 0.0)


def export_rows(path: Path, opened: TrainedModel, tree: dict[str, Any], names: bool) -> Exported:
    """Class rows as .arrow."""
    if not opened.source.is_dir():
        raise ValueError(
            f"model: {opened.source}: holds no class rows; allowed: a run or checkpoint"
        )
    table = stored_table(opened.source)
    found = class_names(opened, table.num_classes) if names else None
    with new_files(path) as (target,):
        write_class_rows(target, table, found, tree)
    return Exported((path,), None)


def class_names(opened: TrainedModel, num_classes: int) -> Sequence[str]:
    """Names of the training's classes, from its data.

    Raises:
        ValueError: the data cannot be opened, or are not those of the training.
    """
    advice = "allowed: the training data where the configuration says, or --no-names"
    try:
        images = open_training_images(opened.config)
    except (ValueError, OSError) as error:
        raise ValueError(f"export: class names: {error}; {advice}") from error
    saved, found = read_state(opened.source).get("data"), len(images.class_names)
    if found != num_classes or (saved is not None and describe_data(images, Comm()) != saved):
        raise ValueError(
            f"export: class names: data.train has {found} classes and is not what was trained on; {advice}"
        )
    return images.class_names
