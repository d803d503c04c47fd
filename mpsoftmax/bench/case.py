"""One head and its batch."""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mpsoftmax.head.arguments import Description
from mpsoftmax.head.candidates import CANDIDATES, Candidates
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.objectives import ArcFace
from mpsoftmax.head.row_optim import RowAdamW, RowRule, RowSGD
from mpsoftmax.kernels.select import chosen

OPTIMIZERS: dict[str, RowRule] = {"sgd": RowSGD(lr=0.1), "adamw": RowAdamW(lr=1e-3)}
SCALE, MARGIN = 64.0, 0.5  # ArcFace


@dataclass(frozen=True, kw_only=True)
class Case:
    """ArcFace over `classes` classes; all fields are plain values, so that processes can pass it on."""

    classes: int
    dim: int
    batch: int
    """Samples over all ranks."""
    dtype: str = "float32"
    """Of the matrix products."""
    candidates: str = "all"
    rate: float = 1.0
    """Of sampled candidates; 1 of all."""
    untouched: str = "frozen"
    row_dtype: str = "float32"
    storage: str = "device"
    optimizer: str = "sgd"
    e_budget_bytes: int = 2**30
    kernel: str = "auto"
    world: int = 1

    def __post_init__(self) -> None:
        """Check what the head would refuse, before processes are started."""
        if self.batch < self.world:
            raise ValueError(
                f"--batch: {self.batch} with --world {self.world}; allowed: at least {self.world}"
            )
        Description.of(
            ArcFace(SCALE, MARGIN),
            self.chosen(),
            "all",
            None,
            "learned",
            OPTIMIZERS[self.optimizer],
            self.untouched,
            self.classes,
            self.storage,
        )

    def chosen(self) -> Candidates:
        """The candidates described."""
        kind = CANDIDATES[self.candidates]
        return kind(rate=self.rate) if kind.samples_classes else kind()  # type: ignore[call-arg]

    def head(self) -> ModelParallelSoftmax:
        """A head on the CPU, in the process group if there is one."""
        return ModelParallelSoftmax(
            self.dim,
            self.classes,
            objective=ArcFace(SCALE, MARGIN),
            candidates=self.chosen(),
            optimizer=OPTIMIZERS[self.optimizer],
            untouched=self.untouched,
            compute_dtype=getattr(torch, self.dtype),
            row_dtype=getattr(torch, self.row_dtype),
            storage=self.storage,
            e_budget_bytes=self.e_budget_bytes,
            kernel=self.kernel,
            batch_capacity=-(-self.batch // self.world),
        )

    def share(self, rank: int) -> tuple[int, int]:
        """(first, one past last) sample of a rank."""
        return self.batch * rank // self.world, self.batch * (rank + 1) // self.world

    @property
    def label(self) -> str:
        """For plots and tables."""
        sampled = "" if self.candidates == "all" else f" {self.candidates} {self.rate:g}"
        ranks = f" W={self.world}" if self.world > 1 else ""
        rows = "" if self.row_dtype == "float32" else f" rows {self.row_dtype}"
        where = "" if self.storage == "device" else f" {self.storage}"
        shape = f"C={self.classes:,} D={self.dim} B={self.batch}"
        return f"{shape} {self.dtype}{sampled}{rows}{where}{ranks}"


def batch_of(case: Case) -> tuple[Tensor, Tensor]:
    """Features [batch, dim] and labels int64 [batch]: the same for everything that is compared."""
    stream = torch.Generator().manual_seed(0)
    features = torch.randn(case.batch, case.dim, generator=stream)
    return features, torch.randint(0, case.classes, (case.batch,), generator=stream)


class HeadStep:
    """A head, a fixed batch, and one training step on it."""

    def __init__(self, case: Case) -> None:
        self.head = case.head()
        features, labels = batch_of(case)
        low, high = case.share(self.head.comm.rank)
        self.features, self.labels = features[low:high].clone().requires_grad_(), labels[low:high]

    def run(self) -> None:
        """Forward, backward, step; rows stored elsewhere are read ahead."""
        self.features.grad = None
        self.head.prefetch(self.labels)
        self.head(self.features, self.labels).backward()
        self.head.step()


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every combination of the sizes given, with the kernel that `auto` stands for."""
    several = {name: getattr(options, name) for name in ("classes", "dim", "batch", "dtype")}
    several["rate"] = [1.0] if options.candidates == "all" else options.rate
    several["world"] = getattr(options, "world", [1])
    plain: dict[str, Any] = {
        field.name: getattr(options, field.name)
        for field in fields(Case)
        if field.name not in several
    }
    plain["kernel"] = chosen(options.kernel, torch.device("cpu"))
    for values in itertools.product(*several.values()):
        yield Case(**plain, **dict(zip(several, values, strict=True)))
