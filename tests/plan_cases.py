"""Heads that are planned and measured, described by plain values that processes can pass on."""

from dataclasses import dataclass

import torch

import mpsoftmax as mp
from mpsoftmax.head.arguments import Description
from mpsoftmax.plan.shape import HeadShape

CANDIDATES = {
    "all": lambda rate: "all",
    "uniform": mp.Uniform,
    "blocks": lambda rate: mp.UniformBlocks(rate),
    "dsoftmax_k": mp.DSoftmaxK,
}
OPTIMIZERS = {"sgd": mp.RowSGD(lr=0.1), "adamw": mp.RowAdamW()}


@dataclass(frozen=True)
class Case:
    classes: int
    dim: int
    batch: int
    dtype: str = "float32"
    candidates: str = "all"
    rate: float = 0.1
    optimizer: str = "sgd"
    e_budget_bytes: int = 2**30
    untouched: str = "frozen"
    row_dtype: str = "float32"
    objective: str = "arcface"
    storage: str = "device"

    def parts(self):
        return {
            "objective": self.objective,
            "candidates": CANDIDATES[self.candidates](self.rate),
            "optimizer": OPTIMIZERS[self.optimizer],
            "untouched": self.untouched,
        }

    def settings(self):
        return {
            "compute_dtype": getattr(torch, self.dtype),
            "row_dtype": getattr(torch, self.row_dtype),
            "e_budget_bytes": self.e_budget_bytes,
            "storage": self.storage,
        }

    def head(self, classes=None):
        num = self.classes if classes is None else classes
        return mp.ModelParallelSoftmax(
            self.dim, num, **self.parts(), **self.settings(), batch_capacity=self.batch
        )

    def shape(self):
        parts = self.parts()
        described = Description.of(
            parts["objective"], parts["candidates"], "all", None, "learned", parts["optimizer"],
            self.untouched, self.classes,
        )  # fmt: skip
        return HeadShape(
            parts=described, classes=self.classes, dim=self.dim, world=1, samples=self.batch,
            capacity=self.batch, untouched=self.untouched, **self.settings(),
        )  # fmt: skip
