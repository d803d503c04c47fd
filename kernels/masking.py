"""From a block of cosine logits to the negatives' logits, where a problem is not plain.

One function serves the sweep, its recomputation and mining: the nearest of a class's rows speaks for it, some
classes are left out, hard negatives get another logit. All arrays are class-major, [n, B].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsoftmax.kernels.problem import Counts, Problem


@dataclass(frozen=True)
class Negatives:
    """One block's negatives."""

    logits: Tensor
    """[n, B] accumulate dtype; -inf where the class is no negative of the sample."""
    slope: Tensor | None
    """[n, B] derivative of the logit by s z; None where it is 1 throughout."""
    winner: Tensor | None
    """int64 [n, B]: which of the class's rows is the nearest; None with one row a class."""

    def spread(self, entries: Tensor, out: Tensor) -> Tensor:
        """E [n, B] -> E times slope on the winning rows, into `out` [n K, B]."""
        if self.slope is not None:
            entries = entries * self.slope
        if self.winner is None:
            return out.copy_(entries)
        num, batch = entries.shape
        by_class = out.zero_().view(num, out.shape[0] // max(1, num), batch)
        by_class.scatter_(1, self.winner[:, None], entries[:, None].to(out.dtype))
        return out


def negatives_of(
    cosine_logits: Tensor, problem: Problem, start: int, counts: Counts | None = None
) -> Negatives:
    """The negatives among classes start..start+n-1.

    Args:
        cosine_logits: [n K, B], s z of every row; left as it is.
        problem: Whose wishes apply.
        start: First class position of the block.
        counts: Where given, what is found is added to it in place.
    """
    logits, winner = nearest_rows(cosine_logits, problem)
    out = left_out(logits, problem, start, counts)
    slope = None
    if problem.hard is not None:
        hard, unit = problem.hard, problem.cosine_unit
        is_hard = (logits > hard.threshold.to(logits) * unit) & ~out
        z = logits / unit
        (v0, v1, v2), (d0, d1) = hard.value, hard.slope
        easy = logits if hard.easy == 1.0 else hard.easy * logits
        logits = torch.where(is_hard, unit * (v0 + z * (v1 + v2 * z)), easy)
        slope = torch.where(is_hard, d0 + d1 * z, hard.easy)
        if counts is not None:
            assert counts.hard_sum is not None
            assert counts.hard_count is not None
            counts.hard_sum.add_(torch.where(is_hard, z, 0.0).sum(0))
            counts.hard_count.add_(is_hard.sum(0))
    return Negatives(logits.masked_fill(out, -torch.inf), slope, winner)


def nearest_rows(cosine_logits: Tensor, problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Logit of each class's nearest row [n, B] in the accumulate dtype, and which row that is."""
    wide = cosine_logits.to(problem.accumulate_dtype)
    if problem.num_centres == 1:
        return wide, None
    num = wide.shape[0] // problem.num_centres
    return wide.view(num, problem.num_centres, wide.shape[1]).max(1)


def left_out(logits: Tensor, problem: Problem, start: int, counts: Counts | None = None) -> Tensor:
    """Bool [n, B]: classes that are no negatives of the sample; `logits` [n, B] of the nearest rows."""
    out = torch.zeros_like(logits, dtype=torch.bool)
    if problem.selection is not None:
        out = rejected(logits, problem, start)
    if problem.absent is not None:
        out |= problem.absent[start : start + out.shape[0], None]
    if problem.selection is not None and counts is not None:
        count_others(out, problem, start, counts)
    problem.own.fill(out, start, True)
    return out


def rejected(logits: Tensor, problem: Problem, start: int) -> Tensor:
    """Bool [n, B]: classes of other baskets that the selection leaves out."""
    selection = problem.selection
    assert selection is not None
    others = selection.others(start, start + logits.shape[0])
    if selection.kept is not None:
        selection.kept.fill(others, start, False)
        return others
    out = torch.zeros_like(others)
    if selection.limit is not None:
        out = others & (logits >= selection.limit.to(logits) * problem.cosine_unit)
    if selection.dropped is not None:
        dropped = torch.zeros_like(others)
        selection.dropped.fill(dropped, start, True)
        out |= dropped & others
    return out


def count_others(out: Tensor, problem: Problem, start: int, counts: Counts) -> None:
    """Add the block's rejected and mined classes of other baskets; absent classes are neither."""
    assert problem.selection is not None
    assert counts.rejected is not None
    assert counts.mined is not None
    others = problem.selection.others(start, start + out.shape[0])
    if problem.absent is not None:
        others &= ~problem.absent[start : start + out.shape[0], None]
    counts.rejected.add_((others & out).sum(0))
    counts.mined.add_((others & ~out).sum(0))


def strangers(logits: Tensor, problem: Problem, start: int) -> Tensor:
    """Cosine [n, B] of the classes of other baskets that may be negatives; -inf elsewhere."""
    assert problem.selection is not None
    out = left_out(logits, problem, start)
    out |= ~problem.selection.others(start, start + logits.shape[0])
    return (logits / problem.cosine_unit).masked_fill_(out, -torch.inf)
