"""Backbones in .onnx, run by onnxruntime: for judging and embedding with what will be deployed."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsoftmax.config import Config
from mpsoftmax.models.header import KEY, read_header

INPUT, OUTPUT = "images", "embeddings"
PREPROCESSING_KEY = "mpsoftmax.preprocessing"
BESIDE, NCHW, NHWC = "beside", "inside, uint8 NCHW", "inside, uint8 NHWC"
FORMS = (BESIDE, NCHW, NHWC)
"""What a graph takes: floats that were normalised beside it, or pixels that it normalises inside."""


class OnnxNet(nn.Module):
    """A graph as a module: images float [b, 3, H, W] in [-1, 1] -> raw embeddings float32 [b, D].

    Args:
        session: An onnxruntime.InferenceSession.
        form: One of FORMS; pixels are restored exactly for a graph that normalises inside.
        digest: Of the file.
    """

    def __init__(self, session: Any, form: str, digest: bytes = b"") -> None:
        super().__init__()
        self._session, self._form, self.digest = session, form, digest

    def forward(self, images: Tensor) -> Tensor:
        """Run the graph on the CPU; the result comes to where the images are."""
        values = images.detach().cpu().float()
        if self._form != BESIDE:
            values = (values * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        if self._form == NHWC:
            values = values.permute(0, 2, 3, 1).contiguous()
        (embeddings,) = self._session.run([OUTPUT], {INPUT: values.numpy()})
        return torch.from_numpy(np.asarray(embeddings, np.float32)).to(images.device)


def open_onnx(path: Path) -> tuple[nn.Module, Config, dict[str, Any]]:
    """The graph of a file that `mpsoftmax export` wrote; its configuration, in float32; its header.

    Raises:
        ValueError: damaged, not such a file, or onnxruntime is not installed.
    """
    try:
        data = path.read_bytes()
        session = start(data)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    tree, config = read_header(metadata.get(KEY), str(path))
    form = metadata.get(PREPROCESSING_KEY)
    if form not in FORMS:
        raise ValueError(f"{path}: metadata {PREPROCESSING_KEY}: {form!r:.100}; allowed: {FORMS}")
    names = [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()]
    if names != ([INPUT], [OUTPUT]):
        raise ValueError(f"{path}: its inputs and outputs are {names}; allowed: {INPUT}, {OUTPUT}")
    exact = replace(config, train=replace(config.train, precision="fp32"))
    return OnnxNet(session, form, hashlib.sha256(data).digest()), exact, tree


def start(data: bytes) -> Any:
    """An onnxruntime session on the CPU, in as many threads as torch uses.

    Raises:
        ValueError: onnxruntime is not installed, or cannot run the graph. One whose weights lie in other
            files is refused: it would read whatever path it names.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"needs {error.name} (pip install onnx onnxruntime)") from error
    try:
        graph = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises kinds of its own
        raise ValueError(f"is no ONNX graph: {error}") from error
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in tensors_of(graph)):
        raise ValueError("its weights lie in other files; allowed: a graph that holds them")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # kinds of its own, without a common parent but Exception
        raise ValueError(f"onnxruntime cannot run it: {error}") from error


def tensors_of(message: Any) -> Iterator[Any]:
    """Every tensor in an ONNX message, in subgraphs, functions and sparse initialisers too."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if isinstance(value, Sequence) else [value]:
                yield from tensors_of(one)
