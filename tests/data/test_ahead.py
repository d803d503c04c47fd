"""Images copied one batch ahead. The copies of a GPU are stood in for: here is none."""

import pytest
import torch

from mpsoftmax.data.ahead import SideStream, on_device, one_ahead
from mpsoftmax.data.loader import Batch


class Noting:
    """Copies at once and keeps account of when it was asked."""

    def __init__(self, notes):
        self.notes = notes

    def begin(self, images):
        self.notes.append(f"begin {int(images[0, 0, 0, 0])}")
        return images

    def take(self, begun):
        self.notes.append(f"take {int(begun[0, 0, 0, 0])}")
        return begun.clone()


def batches(num, notes, fails_at=None):
    try:
        for k in range(num):
            if k == fails_at:
                raise ValueError(f"batch {k} is corrupt")
            images = torch.full((2, 3, 4, 4), k, dtype=torch.uint8)
            yield Batch(images, torch.tensor([k, -1]), (f"skipped {k}",))
    finally:
        notes.append("closed")


def test_the_next_copy_is_begun_before_a_batch_is_handed_out():
    notes = []
    for batch in one_ahead(batches(3, notes), Noting(notes)):
        k = int(batch.labels[0])
        assert batch.images.unique().tolist() == [k]
        assert batch.skipped == (f"skipped {k}",)
        notes.append(f"step {k}")
    assert notes == [
        *("begin 0", "begin 1", "take 0", "step 0"),
        *("begin 2", "take 1", "step 1"),
        *("closed", "take 2", "step 2"),
    ]


def test_a_problem_comes_with_its_own_batch():
    notes = []
    stream = one_ahead(batches(5, notes, fails_at=2), Noting(notes))
    assert [int(next(stream).labels[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="batch 2 is corrupt"):
        next(stream)
    assert notes.count("closed") == 1


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_closing_it_closes_the_reading(taken):
    notes = []
    inner = batches(5, notes)
    stream = one_ahead(inner, Noting(notes))
    for _ in range(taken):
        next(stream)
    stream.close()
    inner.close()
    assert notes.count("closed") == (
        1 if taken else 0
    )  # a generator not begun has nothing to close


def test_no_batch_at_all():
    assert list(one_ahead(batches(0, []), Noting([]))) == []


def test_a_cpu_gets_the_batches_themselves():
    inner = batches(2, [])
    assert on_device(inner, torch.device("cpu")) is inner
    inner.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: SideStream copies to one")
def test_on_a_gpu():
    device = torch.device("cuda", torch.cuda.current_device())
    stream = one_ahead(batches(20, []), SideStream(device))
    for k, batch in enumerate(stream):
        assert batch.images.device == device
        assert batch.images.unique().tolist() == [k]
