"""A case trained twice: by the package on some ranks, and by the truth.

`train_all` runs on the ranks, `expected` in the test's process; neither sees the other's code.
"""

import math
from dataclasses import dataclass, replace

import torch
import truth
from head_cases import OPTIMISERS, batch, head_of, survey

TINY = 1e-5  # norm of a gradient that is zero but for rounding: samples that are their own centre

# -- the package -------------------------------------------------------------------------------


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
                "uniform_blocks",
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
