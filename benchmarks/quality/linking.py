"""Identity linking during a run, and how right it was."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Linking:
    """Every `every` steps after `start`: class means by a pass over the training data, then the linker.

    Args:
        head: The head whose classes are linked.
        settings: every, start (steps), and the arguments of `IdentityLinker`.
    """

    def __init__(self, head: Any, settings: Mapping[str, Any]) -> None:
        from mpsoftmax import IdentityLinker

        rest = dict(settings)
        self.every, self.start = rest.pop("every"), rest.pop("start")
        self.linker = IdentityLinker(head, **rest)
        self.num_events = 0

    def is_due(self, step: int) -> bool:
        """Whether the linker wants class means before this step."""
        return step >= self.start and (step - self.start) % self.every == 0

    def update(self, means: Any) -> None:
        """Link, merge or split by these class means."""
        self.num_events += len(self.linker.update(means) or ())


def merge_figures(merged: Tensor, identities: Tensor) -> dict[str, float]:
    """How right merged classes are.

    Precision: share of the merges (kept class, merged class) that are of one identity. Recall: share of the
    classes that a perfect linker would have merged away, of which these merges are right.

    Args:
        merged: int64 [p, 2], (row kept, class merged into it).
        identities: int64 [num_classes].
    """
    right = identities[merged[:, 0]] == identities[merged[:, 1]]
    wanted = len(identities) - len(torch.unique(identities))
    return {
        "merges": len(merged),
        "merge_precision": float(right.double().mean()) if len(merged) else float("nan"),
        "merge_recall": int(right.sum()) / wanted if wanted else float("nan"),
    }
