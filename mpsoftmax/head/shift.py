"""The static shift that replaces the softmax's maximum where the logits are bounded.

Bounded cosines bound the logits, so a constant b keeps every exponent and the whole sum in range and no
maximum, nor its collective, is needed. The decision uses only numbers that every
rank has, so all ranks agree.
"""

import math

import torch

# e^87 is the largest power of e in float32 and bfloat16 (which share their exponent), e^700 about that of
# float64; a bit is left for the gradients, which carry a factor of the scale.
EXPONENT_LIMIT = {torch.float32: 87.0, torch.bfloat16: 87.0, torch.float64: 700.0}


def static_shift(
    logit_range: tuple[float, float] | None, num_classes: int, dtype: torch.dtype
) -> float | None:
    """B with sum of exp(g - b) in range for any cosines, or None: a running maximum is needed.

    Args:
        logit_range: (smallest, largest) logit of a negative; None if unbounded.
        num_classes: Number of classes over all ranks.
        dtype: The compute dtype.

    Returns:
        0.0 where no shift is needed at all (one pass less), else the centred shift
        (g_max + g_min + ln C) / 2; None where (g_max - g_min + ln C) / 2 exceeds the dtype's range.
    """
    if logit_range is None:
        return None
    low, high = logit_range
    top = high + math.log(max(num_classes, 1))
    slack = math.log(max(high - low, 1.0)) + 1.0
    limit = EXPONENT_LIMIT[dtype] - slack
    if top < limit and -low < limit:
        return 0.0
    if (top - low) / 2 < limit:
        return (top + low) / 2
    return None
