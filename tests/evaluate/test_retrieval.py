"""Recall@k, R-precision, mAP@R: worked by hand, against torchmetrics, blocks, ties, ranks, errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.retrieval import recall_at_1, retrieve

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


# --- Recall@k, R-precision, mAP@R ----------------------------------------------------------


def goods(seed=0, num=90, num_classes=9, distractors=20):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num)
    labels[0] = 50  # alone in its class
    rows = rng.normal(size=(60, 6))[labels] + 0.7 * rng.normal(size=(num, 6))
    rows = np.concatenate([rows, rng.normal(size=(distractors, 6))])
    return torch.from_numpy(rows).float(), np.append(labels, np.full(distractors, -1))


def within(rows, labels, num=90, **options):
    own = np.arange(num)
    return retrieve(rows, labels, rows[:num], labels[:num], own=own, **options)


def literal_retrieval(rows, labels, num=90):
    """One query at a time; R-precision and hit rates by torchmetrics, mAP@R from its formula."""
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_r_precision

    rows = F.normalize(rows.double())
    found: dict[str, list[float]] = {}
    for query in range(num):
        others = [k for k in range(len(rows)) if k != query]
        scores = rows[others] @ rows[query]
        relevant = torch.tensor([bool(labels[k] == labels[query]) for k in others])
        if not relevant.any():
            continue
        for k in (1, 5, 10):
            hit = float(retrieval_hit_rate(scores, relevant, top_k=k))
            found.setdefault(f"recall_at_{k}", []).append(hit)
        found.setdefault("r_precision", []).append(float(retrieval_r_precision(scores, relevant)))
        ordered = relevant[scores.argsort(descending=True)].double()
        num_relevant = int(relevant.sum())
        total = 0.0
        for i in range(num_relevant):
            if ordered[i]:
                total += float(ordered[: i + 1].mean())
        found.setdefault("mAP_at_R", []).append(total / num_relevant)
    return {name: np.mean(values) for name, values in found.items()}


def test_within_one_set_against_torchmetrics():
    rows, labels = goods()
    outcomes = within(rows, labels, recalls=(1, 5, 10))
    expected = literal_retrieval(rows, labels)
    found = outcomes.values()
    # torchmetrics computes in float32
    assert found == pytest.approx(expected, abs=1e-7)
    assert found["mAP_at_R"] == pytest.approx(expected["mAP_at_R"], abs=1e-9)
    assert 0.2 < found["mAP_at_R"] < found["r_precision"] < found["recall_at_1"] < 1
    assert outcomes.counts == {
        "queries": 89,
        "queries_without_a_match": 1,
        "gallery_items": 110,
        "distractors": 20,
    }


def test_map_at_r_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    gallery = torch.stack([angles.cos(), angles.sin()], 1)
    labels = np.array([3, 8, 3, 3, 8])
    query = torch.tensor([[1.0, 0.0]])
    values = retrieve(gallery, labels, query, np.array([3]), recalls=(1, 2)).values()
    assert values["r_precision"] == 2 / 3  # yes, no, yes | yes
    assert values["mAP_at_R"] == pytest.approx((1 + 2 / 3) / 3)
    assert values["recall_at_1"] == 1.0
    own = retrieve(gallery, labels, query, np.array([3]), own=np.array([0]), recalls=(1, 2))
    assert own.values() == {
        "recall_at_1": 0.0,  # no, yes | yes
        "recall_at_2": 1.0,
        "r_precision": 0.5,
        "mAP_at_R": 0.25,
    }


def test_recall_at_1_is_that_of_the_other_function():
    rows, labels = goods(distractors=0)
    gallery, query = rows[:40], rows[40:][np.isin(labels[40:], labels[:40])]
    wanted = labels[40:][np.isin(labels[40:], labels[:40])]
    by_search = retrieve(gallery, labels[:40], query, wanted).values()["recall_at_1"]
    assert by_search == recall_at_1(
        gallery, torch.from_numpy(labels[:40]), query, torch.from_numpy(wanted)
    )


def on_ranks():
    return within(*goods(), comm=Comm()).values()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_retrieval_on_any_number_of_ranks(ranks, world):
    assert ranks.run(on_ranks, world) == [within(*goods()).values()] * world


def test_retrieval_by_faiss():
    pytest.importorskip("faiss")
    assert within(*goods(), backend="faiss").values() == within(*goods()).values()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recalls": (0,)}, "recalls must be 1 or more"),
        ({"query_labels": np.full(90, -1)}, "-1 is nobody's class"),
        ({"query_labels": np.full(90, 77), "own": None}, "no query has an item"),
        ({"query_labels": np.zeros(90, int)}, "one label"),
        ({"gallery_labels": np.zeros(3, int)}, r"gallery_labels must be int \[110\]"),
    ],
)
def test_retrieval_errors(change, message):
    rows, labels = goods()
    arguments = {
        "gallery": rows,
        "gallery_labels": labels,
        "query": rows[:90],
        "query_labels": labels[:90],
        "own": np.arange(90),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        retrieve(**arguments)
