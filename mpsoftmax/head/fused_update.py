"""The class gradient and the rows' update in one kernel, where kernel, table and step allow it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mpsoftmax.head.class_table import ClassTable
from mpsoftmax.head.gradient import Contribution
from mpsoftmax.head.row_optim import Hyper, kernel_rule
from mpsoftmax.head.sorted_ids import place_of
from mpsoftmax.kernels.problem import NORM_FLOOR, Pairs, weigh
from mpsoftmax.kernels.row_update import OwnPulls, Rows
from mpsoftmax.kernels.select import Kernel, row_update


def update_in_kernel(
    kernel: Kernel, table: ClassTable, parts: list[Contribution], group: Mapping[str, Any]
) -> bool:
    """One optimiser step on all swept rows, whose gradient never reaches memory.

    For one backward call that swept the samples' own rows; float32 rows beside the kernel, none of which lags
    behind; SGD or AdamW.

    Args:
        kernel: What swept them.
        table: The rows.
        parts: What the backward calls of this step left.
        group: The optimiser's parameter group as it is in this step.

    Returns:
        Whether it was done; if not, nothing has moved.
    """
    update, part = row_update(kernel), parts[0]
    if update is None or len(parts) > 1 or not table.moves_in_place(part.index):
        return False
    rule = kernel_rule(table.rule)
    if rule is None or not part.swept_own or not update.can_update(part.swept):
        return False
    place = part.targets.row if part.index is None else place_of(part.targets.row, part.index)
    own = OwnPulls(
        unit=part.unit,
        weight=part.target / part.targets.norm.clamp_min(NORM_FLOOR),
        owners=Pairs(place),
    )

    def move(weight: Tensor, states: Sequence[Tensor], hyper: Hyper, age: Tensor) -> None:
        rows = Rows(weight, tuple(states), part.index)
        weighted = weigh(part.swept, part.negatives)
        update.update_rows(part.swept, weighted, own, rows, rule, hyper, age)

    table.move_in_place(part.index, move, group)
    return True
