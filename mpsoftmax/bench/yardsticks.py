"""What a head step is measured against: the products it cannot avoid, and what it replaces."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mpsoftmax.bench.case import MARGIN, SCALE, Case, batch_of

GEMM_BLOCK = 1024


class BareProducts:
    """Logits, feature gradient and class gradient as matrix products, buffers made beforehand.

    Over as many rows as the head sweeps: sampled candidates are fewer.
    """

    def __init__(self, rows: int, dim: int, batch: int, dtype: torch.dtype) -> None:
        self.features = torch.randn(batch, dim).to(dtype)
        self.rows = torch.randn(rows, dim).to(dtype)
        self.logits = torch.zeros(rows, batch, dtype=dtype)
        self.by_features = torch.zeros(batch, dim, dtype=dtype)
        self.by_rows = torch.zeros(rows, dim, dtype=dtype)

    def blocked(self) -> None:
        """The three products block by block, the class gradient in a second sweep, as the head does."""
        for rows, logits in self._blocks(self.rows, self.logits):
            torch.mm(rows, self.features.T, out=logits)
            self.by_features.addmm_(logits.T, rows)
        for logits, by_rows in self._blocks(self.logits, self.by_rows):
            torch.mm(logits, self.features, out=by_rows)

    def whole(self) -> None:
        """The three products in one call each."""
        torch.mm(self.rows, self.features.T, out=self.logits)
        torch.mm(self.logits.T, self.rows, out=self.by_features)
        torch.mm(self.logits, self.features, out=self.by_rows)

    @staticmethod
    def _blocks(*tensors: Tensor) -> zip:
        return zip(*(tensor.split(GEMM_BLOCK) for tensor in tensors), strict=True)


class PlainSoftmax:
    """ArcFace over all classes by autograd, the table a parameter of torch.optim.SGD."""

    def __init__(self, case: Case) -> None:
        features, self.labels = batch_of(case)
        self.features = features.requires_grad_()
        self.weight = torch.nn.Parameter(torch.randn(case.classes, case.dim) * 0.01)
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.dtype = getattr(torch, case.dtype)

    def loss(self) -> Tensor:
        """Mean over the batch."""
        unit, rows = normalize(self.features).to(self.dtype), normalize(self.weight).to(self.dtype)
        cosine = (unit @ rows.T).float()
        place = torch.arange(len(self.labels))
        own = cosine[place, self.labels].clamp(-1 + 1e-6, 1 - 1e-6)
        logits = cosine.index_put((place, self.labels), torch.cos(torch.acos(own) + MARGIN))
        return cross_entropy(logits * SCALE, self.labels)

    def run(self) -> None:
        """Forward, backward, step."""
        self.features.grad = None
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
