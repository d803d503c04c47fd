"""The class gradient fused with the rows' update, in Triton's interpreter, against the head's in torch."""

import pytest
import torch
from kernel_cases import triton_set_to
from update_cases import ADAMW, SGD, WHOLE, compare_updates

from mpsoftmax.head.row_optim import RowSGD


class WideProducts:
    """The class gradient as a float32 product: the kernel does not round it, a bfloat16 product does."""

    @staticmethod
    def class_gradient(swept, weighted, start, stop, out):
        from mpsoftmax.kernels import blocked, triton_sweep

        def entries_of(swept, first, last):
            return triton_sweep.entries_of(swept, first, last).float()

        blocked.multiply_entries(entries_of, swept, weighted.float(), start, stop, out)
        return out


def compare(**case):
    """Runs in the interpreter's process, with blocks of 64 rows."""
    from mpsoftmax.kernels import triton_sweep, triton_update

    with triton_set_to(block=64):
        return compare_updates(triton_sweep, triton_update, WideProducts, **case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(("num_rows", "dim"), [(150, 24), (70, 150), (33, 300)])
def test_update(interpreter, dtype, rule, num_rows, dim):
    """One, two and three chunks of D; neither rows, D nor samples fill their tiles."""
    interpreter.run(compare, num_rows=num_rows, dim=dim, dtype=dtype, shift=3.0, rule=rule)


@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("shift", [3.0, None], ids=["constant", "maximum"])
@pytest.mark.parametrize("kept_lines", [0, 64, WHOLE], ids=["nothing", "a block", "all"])
def test_sampled_rows_and_budget(interpreter, rule, shift, kept_lines):
    """Every second row of a table, E kept, recomputed or both, of a problem with every wish."""
    interpreter.run(
        compare,
        num_rows=150,
        dim=12,
        dtype=torch.float32,
        shift=shift,
        rule=rule,
        sampled=True,
        kept_lines=kept_lines,
        wish="all",
    )


def test_without_momentum_the_state_rests(interpreter):
    """As torch's SGD: no momentum, and the buffer stays what it is."""
    rule = RowSGD(lr=0.3, momentum=0.0)
    interpreter.run(compare, num_rows=70, dim=24, dtype=torch.bfloat16, shift=3.0, rule=rule)
