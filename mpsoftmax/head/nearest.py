"""The class of highest cosine, over all shards: closed-set classification."""

import torch
from torch import Tensor, nn

from mpsoftmax.head.class_table import ClassTable
from mpsoftmax.head.exchange import Exchange

BLOCK_CLASSES = 4096


def nearest_classes(
    exchange: Exchange,
    table: ClassTable,
    features: Tensor,
    absent: Tensor | None,
    other_than: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Class ids int64 [b] and cosines [b] for this rank's raw features [b, D]. Collective.

    `absent` bool: local classes that are no answer. `other_than` int64 [b]: the class that is no answer to a
    feature. With sub-centres a class's nearest row counts; ties go to the lowest id.
    """
    labels = torch.zeros(features.shape[0], dtype=torch.int64, device=features.device)
    labels = labels if other_than is None else other_than
    local, batch = exchange.gather(features, labels)
    best, where = torch.full_like(batch.norm, -torch.inf), torch.zeros_like(batch.labels)
    unit, k = batch.unit.to(batch.norm.dtype), table.num_centres
    for first in range(0, table.num_local, BLOCK_CLASSES):
        last = min(first + BLOCK_CLASSES, table.num_local)
        block = table.current_rows(slice(first * k, last * k)).to(unit.dtype)
        cosine = unit @ nn.functional.normalize(block, dim=1).T
        cosine = cosine.unflatten(1, (-1, k)).amax(2)
        if absent is not None:
            cosine.masked_fill_(absent[first : first + BLOCK_CLASSES], -torch.inf)
        if other_than is not None:
            own = batch.labels - (table.start + first)
            here = torch.nonzero((own >= 0) & (own < last - first))[:, 0]
            cosine[here, own[here]] = -torch.inf
        value, position = cosine.max(1)
        better = value > best
        best = torch.where(better, value, best)
        where = torch.where(better, position + (table.start + first), where)
    values, ids = exchange.comm.all_gather(best), exchange.comm.all_gather(where)
    winner = values.argmax(0, keepdim=True)
    found, cosine = ids.gather(0, winner)[0], values.gather(0, winner)[0]
    num = local.norm.shape[0]
    return exchange.own(found, batch)[:num], exchange.own(cosine, batch)[:num]
