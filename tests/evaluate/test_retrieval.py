"""Recall@1: worked by hand, blocks, ties, errors."""

import pytest
import torch
import torch.nn.functional as F

from mpsoftmax.evaluate.retrieval import recall_at_1

GALLERY = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])
LABELS = torch.tensor([7, 8, 9])


def test_by_hand_and_by_angle_not_length():
    query = torch.tensor([[5.0, 1.0], [0.1, 0.2], [0.2, 0.3], [-1.0, 0.9]])
    assert recall_at_1(GALLERY, LABELS, query, torch.tensor([7, 8, 7, 9])) == 0.75


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_blocks_change_nothing(block):
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(150, 6, generator=generator)
    query = torch.randn(90, 6, generator=generator)
    labels = torch.arange(150) % 9
    query_labels = torch.randint(9, (90,), generator=generator)
    nearest = (F.normalize(query) @ F.normalize(gallery).T).argmax(1)
    expected = (labels[nearest] == query_labels).float().mean().item()
    assert 0 < expected < 1
    found = recall_at_1(gallery, labels, query, query_labels, block=block)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 2, 4096])
def test_first_of_equals_counts(block):
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    query = torch.tensor([[1.0, 0.0]])
    for label, recall in ((1, 1.0), (2, 0.0)):
        found = recall_at_1(
            gallery, torch.tensor([0, 1, 2]), query, torch.tensor([label]), block=block
        )
        assert found == recall


def test_item_with_negative_cosine_only():
    assert recall_at_1(GALLERY[:1], LABELS[:1], -GALLERY[:1], LABELS[:1]) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery": torch.zeros(0, 2), "gallery_labels": LABELS[:0]}, "gallery must be"),
        ({"query": torch.zeros(3, 5)}, r"query must be .* got \[3, 5\]"),
        ({"query": torch.zeros(0, 2), "query_labels": LABELS[:0]}, "query must be"),
        ({"gallery_labels": LABELS[:2]}, r"gallery_labels must be \[3\], got \[2\]"),
        ({"query_labels": torch.tensor([7, 5, 5])}, "2 queries have no item.*label 5"),
        ({"query": GALLERY / 0}, "query holds values that are not finite"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_errors(change, message):
    arguments = {
        "gallery": GALLERY,
        "gallery_labels": LABELS,
        "query": GALLERY,
        "query_labels": LABELS,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        recall_at_1(**arguments)
