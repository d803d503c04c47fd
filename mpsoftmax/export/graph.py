"""Backbones as graphs: ONNX and torch.export, with a batch of any size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpsoftmax.data.pixels import to_float
from mpsoftmax.export.parity import check_parity
from mpsoftmax.export.quiet import quiet
from mpsoftmax.models.onnx_file import (
    BESIDE,
    INPUT,
    NCHW,
    NHWC,
    OUTPUT,
    PREPROCESSING_KEY,
    OnnxNet,
    start,
)

OPSET = 20
MAX_BYTES = 1_900_000_000
"""A protobuf file ends at 2 GiB, and weights in files beside it would make the model several files."""


class FromPixels(nn.Module):
    """Pixels uint8 -> raw embeddings: the normalisation and the backbone.

    Args:
        net: float [b, 3, H, W] in [-1, 1] -> [b, D].
        form: NCHW or NHWC of the pixels.
    """

    def __init__(self, net: nn.Module, form: str) -> None:
        super().__init__()
        self.net, self.form = net, form

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [b, 3, H, W] or [b, H, W, 3] -> [b, D]."""
        if self.form == NHWC:
            images = images.permute(0, 3, 1, 2)
        return self.net(images.to(torch.float32).sub(127.5).div(127.5))


def traced(net: nn.Module, form: str, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The backbone as a graph of torch.export whose batch may have any size.

    Raises:
        ValueError: it cannot be traced; says why.
    """
    module = net if form == BESIDE else FromPixels(net, form)
    shape = (2, *size, 3) if form == NHWC else (2, 3, *size)
    example = torch.zeros(shape, dtype=torch.float32 if form == BESIDE else torch.uint8)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
    except Exception as error:  # torch.export has no common error
        raise ValueError(
            f"export: torch.export cannot trace the backbone: {error!s:.500}"
        ) from error


def onnx_bytes(
    net: nn.Module, form: str, size: tuple[int, int], opset: int, metadata: Mapping[str, str]
) -> bytes:
    """The backbone as an ONNX model that holds its weights.

    Args:
        net: On the CPU.
        form: One of FORMS.
        size: (H, W).
        opset: Version of ONNX's operators.
        metadata: Strings that go with it.

    Raises:
        ValueError: it cannot be expressed, or is too large for one file.
    """
    num_bytes = sum(p.numel() * p.element_size() for p in net.state_dict().values())
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"export: {num_bytes} bytes of weights; allowed in one .onnx file: {MAX_BYTES}; .safetensors and "
            ".pt2 have no such limit"
        )
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "export: .onnx needs onnxscript (pip install onnx onnxscript onnxruntime)"
        ) from error
    program = traced(net, form, size)
    try:
        with quiet():
            found = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        assert found is not None
        model = found.model_proto
    except Exception as error:  # the exporter's errors share no parent
        raise ValueError(f"export: no ONNX of opset {opset}: {error!s:.500}") from error
    imported = {one.domain: one.version for one in model.opset_import}
    if imported.get("") != opset:
        raise ValueError(f"export: opset {opset} was asked for, {imported.get('')} came out")
    for key, value in {**metadata, PREPROCESSING_KEY: form}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return cast(bytes, model.SerializeToString())


def check_onnx(data: bytes, net: nn.Module, form: str, size: tuple[int, int]) -> float:
    """Parity of a model's bytes with the backbone, by onnxruntime; see check_parity."""
    graph = OnnxNet(start(data), form)
    return check_parity(lambda pixels: graph(to_float(pixels)), net, size)


def write_program(
    path: Path, net: nn.Module, form: str, size: tuple[int, int], metadata: Mapping[str, str]
) -> float:
    """Write a .pt2 of torch.export, read it back and compare; returns the largest difference.

    Raises:
        ValueError: as `traced` and `check_parity`.
    """
    extra = {f"{key}.json": value for key, value in metadata.items()}
    extra["preprocessing.json"] = json.dumps(form)
    with quiet(), path.open("wb") as file:
        torch.export.save(traced(net, form, size), file, extra_files=cast(Any, extra))
    with quiet(), path.open("rb") as file:
        graph = torch.export.load(file).module()

    def run(pixels: Tensor) -> Tensor:
        if form == BESIDE:
            return graph(to_float(pixels))
        return graph(pixels if form == NCHW else pixels.permute(0, 2, 3, 1).contiguous())

    return check_parity(run, net, size)
