"""One description of a head, trained twice: by the package on some ranks, and by the truth.

`train_all` runs on the ranks, `expected` in the test's process; neither sees the other's code. Features lie
partly along the first row of their class, so that target cosines, hard negatives and norms take all sides.
"""

import math
from dataclasses import dataclass, field, replace

import torch
import truth

import mpsoftmax as mp

CLASSES, DIM = 53, 12  # uneven over 2, 3 and 4 ranks
SIZES = (20, 1, 17, 15)  # four data sets, one of a single class
SGD = {"momentum": 0.9, "weight_decay": 5e-3}
ADAMW = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 2e-2}
TINY = 1e-5  # norm of a gradient that is zero but for rounding: samples that are their own centre
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
    "mvsoftmax am": ("mvsoftmax", {**MV, "kind": "am"}),
    "mvsoftmax arc": ("mvsoftmax", {**MV, "kind": "arc"}),
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


# -- the package -------------------------------------------------------------------------------


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
    candidates = {"uniform": mp.Uniform, "dsoftmax_k": mp.DSoftmaxK, "dsoftmax_b": mp.DSoftmaxB}
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


def train(case):
    """One rank's run of the head: start, (loss, gradient, candidates, chosen) of each backward, rows."""
    head = head_of(case)
    rank, world = head.comm.rank, head.comm.world
    everyone = torch.arange(case.classes)
    start = head.class_rows(everyone).double()
    refresh(case, head, start)
    log = []
    for step in range(case.steps):
        if step == 1 and case.merged:
            head.merge_classes(torch.tensor(case.merged))
        before = head.class_rows(everyone).double()
        for micro in range(case.micros):
            features, labels = batch(case, start, step, micro, world)
            mine = features[rank].to(case.plain_dtype).requires_grad_()
            loss = head(mine, labels[rank])
            (loss * (micro + 1.0)).backward()
            ids = head.candidate_ids()
            log.append((loss.item(), mine.grad.double(), ids, head.last_chosen, before))
        head.step()
        if step == 0:
            with torch.no_grad():  # evaluation leaves no trace
                head(features[rank].to(case.plain_dtype) * 2, labels[rank])
    return start, log, head.class_rows(everyone).double()


def survey(case, start, world):
    """A pass over the data: features and labels of every rank; the last three classes have no samples."""
    parts = [batch(case, start, 10, 0, world)]
    everyone = torch.arange(case.classes - 3)
    stream = torch.Generator().manual_seed(5)
    x = torch.randn(len(everyone), DIM, generator=stream, dtype=torch.float64) * 9
    parts.append(([x[r::world] for r in range(world)], [everyone[r::world] for r in range(world)]))
    return parts


def refresh(case, head, start):
    """The pass over the data that sets exact centres, where the case has them."""
    if case.weights[:2] != ("class_centres", "exact"):
        return
    means = head.class_means()
    for features, labels in survey(case, start, head.comm.world):
        means.add(features[head.comm.rank].to(case.plain_dtype), labels[head.comm.rank])
    head.set_centres(means)


def train_all(cases):
    """`train` for several cases; a refusal is an answer too."""
    return [train(case) for case in cases]


# -- the truth ---------------------------------------------------------------------------------


@dataclass
class Expected:
    """What the truth says of a run."""

    loss: list
    features: list
    rows: torch.Tensor
    gap: float
    outcomes: list


def expected(case, results, world, dtype=None):
    """The run of `case` by the truth, in `dtype` (default: the case's)."""
    dtype = case.dtype if dtype is None else dtype
    case = replace(case, dtype=dtype)
    start = results[0][0]
    rows = start.to(case.plain_dtype, copy=True)
    mover = Mover(case, rows, start, world)
    out = Expected([], [], rows, torch.inf, [])
    state, merged = truth.start_state(case.method.objective), ()
    for step in range(case.steps):
        if step == 1 and case.merged:
            merged = case.merged
            # Their row: the mean direction. Told by the run, checked in tests of merging.
            kept = torch.tensor(merged)[:, 0]
            rows[kept] = results[0][1][step * case.micros][4][kept].to(rows.dtype)
            mover.forget(kept)
        mover.open()
        for micro in range(case.micros):
            logs = [log[step * case.micros + micro] for _, log, _ in results]
            features, labels = (torch.cat(x) for x in batch(case, start, step, micro, world))
            leaf = features.to(case.plain_dtype).requires_grad_()
            candidates = torch.ones(case.classes, dtype=torch.bool)
            if case.candidates[0] in (
                "uniform",
                "dsoftmax_k",
            ):  # what was drawn is not to be guessed
                candidates[:] = False
                candidates[torch.cat([ids for _, _, ids, _, _ in logs])] = True
            seen = mover.rows_of(leaf, labels)
            outcome = truth.loss(
                case.method, leaf, seen, labels, candidates & mover.usable, step=step, state=state,
                chosen=logs[0][3], merged=merged, bf16=dtype == torch.bfloat16,
            )  # fmt: skip
            gradients = torch.autograd.grad(
                outcome.loss * (micro + 1.0),
                (leaf, seen),
                allow_unused=True,
                materialize_grads=True,
            )
            mover.add(gradients[1], candidates, leaf, labels, merged)
            state = outcome.state
            out.loss.append(outcome.loss.item())
            out.features.append(gradients[0].double() * world)
            out.gap = min(out.gap, outcome.gap)
            out.outcomes.append(outcome)
        mover.step()
    for kept, parked in merged:  # a merged class shows the row it shares
        rows[parked] = rows[kept]
    out.rows = rows.double()
    return out


class Mover:
    """Who moves the rows: an optimiser or the class centres' rule."""

    def __init__(self, case, rows, start, world):
        self.case, self.rows = case, rows
        self.usable = torch.ones(case.classes, dtype=torch.bool)
        self.centres = None
        if case.weights[0] == "class_centres":
            self.centres = truth.Centres(rows, *case.weights[1:])
            if case.weights[1] == "exact":
                parts = survey(case, start, world)
                features = torch.cat([x for features, _ in parts for x in features])
                labels = torch.cat([y for _, labels in parts for y in labels])
                self.centres.refresh(features.to(rows.dtype), labels)
        else:
            _, lr, p = OPTIMISERS[case.optimiser]
            self.dense = truth.Dense(case.optimiser, rows, case.untouched, lr, **p)

    def open(self):
        """Before a step."""
        self.gradient = torch.zeros_like(self.rows)
        self.touched = torch.zeros(self.case.classes, dtype=torch.bool)
        self.samples = []
        if self.centres is not None:
            self.usable = self.centres.seen.clone()

    def rows_of(self, features, labels):
        """Rows as this batch sees them, a leaf."""
        rows = self.rows if self.centres is None else self.centres.of_batch(features, labels)
        return rows.clone().requires_grad_()

    def add(self, gradient, candidates, features, labels, merged):
        """One backward."""
        for kept, parked in merged:
            labels = torch.where(labels == parked, kept, labels)
        self.gradient += gradient
        self.touched |= candidates
        self.touched[labels[labels >= 0]] = True
        self.samples.append((features.detach(), labels))

    def step(self):
        """Move."""
        if self.centres is None:
            self.dense.step(self.rows, self.gradient, self.touched)
        else:
            self.centres.step(*(torch.cat(x) for x in zip(*self.samples, strict=True)))

    def forget(self, classes):
        """Rows of these classes were set: optimiser rows start afresh, centres count as seen."""
        if self.centres is not None:
            self.centres.seen[classes] = True
        else:
            self.dense.m[classes] = self.dense.v[classes] = 0
            if not self.dense.lazy:  # a lazy row's age is the step it is current to
                self.dense.age[classes] = 0


def relative(a, b, floor=1e-300):
    """Error of vectors or numbers; NaN counts as infinitely wrong."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    error = float((a - b).norm() / b.norm().clamp_min(floor))
    return math.inf if math.isnan(error) else error


def compare(results, wanted):
    """Worst relative error of each quantity over all ranks and steps."""
    worst = {"loss": 0.0, "features": 0.0, "rows": 0.0}
    for start, log, rows in results:
        worst["rows"] = max(worst["rows"], relative(rows - start, wanted.rows - start, floor=TINY))
        for (loss, *_), value in zip(log, wanted.loss, strict=True):
            worst["loss"] = max(worst["loss"], relative(loss, value))
    for k, by_feature in enumerate(wanted.features):
        mine = torch.cat([log[k][1] for _, log, _ in results])
        worst["features"] = max(worst["features"], relative(mine, by_feature, floor=TINY))
    return worst


def assert_exact(case, results, world):
    """The case's run on all ranks equals the truth to 1e-10."""
    wanted = expected(case, results, world)
    assert wanted.gap > 1e-6, (
        f"a cosine {wanted.gap} from a threshold: take another seed for {case}"
    )
    worst = compare(results, wanted)
    assert max(worst.values()) < 1e-10, (worst, case)
    return wanted


def check_all(ranks, world, cases):
    """Every case of a list, in one job."""
    by_rank = ranks.run(train_all, world, cases=cases)
    for k, case in enumerate(cases):
        assert_exact(case, [results[k] for results in by_rank], world)
