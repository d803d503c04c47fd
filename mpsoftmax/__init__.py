"""mpsoftmax: model-parallel softmax training of embedding models with very many classes."""

from mpsoftmax.head.baskets import Baskets
from mpsoftmax.head.candidates import DSoftmaxB, DSoftmaxK, Uniform, UniformBlocks
from mpsoftmax.head.duplicates import likely_duplicates
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.linking import IdentityLinker
from mpsoftmax.head.mining import (
    AllDistinct,
    Hardest,
    Overlap,
    OwnBasket,
    TargetRelative,
    Threshold,
    TopK,
    TopOne,
)
from mpsoftmax.head.negatives import NoiseFilter
from mpsoftmax.head.objectives import (
    AdaCos,
    AdaFace,
    ArcFace,
    CircleLoss,
    CombinedMargin,
    CosFace,
    CurricularFace,
    DSoftmax,
    MagFace,
    MVSoftmax,
    NormFace,
    NPCFace,
    Objective,
    SphereFace,
)
from mpsoftmax.head.row_optim import RowAdamW, RowSGD
from mpsoftmax.head.weights import ClassCentres, SubCentres

__version__ = "0.1.0"

__all__ = [
    "AdaCos",
    "AdaFace",
    "AllDistinct",
    "ArcFace",
    "Baskets",
    "CircleLoss",
    "ClassCentres",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "DSoftmax",
    "DSoftmaxB",
    "DSoftmaxK",
    "Hardest",
    "IdentityLinker",
    "MVSoftmax",
    "MagFace",
    "ModelParallelSoftmax",
    "NPCFace",
    "NoiseFilter",
    "NormFace",
    "Objective",
    "Overlap",
    "OwnBasket",
    "RowAdamW",
    "RowSGD",
    "SphereFace",
    "SubCentres",
    "TargetRelative",
    "Threshold",
    "TopK",
    "TopOne",
    "Uniform",
    "UniformBlocks",
    "likely_duplicates",
]
