"""Which classes of other baskets a rule refuses at the end of a run, against the truth.

The rules are written out densely here, from their definitions, for a sample of the training images: the
head's own sweep reports shares, not pairs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]


def _threshold(cosine: Tensor, target: Tensor, baskets: Tensor, arguments: Arguments) -> Tensor:
    return cosine >= arguments.get("tau", 0.5)


def _target_relative(
    cosine: Tensor, target: Tensor, baskets: Tensor, arguments: Arguments
) -> Tensor:
    return cosine >= target[:, None] - arguments.get("delta", 0.2)


def _top_one(cosine: Tensor, target: Tensor, baskets: Tensor, arguments: Arguments) -> Tensor:
    return _top_k(cosine, target, baskets, {"k": 1}) & (cosine > arguments.get("tau", 0.3))


def _top_k(cosine: Tensor, target: Tensor, baskets: Tensor, arguments: Arguments) -> Tensor:
    refused = torch.zeros_like(cosine, dtype=torch.bool)
    for basket in range(int(baskets.max()) + 1):
        columns = torch.nonzero(baskets == basket)[:, 0]
        num = min(arguments.get("k", 1), len(columns))
        best = cosine[:, columns].topk(num, dim=1).indices
        refused.scatter_(1, columns[best], True)
    return refused


def _noise_filter(cosine: Tensor, target: Tensor, baskets: Tensor, arguments: Arguments) -> Tensor:
    return cosine > arguments.get("threshold", 0.4)


RULES: dict[str, Callable[[Tensor, Tensor, Tensor, Arguments], Tensor]] = {
    "Threshold": _threshold,
    "TargetRelative": _target_relative,
    "TopOne": _top_one,
    "TopK": _top_k,
    "NoiseFilter": _noise_filter,
}


def rejection_figures(
    part: Any, cosine: Tensor, labels: Tensor, baskets: Tensor, identities: Tensor
) -> dict[str, float]:
    """Precision and recall of the refusals of other baskets' classes; empty for a rule without any.

    Args:
        part: The rule, ["TopOne", {"tau": 0.3}].
        cosine: float [n, num_classes] of samples and class rows.
        labels: int64 [n].
        baskets: int64 [num_classes], basket of each class.
        identities: int64 [num_classes].
    """
    name, arguments = part
    if name not in RULES:
        return {}
    other = baskets[labels, None] != baskets
    target = cosine.gather(1, labels[:, None])[:, 0]
    refused = RULES[name](cosine, target, baskets, arguments) & other
    false_negative = (identities[labels, None] == identities) & other
    right = int((refused & false_negative).sum())
    num_refused, num_false = int(refused.sum()), int(false_negative.sum())
    return {
        "refused_per_image": num_refused / len(labels),
        "refusal_precision": right / num_refused if num_refused else float("nan"),
        "refusal_recall": right / num_false if num_false else float("nan"),
    }
