"""insightface's PartialFC_V2, taken from a checkout that the user names; nothing of it is in this repository.

It is written for CUDA. On the CPU its `.cuda()` calls return the tensor itself while it runs here, and it
warns about CUDA's autocast, which does nothing.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from mpsoftmax.bench.case import MARGIN, SCALE, Case, batch_of


def load(folder: Path, name: str) -> ModuleType:
    """A module of the checkout, by path.

    Raises:
        ValueError: it is not there, or cannot be imported.
    """
    path = folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"arcface_torch_{name}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(
            f"--incumbent: {folder} holds no {name}.py; allowed: insightface's recognition/arcface_torch"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ValueError(f"--incumbent: {path}: {error}") from error
    return module


def itself(tensor: Tensor, *_: object, **__: object) -> Tensor:
    """In place of Tensor.cuda."""
    return tensor


@contextmanager
def on_cpu() -> Iterator[None]:
    """`.cuda()` does nothing, nor does CUDA's autocast, which says so."""
    with mock.patch.object(torch.Tensor, "cuda", itself), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        yield


class Incumbent:
    """PartialFC_V2 with its ArcFace and torch.optim.SGD in float32, on the inputs of `HeadStep`.

    Needs a process group. Its sample is uniform or everything.
    """

    def __init__(self, folder: Path, case: Case) -> None:
        features, self.labels = batch_of(case)
        self.features = features.requires_grad_()
        partial_fc, losses = load(folder, "partial_fc_v2"), load(folder, "losses")
        self.module = partial_fc.PartialFC_V2(
            losses.ArcFace(SCALE, MARGIN), case.dim, case.classes, case.rate, False
        )
        self.optimizer = torch.optim.SGD(
            self.module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
        )

    def loss(self) -> Tensor:
        """Mean over the batch."""
        with on_cpu():
            return self.module(self.features, self.labels.clone())

    def run(self) -> None:
        """Forward, backward, step."""
        self.features.grad = None
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
