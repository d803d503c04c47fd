"""Looking ids up in a sorted list of ids."""

import torch
from torch import Tensor


def place_of(wanted: Tensor, ids: Tensor) -> Tensor:
    """Where each of `wanted` stands in `ids`, -1 where it does not: int64, the shape of `wanted`.

    Args:
        wanted: int64, any shape.
        ids: int64 [n], ascending, without repetition.
    """
    if not ids.numel():
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(ids, wanted.contiguous()).clamp_max(ids.numel() - 1)
    return torch.where(ids[place] == wanted, place, -1)
