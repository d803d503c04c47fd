"""One description of a head, for the package and for the truth, and the batches both are trained on.

Features lie partly along the first row of their class, so that target cosines, hard negatives and norms take
all sides.
"""

from dataclasses import dataclass, field

import torch
import truth

import mpsoftmax as mp

CLASSES, DIM = 53, 12  # uneven over 2, 3 and 4 ranks
SIZES = (20, 1, 17, 15)  # four data sets, one of a single class
SGD = {"momentum": 0.9, "weight_decay": 5e-3}
ADAMW = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 2e-2}
OPTIMISERS = {"sgd": (mp.RowSGD, 0.3, SGD), "adamw": (mp.RowAdamW, 0.02, ADAMW)}
KINDS = {
    "normface": mp.NormFace,
    "cosface": mp.CosFace,
    "arcface": mp.ArcFace,
    "combined": mp.CombinedMargin,
    "sphereface": mp.SphereFace,
    "dsoftmax": mp.DSoftmax,
    "mvsoftmax": mp.MVSoftmax,
    "curricularface": mp.CurricularFace,
    "npcface": mp.NPCFace,
    "adaface": mp.AdaFace,
    "magface": mp.MagFace,
    "circle": mp.CircleLoss,
    "adacos": mp.AdaCos,
}
ARC = {"scale": 64.0, "margin": 0.5}
MV = {"scale": 32.0, "margin": 0.35, "hard_scale": 1.12}
OBJECTIVES = {
    "normface": ("normface", {"scale": 16.0}),
    "cosface": ("cosface", {"scale": 64.0, "margin": 0.35}),
    "arcface": ("arcface", ARC),
    "arcface straight through": ("arcface", {**ARC, "variant": "straight_through"}),
    "arcface fallback": ("arcface", {**ARC, "variant": "fallback"}),
    "arcface easy": ("arcface", {**ARC, "variant": "easy"}),
    "combined": ("combined", {"scale": 32.0, "m1": 1.0, "m2": 0.3, "m3": 0.2}),
    "combined m1": ("combined", {"scale": 32.0, "m1": 1.5, "m2": 0.2, "m3": 0.1}),
    "sphereface": ("sphereface", {"margin": 4, "lam": 5.0}),
    "sphereface annealed": (
        "sphereface",
        {"margin": 3, "lam": 2.0, "lam_start": 9.0, "lam_decay": 1.5},
    ),
    "dsoftmax": ("dsoftmax", {"scale": 30.0, "end_point": 0.9, "margin": 0.0}),
    "dsoftmax margin": ("dsoftmax", {"scale": 30.0, "end_point": 0.7, "margin": 0.15}),
    "mvsoftmax am": ("mvsoftmax", {**MV, "variant": "am"}),
    "mvsoftmax arc": ("mvsoftmax", {**MV, "variant": "arc"}),
    "curricularface": ("curricularface", {"scale": 64.0, "margin": 0.5, "momentum": 0.3}),
    "npcface": (
        "npcface",
        {"scale": 64.0, "mask_margin": 0.5, "m0": 0.4, "m1": 0.2, "hard_scale": 1.1, "hard_shift": 0.2},
    ),
    "adaface": ("adaface", {"scale": 64.0, "margin": 0.4, "h": 0.333, "momentum": 0.4}),
    "magface": (
        "magface",
        {
            "scale": 64.0, "lower_norm": 10.0, "upper_norm": 110.0, "lower_margin": 0.45,
            "upper_margin": 0.8, "regulariser": 35.0,
        },
    ),
    "circle": ("circle", {"scale": 40.0, "relaxation": 0.25}),
    "adacos": ("adacos", {"scale": 9.0, "dynamic": True, "momentum": 0.3}),
    "adacos fixed": ("adacos", {"scale": 9.0, "dynamic": False, "momentum": 1.0}),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is trained, in plain words and numbers."""

    objective: str = "arcface"
    """Key of OBJECTIVES."""
    noise: float | None = None
    candidates: tuple = ("all",)
    """all | uniform, rate | dsoftmax_k, rate, batch_labels | dsoftmax_b, rate"""
    weights: tuple = ("learned",)
    """learned | sub_centres, K | class_centres, rule, alpha, features"""
    rule: tuple | None = None
    """Mining rule over SIZES, as truth.Method names it; None: one data set."""
    warmup: int = 0
    margins: tuple = ()
    merged: tuple = ()
    """Pairs (class, parked class), merged after the first step."""
    optimiser: str = "sgd"
    untouched: str = "frozen"
    kernel: str = "auto"
    steps: int = 2
    micros: int = 1
    dtype: torch.dtype = torch.float64
    classes: int = CLASSES
    p: dict = field(default_factory=dict)
    """Numbers of the formula that differ from those of OBJECTIVES."""
    more: dict = field(default_factory=dict)
    """Further arguments of the head."""

    @property
    def numbers(self):
        """Numbers of the formula."""
        return {**OBJECTIVES[self.objective][1], **self.p}

    @property
    def method(self):
        """For the truth."""
        return truth.Method(
            objective=OBJECTIVES[self.objective][0],
            p=self.numbers,
            noise=self.noise,
            baskets=SIZES if self.rule else (),
            rule=self.rule or ("all_distinct",),
            warmup=self.warmup,
            margins=self.margins,
        )

    @property
    def plain_dtype(self):
        """dtype of everything but the matrix products."""
        return torch.float32 if self.dtype == torch.bfloat16 else self.dtype


def rule_of(rule):
    """A mining rule of the package."""
    name, *numbers = rule
    if name == "hardest":
        return mp.Hardest(numbers[0], rule_of(numbers[1]))
    kinds = {
        "all_distinct": mp.AllDistinct,
        "own": mp.OwnBasket,
        "threshold": mp.Threshold,
        "target_relative": mp.TargetRelative,
        "top_one": mp.TopOne,
        "top_k": mp.TopK,
        "known": mp.Overlap,
    }
    return kinds[name](*numbers)


def axes_of(case):
    """The arguments of the head that say what is trained."""
    candidates = {
        "uniform": mp.Uniform,
        "uniform_blocks": mp.UniformBlocks,
        "dsoftmax_k": mp.DSoftmaxK,
        "dsoftmax_b": mp.DSoftmaxB,
    }
    weights = {"sub_centres": mp.SubCentres, "class_centres": mp.ClassCentres}
    out = {"objective": KINDS[OBJECTIVES[case.objective][0]](**case.numbers)}
    if case.candidates != ("all",):
        out["candidates"] = candidates[case.candidates[0]](*case.candidates[1:])
    if case.noise is not None:
        out["negatives"] = mp.NoiseFilter(case.noise)
    if case.weights[0] != "learned":
        out["weights"] = weights[case.weights[0]](*case.weights[1:])
    if case.rule:
        margins = list(case.margins) or None
        out["baskets"] = mp.Baskets(
            SIZES, rule=rule_of(case.rule), warmup=case.warmup, margins=margins
        )
    return out


def head_of(case):
    """The package's head."""
    optimizer = {}
    if case.weights[0] != "class_centres":
        kind, lr, p = OPTIMISERS[case.optimiser]
        optimizer = {"optimizer": kind(lr=lr, **p), "untouched": case.untouched}
    return mp.ModelParallelSoftmax(
        DIM,
        case.classes,
        **axes_of(case),
        **optimizer,
        kernel=case.kernel,
        compute_dtype=case.dtype,
        row_dtype=case.plain_dtype,
        init_std=0.5,
        **case.more,
    )


def batch(case, start, step, micro, world):
    """Features and labels of every rank: unequal sizes, one empty rank if possible, ignored labels."""
    stream = torch.Generator().manual_seed(1000 * step + micro)
    sizes = [(7, 0, 4, 5), (3, 6, 1, 0)][(step + micro) % 2][:world]
    low, high = (0.5, 6.0) if OBJECTIVES[case.objective][0] == "sphereface" else (4.0, 150.0)
    features, labels = [], []
    for size in sizes:
        own = torch.randint(0, case.classes, (size,), generator=stream)
        rows = (start if start.ndim == 2 else start[:, -1])[own].double()
        pull = torch.tensor([0.0, 0.4, 1.5], dtype=torch.float64)[torch.arange(size) % 3]
        x = torch.randn(size, DIM, generator=stream, dtype=torch.float64) / DIM**0.5
        x = torch.nn.functional.normalize(
            x + pull[:, None] * torch.nn.functional.normalize(rows, dim=1), dim=1
        )
        share = torch.rand(size, 1, generator=stream, dtype=torch.float64)
        features.append(x * low * (high / low) ** share)
        labels.append(own)
    if sizes[0]:
        labels[0][0] = -1
    return features, labels


def survey(case, start, world):
    """A pass over the data: features and labels of every rank; the last three classes have no samples."""
    parts = [batch(case, start, 10, 0, world)]
    everyone = torch.arange(case.classes - 3)
    stream = torch.Generator().manual_seed(5)
    x = torch.randn(len(everyone), DIM, generator=stream, dtype=torch.float64) * 9
    parts.append(([x[r::world] for r in range(world)], [everyone[r::world] for r in range(world)]))
    return parts
