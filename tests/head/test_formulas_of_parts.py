"""Hand-worked values of filter, mining rules, samplers and class weights, and of ten million classes."""

import math

import pytest
import torch
from by_hand import NO_MOVE, along, check, close, head_of, row, watched

import mpsoftmax as mp


# CosFace 16, 0.35. A negative above 0.4 has logit 0 and no gradient, yet adds e^0; the target never does.
@pytest.mark.parametrize(
    ("t", "negatives", "filtered", "loss", "tangent"),
    [
        (0.6, (0.28, 0.8, -0.6), 1, 0.96865214262142382195, 1.4814467080616063179),
        (0.6, (0.8, 0.6, 0.5), 3, 0.053490449705933508271, -0.66668807900780026648),
        (0.6, (0.28, -0.6), 0, 0.96167534857751155978, 1.5814338095220194555),
        (0.8, (0.28, -0.6), 0, 0.063795875124006340116, 0.3559881005987687757),
    ],
)
def test_noise_filter(t, negatives, filtered, loss, tangent):
    noise = mp.NoiseFilter(0.4)
    head = check(mp.CosFace(16.0, 0.35), t, negatives, loss, tangent, negatives=noise)
    watched(head, "filtered_negatives", filtered)


# Classes 0-2, 3-5 and 6-7; the sample's own basket has z = 0.28, -0.6, the others 0.8, 0.2, 0 and 0.5, -0.28.
BASKETS = (0.6, 0.28, -0.6, 0.8, 0.2, 0.0, 0.5, -0.28)
EVERYONE = (8.808657016638574667, -3.162977866694703306)
OWN = (0.96167534857751155978, 1.5814338095220194555)
WITHOUT_08_05 = (1.1262040521835934444, 1.7798380167504433051)
WITHOUT_08 = (4.0549465162103194472, 1.0950841709954993101)
WITHOUT_02 = (0.96873093521629931168, 1.5927631256515671531)  # nor 0.8 nor 0.5
RULES = {
    "all_distinct": (mp.AllDistinct(), EVERYONE, 0),
    "own": (mp.OwnBasket(), OWN, 5),
    "R1 below 0.45": (mp.Threshold(0.45), WITHOUT_08_05, 2),
    "R1 below 0.1": (mp.Threshold(0.1), WITHOUT_02, 3),
    "R2 below 0.4": (mp.TargetRelative(0.2), WITHOUT_08_05, 2),
    "R2 below 0.15": (mp.TargetRelative(0.45), WITHOUT_02, 3),
    "R2 below half of 0.6": (mp.TargetRelative(0.0, kappa=0.5), WITHOUT_08_05, 2),
    "R2 below a sixth of 0.6": (mp.TargetRelative(0.0, kappa=1 / 6), WITHOUT_02, 3),
    "R3 the nearest if above 0.6": (mp.TopOne(0.6), WITHOUT_08, 1),
    "R3 the nearest if above 0.3": (mp.TopOne(0.3), WITHOUT_08_05, 2),
    "R4 the nearest": (mp.TopK(1), WITHOUT_08_05, 2),
    # leaves 0 of the second basket, nothing of the third
    "R4 the two nearest": (mp.TopK(2), (0.96865214262142382195, 1.5926869115458638347), 4),
    "R5 0.5": (mp.Hardest(1, mp.TopOne(0.6)), (4.0468025680913152874, 1.0804129247330243577), 4),
    "R5 0.5, 0.2": (
        mp.Hardest(2, mp.TopOne(0.6)), (4.0546253385922404059, 1.0944103144532652281), 3,
    ),
    "R5 0.8, 0.5": (
        mp.Hardest(2, mp.AllDistinct()), (8.8085871012612904905, -3.1634010252216847202), 3,
    ),
    "known 0 = 3": (mp.Overlap([(3, 0)]), WITHOUT_08, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_baskets(name):
    """CosFace 16, 0.35 over the negatives that the rule leaves."""
    rule, expected, rejected = RULES[name]
    baskets = mp.Baskets([3, 3, 2], rule=rule)
    head = check(mp.CosFace(16.0, 0.35), BASKETS[0], BASKETS[1:], *expected, baskets=baskets)
    if name != "all_distinct":  # nothing is looked at
        watched(head, "rejected_share", rejected / 5)


def test_warm_up_and_margins():
    """Own basket alone in step 0; the second basket's margin is 0.1."""
    everyone = mp.Threshold(0.9)
    baskets = mp.Baskets([3, 3, 2], rule=everyone, warmup=1, margins=[None, 0.1, None])
    head = head_of(mp.CosFace(16.0, 0.35), [row(z) for z in BASKETS], baskets=baskets)
    label = torch.tensor([0])
    loss = head(along(1.0), label)
    loss.backward()
    close(loss, OWN[0])
    head.step()
    close(head(along(1.0), label), EVERYONE[0])
    # 16 (0.6 - 0.1) against l = log(e^4.48 + e^-9.6)
    swapped = [row(z) for z in (0.8, 0.2, 0.0, 0.6, 0.28, -0.6, 0.5, -0.28)]
    head = head_of(mp.CosFace(16.0, 0.35), swapped, baskets=baskets)
    close(head(along(1.0), torch.tensor([3])), 0.029169850773176523802)


def test_no_negatives_at_all():
    """One class, a basket of one class: log(1 + 0 e^-phi) = 0 and no gradient, whatever the objective."""
    for objective in (mp.ArcFace(), mp.CurricularFace(), mp.NPCFace(), mp.MVSoftmax()):
        check(objective, 0.6, (), 0.0, 0.0)
        baskets = mp.Baskets([1, 2], rule="own")
        check(objective, 0.6, (0.28, -0.6), 0.0, 0.0, baskets=baskets)
    check(mp.SphereFace(), 0.6, (), 0.0, 0.0, 0.0, a=7.0)
    # MagFace keeps its regulariser: 35 (60 / 110^2 + 1 / 60), slope 35 (110^-2 - 60^-2)
    check(mp.MagFace(), 0.6, (), 0.75688705234159779614, 0.0, -0.0068296602387511478421, a=60.0)


def test_sub_centres():
    """The nearest row speaks: t = max(0.28, 0.6), negatives max(0.28, 0.8) and max(-0.6, 0)."""
    head = mp.ModelParallelSoftmax(
        2, 3, objective=mp.CosFace(16.0, 0.35), weights=mp.SubCentres(2), compute_dtype=torch.float64,
        row_dtype=torch.float64, optimizer=mp.RowSGD(lr=1.0, momentum=0.0, weight_decay=0.0),
    )  # fmt: skip
    rows = [[0.28, 0.6], [0.28, 0.8], [0.0, -0.6]]
    rows = torch.tensor([[row(z) for z in pair] for pair in rows], dtype=torch.float64)
    head.load_rows(torch.arange(3), rows)
    features = along(1.0)
    loss = head(features, torch.tensor([0]))
    loss.backward()
    close(loss, 8.800153482068692196)
    close(features.grad, [[0.0, -3.1995000619526479202]])
    head.step()
    moved = (head.class_rows(torch.arange(3)) - rows).abs().sum(2) > 0
    assert moved.tolist() == [[False, True], [False, True], [True, False]]


def test_dsoftmax_b_counts_the_inter_part_of_the_drawn():
    """t = 0.6 and 0.8 (classes 0 and 1), one of two samples drawn: mean of sp(30 (0.9 - t)) + its sp(l)."""
    rows = [row(z) for z in (0.6, 0.8, 0.28)]
    head = head_of(mp.DSoftmax(30.0, 0.9), rows, candidates=mp.DSoftmaxB(0.5))
    loss = head(along(1.0, 1.0), torch.tensor([0, 1]))
    (chosen,) = head.last_chosen.tolist()
    other = math.log(math.exp(24.0) + math.exp(8.4)) if chosen == 0 else math.log(
        math.exp(18.0) + math.exp(8.4)
    )  # fmt: skip
    close(loss, (9.0001234021897232588 + 3.0485873515737420588) / 2 + math.log1p(math.exp(other)))


@pytest.mark.parametrize(
    ("rule", "kind", "expected"),
    [
        # mean of (0.6, 0.8) and (0, 1) is (0.3, 0.9); half of (1, 0) and half of it
        ("ema", "normalised", [0.65, 0.45]),
        # (1, 0) - 0.5 ((0.4, -0.8) + (1, -1)) / 3
        ("center_loss", "normalised", [1 - 0.7 / 3, 0.3]),
        # mean of (3, 4) and (0, 2) is (1.5, 3)
        ("ema", "raw", [1.25, 1.5]),
        # (1, 0) - 0.5 ((-2, -4) + (1, -2)) / 3
        ("center_loss", "raw", [1 + 0.5 / 3, 1.0]),
        ("exact", "normalised", [1.0, 0.0]),
    ],
)
def test_class_centres(rule, kind, expected):
    """Class 0's first batch is (1, 0): that becomes its centre; then (3, 4) and (0, 2) arrive."""
    centres = mp.ClassCentres(rule=rule, alpha=0.5, features=kind)
    head = mp.ModelParallelSoftmax(
        2, 3, objective=mp.NormFace(16.0), weights=centres, compute_dtype=torch.float64,
        row_dtype=torch.float64,
    )  # fmt: skip
    for points in ([[1.0, 0.0]], [[3.0, 4.0], [0.0, 2.0]]):
        features = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        loss = head(features, torch.zeros(len(points), dtype=torch.int64))
        close(loss, 0.0)  # nobody else was ever seen: no negatives
        loss.backward()
        head.step()
    close(head.class_rows(torch.tensor([0])), [expected])


# Row 0 is -e1, the others e1; a sample (z, sqrt(1 - z^2)) of class 0 has t = -z and 9,999,999 negatives at z:
# l = 64 z + log(1e7 - 1), loss = log(1 + e^{l + 64 z}), gradient 2 q 64 sqrt(1 - z^2) across.
TEN_MILLION = {
    1.0: (144.11809555095831479, 0.0),
    -0.14: (0.15270768305276460484, 17.948756166018213505),
    -0.5: (1.6038107301675487981e-21, 1.777844269039573535e-19),
    -1.0: (2.5722091154214775626e-49, 0.0),
}


@pytest.mark.parametrize(
    ("dtype", "rtol", "rtol_gradient", "cosines"),
    # float32: one sample's product with 1e7 equal rows accumulates rounding errors, 2 % here; autograd
    # of the plain formula is 12 % off
    [(torch.float32, 1e-4, 5e-2, TEN_MILLION), (torch.float64, 1e-8, 1e-8, [-0.14])],
    ids=["float32", "float64"],
)
def test_ten_million_classes(dtype, rtol, rtol_gradient, cosines):
    """Scale 64: neither overflow at one end nor loss of digits at the other."""
    num_classes = 10_000_000
    head = mp.ModelParallelSoftmax(
        2, num_classes, objective=mp.NormFace(64.0), optimizer=NO_MOVE, e_budget_bytes=0,
        compute_dtype=dtype,
    )  # fmt: skip
    rows = torch.tensor([[1.0, 0.0]]).repeat(num_classes, 1)
    rows[0, 0] = -1.0
    head.load_rows(torch.arange(num_classes), rows)
    del rows
    for z in cosines:
        expected, across = TEN_MILLION[z]
        features = torch.tensor([[z, math.sqrt(1 - z * z)]], dtype=dtype, requires_grad=True)
        loss = head(features, torch.tensor([0]))
        loss.backward()
        close(loss, expected, rtol=rtol, atol=1e-44)
        gradient = features.grad.norm().item()
        assert abs(gradient - across) <= rtol_gradient * across + 1e-44
        head.zero_grad()
