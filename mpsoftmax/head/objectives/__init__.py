"""The objectives, by idea: margins, hard negatives, feature norm, dissected. A loss is added here."""

from mpsoftmax.head.objectives.adaptive_scale import AdaCos
from mpsoftmax.head.objectives.base import Context, Objective, ScaledObjective, SeparableObjective
from mpsoftmax.head.objectives.dissected import DSoftmax
from mpsoftmax.head.objectives.feature_norm import AdaFace, MagFace
from mpsoftmax.head.objectives.hard_negatives import CircleLoss, CurricularFace, MVSoftmax, NPCFace
from mpsoftmax.head.objectives.margins import (
    ArcFace,
    CombinedMargin,
    CosFace,
    NormFace,
    SphereFace,
)

OBJECTIVES: dict[str, type[Objective]] = {
    "normface": NormFace,
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": CombinedMargin,
    "sphereface": SphereFace,
    "dsoftmax": DSoftmax,
    "mvsoftmax": MVSoftmax,
    "curricularface": CurricularFace,
    "npcface": NPCFace,
    "adaface": AdaFace,
    "magface": MagFace,
    "circle": CircleLoss,
    "adacos": AdaCos,
}

__all__ = [
    "OBJECTIVES",
    "AdaCos",
    "AdaFace",
    "ArcFace",
    "CircleLoss",
    "CombinedMargin",
    "Context",
    "CosFace",
    "CurricularFace",
    "DSoftmax",
    "MVSoftmax",
    "MagFace",
    "NPCFace",
    "NormFace",
    "Objective",
    "ScaledObjective",
    "SeparableObjective",
    "SphereFace",
    "objective_named",
]


def objective_named(name: str) -> Objective:
    """The objective of that name with its default margins.

    Raises:
        ValueError: the name is not known.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective: {name!r} is not known; allowed: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]()
