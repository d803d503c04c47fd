"""The sample's own class: its row, its cosine, its part of the class gradient, on the rank that owns it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import NORM_FLOOR


@dataclass(frozen=True)
class Targets:
    """Own classes of the n valid samples of all ranks, as far as they lie in this shard."""

    own: Tensor
    """int64 [n] local class, -1 where another shard owns it."""
    row: Tensor
    """int64 [n] local row that speaks for the class, -1 likewise."""
    unit: Tensor
    """[n, D] accumulate dtype: that row's direction; arbitrary where another shard owns it."""
    norm: Tensor
    """[n] that row's norm; arbitrary likewise."""
    cosine: Tensor
    """[n] cosine with it, 0 where another shard owns it."""
    norms: Tensor
    """[n, K] norms of all rows of the class; arbitrary likewise."""

    def class_rows(self) -> tuple[Tensor, Tensor]:
        """All local rows of the own classes that lie here, and their norms: [m K] twice."""
        own, num_centres = self.own[self.owned], self.norms.shape[1]
        centres = torch.arange(num_centres, device=own.device)
        rows = own[:, None] * num_centres + centres
        return rows.reshape(-1), self.norms[self.owned].reshape(-1)

    @property
    def owned(self) -> Tensor:
        """Bool [n]."""
        return self.own >= 0


def targets_of(features: Tensor, own: Tensor, rows: Tensor) -> Targets:
    """Cosines of the samples with the nearest row of their own class.

    Args:
        features: [n, D] unit features in the accumulate dtype.
        own: int64 [n] local class or -1.
        rows: [n, K, D] its rows as stored; arbitrary where `own` is -1.
    """
    num, num_centres, dim = rows.shape
    wide = rows.to(features.dtype)
    norms = torch.linalg.vector_norm(wide, dim=2)
    units = wide / norms.clamp_min(NORM_FLOOR)[:, :, None]
    cosines = torch.linalg.vecdot(units, features[:, None])
    winner = torch.zeros_like(own) if num_centres == 1 else cosines.argmax(1)
    pick = winner[:, None]
    return Targets(
        own=own,
        row=torch.where(own >= 0, own * num_centres + winner, -1),
        unit=units.gather(1, pick[:, :, None].expand(num, 1, dim))[:, 0],
        norm=norms.gather(1, pick)[:, 0],
        cosine=cosines.gather(1, pick)[:, 0].masked_fill(own < 0, 0.0),
        norms=norms,
    )
