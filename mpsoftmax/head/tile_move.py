"""How one tile of rows moves: the gradient projected on the tangent space, then the rule."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mpsoftmax.head.row_optim import Hyper, RowRule, kernel_rule
from mpsoftmax.kernels.select import Kernel, row_mover

TileMove = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor, Hyper, Tensor], None]
"""(rows [n, D], states, gradient [n, D] at constant norm, |w|^2 [n, 1], numbers of the rule, updates of each
row [n]): moves rows and states in place; the gradient may be overwritten."""


def tile_move(kernel: Kernel | None, rule: RowRule, dtype: torch.dtype) -> TileMove:
    """What moves tiles of rows of that dtype: the kernel's own code where it has some for the rule, or torch.

    The same for every step and every storage, so that rows come out equal to the bit wherever they lie.
    """
    name, own = kernel_rule(rule), None if kernel is None else row_mover(kernel)
    if name is not None and own is not None and dtype == torch.float32:
        return lambda rows, states, gradient, _, hyper, step: own(
            rows, states, gradient, name, hyper, step
        )

    def in_torch(
        rows: Tensor,
        states: Sequence[Tensor],
        gradient: Tensor,
        squares: Tensor,
        hyper: Hyper,
        step: Tensor,
    ) -> None:
        project(gradient, rows, squares)
        rule.update(rows, states, gradient, hyper, step)

    return in_torch


def project(gradient: Tensor, rows: Tensor, squares: Tensor) -> None:
    """In place: gradient - <gradient, w> w / |w|^2, row by row; [n, D], [n, D], |w|^2 [n, 1]."""
    along = torch.linalg.vecdot(gradient, rows)[:, None].div_(squares)
    gradient.addcmul_(rows, along, value=-1.0)
