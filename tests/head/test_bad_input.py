"""Bad input: one clear error on all ranks, and a head that still works afterwards."""

import math

import pytest
import torch

import mpsoftmax as mp


def attempt(culprit, kind):
    """What this rank is told when rank `culprit` misbehaves, then a good step."""
    head = mp.ModelParallelSoftmax(8, 20, batch_capacity=4, seed=1)
    features, labels = torch.randn(3, 8), torch.tensor([1, 2, 3])
    if head.comm.rank == culprit:
        features, labels = {
            "large": (features, torch.tensor([1, 20, 3])),
            "negative": (features, torch.tensor([1, 2, -2])),
            "columns": (torch.randn(3, 7), labels),
            "integers": (torch.ones(3, 8, dtype=torch.int64), labels),
            "flat": (torch.randn(8), labels),
            "floats": (features, labels.float()),
            "fewer": (features, labels[:2]),
            "capacity": (torch.randn(5, 8), torch.zeros(5, dtype=torch.int64)),
        }[kind]
    try:
        head(features.requires_grad_() if features.is_floating_point() else features, labels)
        message = None
    except ValueError as error:
        message = str(error)
    before = head.class_rows(torch.arange(20))
    head.step()
    unmoved = torch.equal(before, head.class_rows(torch.arange(20)))
    features = torch.randn(3, 8, requires_grad=True)
    loss = head(features, torch.tensor([1, -1, 3]))
    loss.backward()
    head.step()
    moved = not torch.equal(before, head.class_rows(torch.arange(20)))
    return message, unmoved, moved, loss.item()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("large", ("labels: 20 on rank 1 at position 1", "0 <= label < 20", "-1 to ignore")),
        ("negative", ("labels: -2 on rank 1 at position 2",)),
        ("columns", ("features: rank 1", "7", "[batch, 8]")),
        ("integers", ("features: rank 1", "floating point")),
        ("flat", ("features: rank 1",)),
        ("floats", ("labels: rank 1", "integer")),
        ("fewer", ("labels: rank 1", "2 values")),
        ("capacity", ("rank 1 brought 5 samples", "batch_capacity=4")),
    ],
)
@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_raises_and_recovers(ranks, world, kind, parts):
    for message, unmoved, moved, loss in ranks.run(attempt, world, culprit=1, kind=kind):
        assert message is not None
        assert all(part in message for part in parts), message
        assert unmoved
        assert moved
        assert loss > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "arcfase"}, "objective: 'arcfase'.*normface, cosface"),
        (
            {"candidates": "some"},
            "candidates: 'some'; allowed: all, uniform, uniform_blocks, dsoftmax_k",
        ),
        ({"negatives": "filter"}, "negatives: 'filter'; allowed: all, noise_filter"),
        (
            {"weights": "centres"},
            "weights: 'centres'; allowed: learned, sub_centres, class_centres",
        ),
        ({"objective": 64.0}, r"objective: 64\.0"),
        ({"negatives": 0.4}, r"negatives: 0\.4"),
        ({"weights": 3}, "weights: 3"),
        ({"baskets": [10, 10]}, r"baskets: \[10, 10\]; allowed: None, or Baskets"),
        ({"kernel": "fast"}, "kernel: 'fast'.*auto, blocked, native, reference"),
        ({"untouched": "eager"}, "untouched: 'eager'; allowed: frozen, lazy"),
        ({"compute_dtype": torch.float16}, "compute_dtype: torch.float16; allowed"),
        ({"row_dtype": torch.int8}, "row_dtype: torch.int8"),
        ({"num_classes": 0}, "num_classes: 0; allowed"),
        ({"embedding_dim": 2.5}, "embedding_dim: 2.5"),
        ({"batch_capacity": 0}, "batch_capacity: 0"),
        ({"e_budget_bytes": -1}, "e_budget_bytes: -1"),
        ({"init_std": 0.0}, "init_std: 0.0"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_constructor_names_field_value_and_choice(arguments, message):
    with pytest.raises(ValueError, match=message):
        mp.ModelParallelSoftmax(**{"embedding_dim": 8, "num_classes": 20, **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mp.ArcFace(0.0), r"ArcFace\.scale: 0\.0"),
        (lambda: mp.ArcFace(64.0, 2.0), r"ArcFace\.margin: 2\.0; allowed: 0 <= margin < pi/2"),
        (lambda: mp.CosFace(64.0, -0.1), r"CosFace\.margin: -0\.1"),
        (lambda: mp.CombinedMargin(64.0, 2.0, 0.5, 0.0), r"CombinedMargin\.m1: 2\.0"),
        (lambda: mp.SphereFace(1.5), r"SphereFace\.margin: 1\.5"),
        (lambda: mp.SphereFace(4, -1.0), r"SphereFace\.lam: -1\.0"),
        (lambda: mp.SphereFace(lam_start=-1.0), r"SphereFace\.lam_start: -1\.0"),
        (lambda: mp.SphereFace(lam_decay=-0.1), r"SphereFace\.lam_decay: -0\.1"),
        (lambda: mp.ArcFace(variant="fast"), r"ArcFace\.variant: 'fast'; allowed: exact, straight"),
        (lambda: mp.DSoftmax(math.inf), r"DSoftmax\.scale: inf"),
        (
            lambda: mp.DSoftmax(end_point=27.0),
            r"DSoftmax\.end_point: 27\.0; allowed: -1 <= end_point",
        ),
        (lambda: mp.DSoftmax(end_point=math.nan), r"DSoftmax\.end_point: nan"),
        (lambda: mp.DSoftmax(margin=-0.1), r"DSoftmax\.margin: -0\.1"),
        (lambda: mp.MVSoftmax(hard_scale=0.9), r"MVSoftmax\.hard_scale: 0\.9"),
        (lambda: mp.MVSoftmax(variant="cos"), r"MVSoftmax\.variant: 'cos'; allowed: am, arc"),
        (lambda: mp.MVSoftmax(margin=1.8, variant="arc"), r"MVSoftmax\.margin: 1\.8; .*radians"),
        (lambda: mp.CurricularFace(margin=-0.1), r"CurricularFace\.margin: -0\.1"),
        (lambda: mp.CurricularFace(momentum=0.0), r"CurricularFace\.momentum: 0\.0"),
        (lambda: mp.CurricularFace(momentum=1.5), r"CurricularFace\.momentum: 1\.5"),
        (
            lambda: mp.CircleLoss(relaxation=1.0),
            r"CircleLoss\.relaxation: 1\.0; allowed: 0 <= relaxation",
        ),
        (lambda: mp.AdaCos(momentum=0.0), r"AdaCos\.momentum: 0\.0; allowed: 0 < momentum <= 1"),
        (
            lambda: mp.AdaCos(scale=-1.0),
            r"AdaCos\.scale: -1\.0; allowed: None, or 1 <= scale",
        ),
        (lambda: mp.NPCFace(mask_margin=2.0), r"NPCFace\.mask_margin: 2\.0"),
        (lambda: mp.NPCFace(m0=-0.1), r"NPCFace\.m0: -0\.1"),
        (lambda: mp.NPCFace(m0=1.0, m1=1.0), r"NPCFace\.m1: 1\.0; .*m0 \+ m1"),
        (lambda: mp.NPCFace(hard_scale=0.5), r"NPCFace\.hard_scale: 0\.5"),
        (lambda: mp.NPCFace(hard_shift=-0.2), r"NPCFace\.hard_shift: -0\.2"),
        (lambda: mp.AdaFace(margin=2.0), r"AdaFace\.margin: 2\.0"),
        (lambda: mp.AdaFace(h=0.0), r"AdaFace\.h: 0\.0"),
        (lambda: mp.AdaFace(momentum=1.01), r"AdaFace\.momentum: 1\.01"),
        (lambda: mp.MagFace(lower_norm=0.0), r"MagFace\.lower_norm: 0\.0"),
        (lambda: mp.MagFace(upper_norm=5.0), r"MagFace\.upper_norm: 5\.0; .*above lower_norm"),
        (lambda: mp.MagFace(lower_margin=0.9), r"MagFace\.lower_margin: 0\.9"),
        (lambda: mp.MagFace(upper_margin=1.6), r"MagFace\.upper_margin: 1\.6"),
        (lambda: mp.MagFace(regulariser=-1.0), r"MagFace\.regulariser: -1\.0"),
        (lambda: mp.NoiseFilter(1.5), r"NoiseFilter\.threshold: 1\.5"),
        (lambda: mp.NoiseFilter(math.nan), r"NoiseFilter\.threshold: nan"),
        (lambda: mp.Uniform(1.5), r"Uniform\.rate: 1\.5"),
        (lambda: mp.DSoftmaxK(0.0), r"DSoftmaxK\.rate: 0\.0"),
        (lambda: mp.DSoftmaxK(0.5, "all"), r"DSoftmaxK\.batch_labels: 'all'; allowed: drawn, exc"),
        (lambda: mp.DSoftmaxB(1.5), r"DSoftmaxB\.rate: 1\.5"),
        (lambda: mp.SubCentres(0), r"SubCentres\.num: 0"),
        (lambda: mp.SubCentres(2.5), r"SubCentres\.num: 2\.5"),
        (
            lambda: mp.ClassCentres("mean"),
            r"ClassCentres\.rule: 'mean'; allowed: ema, center_loss, ex",
        ),
        (lambda: mp.ClassCentres(alpha=0.0), r"ClassCentres\.alpha: 0\.0"),
        (
            lambda: mp.ClassCentres(features="unit"),
            r"ClassCentres\.features: 'unit'; allowed: normal",
        ),
        (lambda: mp.ClassCentres(refresh_every=-1), r"ClassCentres\.refresh_every: -1"),
        (lambda: mp.ClassCentres(refresh_every=1.5), r"ClassCentres\.refresh_every: 1\.5"),
        (lambda: mp.Threshold(1.5), r"Threshold\.tau: 1\.5"),
        (lambda: mp.TargetRelative(-0.1), r"TargetRelative\.delta: -0\.1"),
        (
            lambda: mp.TargetRelative(kappa=0.0),
            r"TargetRelative\.kappa: 0\.0; allowed: 0 < kappa <= 1",
        ),
        (lambda: mp.TopOne(-1.5), r"TopOne\.tau: -1\.5"),
        (lambda: mp.TopK(0), r"TopK\.k: 0"),
        (lambda: mp.TopK(True), r"TopK\.k: True"),
        (lambda: mp.Hardest(0), r"Hardest\.num: 0"),
        (lambda: mp.Hardest(3, mp.OwnBasket()), r"Hardest\.after: OwnBasket"),
        (lambda: mp.Hardest(3, mp.Hardest(4)), r"Hardest\.after: Hardest"),
        (lambda: mp.Overlap([(3, 3)]), r"Overlap\.pairs"),
        (lambda: mp.Overlap([(3, -1)]), r"Overlap\.pairs"),
        (lambda: mp.Overlap([(1, 2, 3)]), r"Overlap\.pairs"),
        (lambda: mp.Baskets([]), r"baskets\.sizes: \[\]"),
        (lambda: mp.Baskets([3, 0]), r"baskets\.sizes: \[3, 0\]"),
        (lambda: mp.Baskets([2.5, 3]), r"baskets\.sizes: \[2\.5, 3\]"),
        (lambda: mp.Baskets([1] * 63), r"baskets\.sizes: .*1 to 62 data sets"),
        (lambda: mp.Baskets([3, 4], rule="nearest"), r"baskets\.rule: 'nearest'.*top_one"),
        (lambda: mp.Baskets([3, 4], rule=0.3), r"baskets\.rule: 0\.3"),
        (lambda: mp.Baskets([3, 4], warmup=-1), r"baskets\.warmup: -1"),
        (lambda: mp.Baskets([3, 4], margins=[0.1]), r"baskets\.margins: 1 of them; allowed: 2"),
        (lambda: mp.RowSGD(momentum=1.0), r"RowSGD\.momentum: 1\.0"),
        (lambda: mp.RowAdamW(betas=(0.9, -0.1)), r"RowAdamW\.betas\[1\]: -0\.1"),
    ],
)
def test_parts_refuse_what_has_no_meaning(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TWENTY = mp.Baskets([12, 8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"candidates": mp.DSoftmaxB(0.5)},
            "candidates: DSoftmaxB.* with objective ArcFace; .*cannot be sampled apart",
        ),
        (
            {"objective": "npcface", "negatives": "noise_filter"},
            "negatives: NoiseFilter.* with objective NPCFace; .*a filter gives them none",
        ),
        (
            {"weights": "class_centres", "optimizer": mp.RowSGD()},
            "optimizer: RowSGD.* with weights ClassCentres.*allowed: None: class centres follow",
        ),
        (
            {"weights": "class_centres", "untouched": "lazy"},
            "untouched: 'lazy' with weights ClassCentres.*allowed: 'frozen'",
        ),
        (
            {"baskets": mp.Baskets([12, 9])},
            "baskets.sizes: they sum to 21; allowed: num_classes=20",
        ),
        (
            {"baskets": mp.Baskets([12, 8], rule="top_k"), "candidates": "uniform"},
            "baskets.rule: TopK.* with candidates Uniform.*allowed with all classes only",
        ),
        (
            {"baskets": mp.Baskets([12, 8], rule=mp.Overlap([(0, 20)]))},
            r"baskets.rule.pairs: \(0, 20\); allowed: class ids below 20",
        ),
        (
            {"baskets": mp.Baskets([12, 8], margins=[0.1, None]), "objective": "normface"},
            r"baskets.margins: \[0.1, None\]; allowed only with an objective that has a margin",
        ),
        (
            {"baskets": mp.Baskets([12, 8], margins=[3.0, None])},
            r"ArcFace\.margin: 3\.0; allowed: 0 <= margin < pi/2",
        ),
    ],
)
def test_compositions_without_meaning_say_why(arguments, message):
    """All of them, drawn at random: test_compositions.py."""
    with pytest.raises(ValueError, match=message):
        mp.ModelParallelSoftmax(**{"embedding_dim": 8, "num_classes": 20, **arguments})


@pytest.mark.parametrize(
    ("arguments", "act", "error", "message"),
    [
        (
            {},
            lambda h: h.set_centres(h.class_means()),
            ValueError,
            "allowed for set_centres: ClassCen",
        ),
        ({}, lambda h: h.merge_classes([(0, 20)]), ValueError, "ids: 20; allowed: 0 <= id < 20"),
        ({}, lambda h: h.merge_classes([(3, 3)]), ValueError, "class 3 with itself"),
        ({}, lambda h: h.split_classes([4]), ValueError, "ids: 4 is not merged"),
        (
            {"weights": mp.SubCentres(2)},
            lambda h: h.load_rows(torch.tensor([0]), torch.ones(1, 8)),
            ValueError,
            r"rows: shape \(1, 8\); allowed: \(1, 2, 8\)",
        ),
        (
            {},
            lambda h: (backward(h), h.merge_classes([(0, 1)])),
            RuntimeError,
            r"merge_classes\(\) between backward\(\) and step\(\)",
        ),
        (
            {"weights": "class_centres"},
            lambda h: (backward(h), h.set_centres(h.class_means())),
            RuntimeError,
            r"set_centres\(\) between backward\(\) and step\(\)",
        ),
    ],
)
def test_acts_without_meaning(arguments, act, error, message):
    head = mp.ModelParallelSoftmax(8, 20, **arguments)
    with pytest.raises(error, match=message):
        act(head)
    backward(head)
    head.step()
    assert head.merged.numel() == 0


def backward(head):
    features = torch.randn(3, 8, requires_grad=True)
    head(features, torch.tensor([0, 1, 2])).backward()


def disagree(arguments):
    """Ranks that were given different heads: the last rank has the second of two."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        mp.ModelParallelSoftmax(8, **{"num_classes": 20, **arguments[rank == world - 1]})
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "arguments",
    [
        ({}, {"num_classes": 21}),
        ({"objective": mp.CosFace(margin=0.1)}, {"objective": mp.CosFace(margin=0.2)}),
        ({"negatives": mp.NoiseFilter(0.4)}, {"negatives": mp.NoiseFilter(0.5)}),
        ({"weights": mp.SubCentres(2)}, {"weights": mp.SubCentres(3)}),
        ({"baskets": TWENTY}, {"baskets": mp.Baskets([8, 12])}),
        ({"baskets": TWENTY}, {"baskets": mp.Baskets([12, 8], rule=mp.TopOne(0.4))}),
        ({"baskets": TWENTY}, {"baskets": mp.Baskets([12, 8], margins=[0.1, None])}),
        ({"candidates": mp.DSoftmaxK(0.5)}, {"candidates": mp.DSoftmaxK(0.5, "included")}),
    ],
    ids=range(8),
)
def test_ranks_with_different_arguments_are_told_so(ranks, arguments):
    for message in ranks.run(disagree, 3, arguments=arguments):
        assert message is not None
        assert "ranks disagree" in message


def nothing_valid():
    """A step in which no rank has a valid sample."""
    head = mp.ModelParallelSoftmax(8, 20, optimizer=mp.RowSGD(momentum=0.0, weight_decay=0.0))
    before = head.class_rows(torch.arange(20))
    size = head.comm.rank
    features = torch.randn(size, 8, requires_grad=True)
    loss = head(features, torch.full((size,), -1))
    loss.backward()
    head.step()
    unmoved = torch.equal(before, head.class_rows(torch.arange(20)))
    return loss.item(), bool((features.grad == 0).all()), unmoved


def test_a_step_without_a_valid_sample(ranks):
    assert ranks.run(nothing_valid, 3) == [(0.0, True, True)] * 3
