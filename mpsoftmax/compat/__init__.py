"""Names that training loops of insightface's arcface_torch import, on our head.

    from mpsoftmax.compat import CombinedMarginLoss, PartialFC_V2

in place of `from losses import CombinedMarginLoss` and `from partial_fc_v2 import PartialFC_V2`; the loop of
train_v2.py stays as it is. docs/migration.md says what differs.
"""

from mpsoftmax.compat.margins import ArcFace, CombinedMarginLoss, CosFace
from mpsoftmax.compat.partial_fc import PartialFC, PartialFC_V2

__all__ = ["ArcFace", "CombinedMarginLoss", "CosFace", "PartialFC", "PartialFC_V2"]
