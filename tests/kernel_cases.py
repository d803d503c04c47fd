"""Problems for the kernels at shapes that fit no tile, with every wish a problem may have."""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.nn.functional import normalize

from mpsoftmax.kernels.problem import HardNegatives, Pairs, Problem, Selection

SCALE = 8.0
WISHES = ("absent", "hard", "limit", "dropped", "kept", "all")


def awkward(batch, rows, dim, dtype, shift, wish="nothing", target=None, least_gap=0.008):
    """Random unit features, rows of norms around 0.2; a third of the targets lives elsewhere."""
    stream = torch.Generator().manual_seed(1000 * batch + rows)
    features = normalize(torch.randn(batch, dim, generator=stream, dtype=torch.float64), dim=1)
    table = torch.randn(rows, dim, generator=stream, dtype=torch.float64) * 0.05
    if target is None:
        target = torch.randint(0, rows, (batch,), generator=stream)
        target[::3] = -1
    cosines = features @ normalize(table, dim=1).T
    feature_scale = None
    if wish == "all":
        feature_scale = 0.5 + torch.rand(batch, generator=stream)
        features = features * feature_scale[:, None]
    return Problem(
        features=features.to(dtype),
        rows=table.float(),
        scale=SCALE,
        target=target,
        shift=shift,
        feature_scale=feature_scale,
        absent=torch.arange(rows) % 7 == 3 if wish in ("absent", "all") else None,
        hard=hard(cosines, least_gap) if wish in ("hard", "all") else None,
        selection=selection(wish, cosines, target, stream, least_gap),
    )


def in_a_gap(cosines, nearest, least_gap):
    """[B] a cosine among the `nearest` largest that no class is close to: bfloat16 cannot err."""
    largest = cosines.topk(min(nearest, cosines.shape[1]), dim=1).values
    gap, place = (largest[:, :-1] - largest[:, 1:]).max(1)
    assert gap.min() > least_gap
    return (largest.gather(1, place[:, None])[:, 0] - gap / 2).float()


def hard(cosines, least_gap):
    """MV-Softmax with all three numbers of value and both of slope in use."""
    return HardNegatives(
        threshold=in_a_gap(cosines, 30, least_gap), value=(0.1, 0.9, 0.3), slope=(0.8, 0.4)
    )


def selection(wish, cosines, target, stream, least_gap):
    """Three baskets, some classes in two; half of the pairs with strangers named."""
    if wish not in ("limit", "dropped", "kept", "all"):
        return None
    batch, rows = cosines.shape
    class_members = 1 << (torch.arange(rows) * 3 // rows)
    class_members[::5] |= 4
    sample_members = torch.where(target >= 0, class_members[target.clamp_min(0)], 1 << 2)
    pairs = None
    if wish != "limit":
        named = torch.rand(rows, batch, generator=stream) < 0.5
        strange = (class_members[:, None] & sample_members) == 0
        pairs = Pairs(*torch.nonzero(named & strange, as_tuple=True))
    return Selection(
        class_members=class_members,
        sample_members=sample_members,
        limit=in_a_gap(cosines, 30, least_gap) if wish in ("limit", "all") else None,
        dropped=pairs if wish in ("dropped", "all") else None,
        kept=pairs if wish == "kept" else None,
    )


def relative(value, expected):
    """Error in norm; 0 where both are 0."""
    difference = (value.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-300))


@contextmanager
def triton_set_to(way=None, block=128):
    """The Triton sweep with blocks of `block` rows, and one way for every problem, for the time being."""
    from mpsoftmax.kernels import triton_sweep, triton_update

    chosen = triton_sweep.way_of if way is None else lambda _: way
    with (
        mock.patch.object(triton_sweep, "way_of", chosen),
        mock.patch.object(triton_sweep, "rows_in_block", return_value=block),
        mock.patch.object(triton_update, "rows_in_block", return_value=block),
    ):
        yield
