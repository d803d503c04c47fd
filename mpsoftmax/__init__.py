"""mpsoftmax: model-parallel softmax training of embedding models with very many classes."""

from mpsoftmax.head.candidates import Uniform
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.objectives import (
    ArcFace,
    CombinedMargin,
    CosFace,
    NormFace,
    Objective,
    SphereFace,
)
from mpsoftmax.head.row_optim import RowAdamW, RowSGD

__version__ = "0.1.0"

__all__ = [
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "ModelParallelSoftmax",
    "NormFace",
    "Objective",
    "RowAdamW",
    "RowSGD",
    "SphereFace",
    "Uniform",
]
