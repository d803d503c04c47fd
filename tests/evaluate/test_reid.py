"""Re-identification: by hand, against scikit-learn and a literal reading of Market-1501, ranks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.reid import Sightings, reidentify


def sightings(angles, people, cameras):
    angles = torch.tensor(angles, dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    return Sightings(rows, np.array(people), np.array(cameras))


def test_by_hand():
    query = sightings([0.0, 0.0, 0.0], [1, 2, 3], [1, 1, 1])
    #                       same camera  junk  distractor  matches of 1 at places 2 and 4
    gallery = sightings(
        [0.01, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5], [1, -1, 0, 1, 2, 1, 3], [1, 2, 2, 2, 2, 3, 1]
    )
    outcomes = reidentify(query, gallery, ranks=(1, 2, 3))
    # Query 1: 0 (no), 1 (yes), 2 (no), 1 (yes), 3. Query 2: 1, 0, 1, 2. Query 3: only its own camera.
    assert outcomes.per_item["mAP"][0] == (1 / 2 + 2 / 4) / 2
    assert outcomes.per_item["mAP"][1] == 1 / 4
    assert outcomes.per_item["mINP"].tolist()[:2] == [2 / 4, 1 / 4]
    assert outcomes.values() == {
        "rank_1": 0.0,
        "rank_2": 0.5,
        "rank_3": 0.5,
        "mAP": (0.5 + 0.25) / 2,
        "mINP": (0.5 + 0.25) / 2,
    }
    assert outcomes.counts == {
        "queries": 2,
        "queries_without_a_match": 1,
        "gallery_images": 6,
        "people_in_the_gallery": 4,
    }


def crowd(seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, 8))

    def side(num, low):
        people = rng.integers(low, 10, num)
        rows = centres[people] + rng.normal(size=(num, 8))
        return Sightings(torch.from_numpy(rows).float(), people, rng.integers(1, 4, num))

    return side(40, 1), side(150, -1)


def literal(query, gallery):
    """One query at a time; average precision by scikit-learn."""
    q, g = (side.embeddings.double().numpy() for side in (query, gallery))
    q, g = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (q, g))
    firsts, precisions, inverses = [], [], []
    for row, person, camera in zip(q, query.people, query.cameras, strict=True):
        kept = [
            (float(row @ other), who == person)
            for other, who, where in zip(g, gallery.people, gallery.cameras, strict=True)
            if who != -1 and not (who == person and where == camera)
        ]
        kept.sort(key=lambda pair: -pair[0])
        places = [place for place, (_, match) in enumerate(kept, 1) if match]
        if places:
            firsts.append(places[0])
            scores, matches = zip(*kept, strict=True)
            precisions.append(average_precision_score(matches, scores))
            inverses.append(len(places) / places[-1])
    values = {f"rank_{k}": np.mean(np.array(firsts) <= k) for k in (1, 5, 10)}
    return {**values, "mAP": np.mean(precisions), "mINP": np.mean(inverses)}


def test_against_a_literal_reading():
    query, gallery = crowd()
    found = reidentify(query, gallery).values()
    assert found == pytest.approx(literal(query, gallery), abs=1e-9)
    assert 0.3 < found["mAP"] < 0.9


def on_ranks():
    import mpsoftmax.evaluate.blocks as blocks

    blocks.CELLS = 700
    outcomes = reidentify(*crowd(), comm=Comm())
    return outcomes.values(), dict(outcomes.per_item)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_same_on_any_number_of_ranks(ranks, world):
    whole = reidentify(*crowd())
    for values, per_item in ranks.run(on_ranks, world):
        assert values == whole.values()
        for name, row in per_item.items():
            assert np.array_equal(row, whole.per_item[name], equal_nan=True)


def test_errors():
    query, gallery = crowd()
    with pytest.raises(ValueError, match="-1 is junk"):
        reidentify(gallery, gallery)
    with pytest.raises(ValueError, match="none of them is in the gallery"):
        reidentify(Sightings(query.embeddings, query.people + 50, query.cameras), gallery)
    with pytest.raises(ValueError, match=r"gallery.cameras must be int \[150\]"):
        reidentify(query, Sightings(gallery.embeddings, gallery.people, query.cameras))
    with pytest.raises(ValueError, match="ranks must be 1 or more"):
        reidentify(query, gallery, ranks=(0,))
