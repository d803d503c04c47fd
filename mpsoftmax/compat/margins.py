"""The margin losses of arcface_torch, as descriptions that the head understands."""

from dataclasses import dataclass, field

from mpsoftmax.head.negatives import AllNegatives, Negatives, NoiseFilter
from mpsoftmax.head.objectives import Objective
from mpsoftmax.head.objectives import margins as ours


@dataclass(frozen=True)
class MarginLoss:
    """What PartialFC_V2 is told about the loss.

    Attributes:
        objective: Of the head.
        negatives: Of the head.
    """

    objective: Objective
    negatives: Negatives = field(default_factory=AllNegatives)


def CombinedMarginLoss(
    s: float,
    m1: float,
    m2: float,
    m3: float,
    interclass_filtering_threshold: float = 0,
    *,
    variant: str = "exact",
) -> MarginLoss:
    """CombinedMarginLoss of arcface_torch's losses.py: ArcFace of (1, m2, 0), CosFace of (1, 0, m3).

    Args:
        s: Scale.
        m1: 1: there is nothing else that losses.py computes.
        m2: Angular margin in radians.
        m3: Cosine margin.
        interclass_filtering_threshold: Negatives of a higher cosine do not count; 0: all do.
        variant: Of ArcFace: "exact", or "straight_through" for the gradient that losses.py has.

    Raises:
        ValueError: margins that losses.py refuses, or of which it would drop one without a word.
    """
    if m1 == 1 and m3 == 0:
        objective: Objective = ours.ArcFace(scale=s, margin=m2, variant=variant)
    elif m1 == 1 and m2 == 0 and m3 > 0:
        objective = ours.CosFace(scale=s, margin=m3)
    else:
        raise ValueError(
            f"CombinedMarginLoss: margins {(m1, m2, m3)}; allowed: (1, m2, 0) or (1, 0, m3): losses.py "
            "computes no other, and of m2 and m3 m3 alone. All three as published: give PartialFC_V2 "
            "mpsoftmax.CombinedMargin(scale, m1, m2, m3)"
        )
    threshold = interclass_filtering_threshold
    return MarginLoss(objective, NoiseFilter(threshold) if threshold > 0 else AllNegatives())


def ArcFace(s: float = 64.0, margin: float = 0.5, *, variant: str = "exact") -> MarginLoss:
    """ArcFace of arcface_torch's losses.py; `variant` as for CombinedMarginLoss."""
    return MarginLoss(ours.ArcFace(scale=s, margin=margin, variant=variant))


def CosFace(s: float = 64.0, m: float = 0.40) -> MarginLoss:
    """CosFace of arcface_torch's losses.py."""
    return MarginLoss(ours.CosFace(scale=s, margin=m))
