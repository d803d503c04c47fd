"""Template protocols against a literal reading of the files, in loops; weights, ranks, ties."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ijb_folder import write_ijb
from sklearn.metrics import roc_auc_score, roc_curve

from mpsoftmax.comm import Comm
from mpsoftmax.data.ijb import open_ijb
from mpsoftmax.evaluate.outcomes import summarise
from mpsoftmax.evaluate.templates import (
    judge_galleries,
    judge_pairs,
    pair_similarities,
    template_features,
)

FARS = (0.001, 0.01, 0.05, 0.3)
FPIRS = (0.1, 0.3)


def embeddings_of(found, seed=1):
    """Raw embeddings of unlike lengths that tell subjects apart, not too well."""
    rng = np.random.default_rng(seed)
    subjects = (found.templates - 1000) // 3
    rows = rng.normal(size=(12, 10))[subjects] + 1.4 * rng.normal(size=(len(subjects), 10))
    return rows * rng.uniform(0.5, 2, (len(subjects), 1))


def lines_of(root: Path, end: str) -> list[str]:
    return (root / "meta" / f"ijbc_{end}").read_text().splitlines()


def literal_features(root: Path, rows, use_norm, use_score):
    """Read the protocol's text files line by line; one template after the other."""
    faces = [line.split() for line in lines_of(root, "face_tid_mid.txt")]
    marks = [line.split() for line in lines_of(root, "name_5pts_score.txt")]
    features = {}
    for template in sorted({int(face[1]) for face in faces}):
        media: dict[str, list] = {}
        for (_, owner, medium), mark, row in zip(faces, marks, rows, strict=True):
            if int(owner) == template:
                row = row if use_norm else row / np.sqrt((row**2).sum())
                row = row * float(mark[11]) if use_score else row
                media.setdefault(medium, []).append(row)
        total = sum(np.mean(one, axis=0) for one in media.values())
        features[template] = total / np.sqrt((total**2).sum())
    return features


def literal_pairs(root: Path, features):
    lines = [line.split() for line in lines_of(root, "template_pair_label.txt")]
    similarity = np.array([features[int(a)] @ features[int(b)] for a, b, _ in lines])
    same = np.array([label == "1" for _, _, label in lines])
    values = {"auc": roc_auc_score(same, similarity)}
    fpr, tpr, _ = roc_curve(same, similarity, drop_intermediate=False)
    for far in FARS:
        values[f"tar_at_far_{far:g}"] = max(t for f, t in zip(fpr, tpr, strict=True) if f <= far)
    return values


def literal_gallery(root: Path, features, end):
    def subjects(file):
        lines = [line.split(",") for line in (root / "meta" / file).read_text().split()[1:]]
        return {int(template): int(subject) for template, subject, _ in lines}

    gallery, probes = subjects(f"ijbc_1N_gallery_{end}.csv"), subjects("ijbc_1N_probe_mixed.csv")
    known, strangers = [], []
    for probe, subject in probes.items():
        scores = {owner: features[probe] @ features[t] for t, owner in gallery.items()}
        if subject in scores:
            rank = sum(score >= scores[subject] for score in scores.values())
            known.append((scores[subject], rank))
        else:
            strangers.append(max(scores.values()))
    values = {f"rank_{k}": np.mean([rank <= k for _, rank in known]) for k in (1, 2)}
    for rate in FPIRS:
        best = 0.0
        for threshold, _ in known:
            if np.mean([one >= threshold for one in strangers]) <= rate:
                hits = [score >= threshold and rank == 1 for score, rank in known]
                best = max(best, float(np.mean(hits)))
        values[f"tpir_at_fpir_{rate:g}"] = best
    return values


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_ijb(tmp_path_factory.mktemp("ijb") / "set")


def judged(root, use_norm=True, use_score=True, comm=None):
    found = open_ijb(root)
    ids, features = template_features(
        torch.from_numpy(embeddings_of(found)),
        found.templates,
        found.media,
        scores=found.scores if use_score else None,
        by_norm=use_norm,
    )

    def rows(one):
        return features[torch.from_numpy(np.searchsorted(ids, one.templates))], one.subjects

    pairs = judge_pairs(pair_similarities(ids, features, found.pairs), found.same, fars=FARS)
    galleries = [rows(one) for one in found.galleries]
    searched = judge_galleries(galleries, *rows(found.probes), ranks=(1, 2), fpirs=FPIRS, comm=comm)
    return features, pairs, searched


@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("use_score", [True, False])
def test_equals_a_literal_reading(root, use_norm, use_score):
    found = open_ijb(root)
    literal = literal_features(root, embeddings_of(found), use_norm, use_score)
    features, pairs, searched = judged(root, use_norm, use_score)
    np.testing.assert_allclose(features.numpy(), np.stack(list(literal.values())), atol=1e-9)
    assert pairs.values() == pytest.approx(literal_pairs(root, literal), abs=1e-9)
    assert 0.2 < pairs.values()["tar_at_far_0.05"] < 1
    each = [literal_gallery(root, literal, end) for end in ("G1", "G2")]
    expected = {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}
    for number, one in enumerate(each, start=1):
        expected |= {f"gallery_{number}_{name}": value for name, value in one.items()}
    assert searched.values() == pytest.approx(expected, abs=1e-9)
    assert 0.2 < searched.values()["rank_1"] < 1


def test_intervals(root):
    _, pairs, searched = judged(root)
    for outcomes in (pairs, searched):
        result = summarise(outcomes, num_bootstrap=100)
        for one in result.figures.values():
            assert one.interval is not None
            assert one.interval[0] <= one.value + 1e-12
            assert one.value <= one.interval[1] + 1e-12
    assert not summarise(pairs, num_bootstrap=0).figures["tar_at_far_0.001"].supported


def on_ranks(root):
    _, pairs, searched = judged(root, comm=Comm())
    return pairs.values(), searched.values()


@pytest.mark.parametrize("world", [1, 3])
def test_the_same_on_any_number_of_ranks(ranks, root, world):
    _, pairs, searched = judged(root)
    assert ranks.run(on_ranks, world, root=root) == [(pairs.values(), searched.values())] * world


def test_errors(root):
    rows = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"media must be int \[3\]"):
        template_features(rows, np.arange(3), np.arange(2))
    with pytest.raises(ValueError, match=r"scores must be \[3\]"):
        template_features(rows, np.arange(3), np.arange(3), scores=np.ones(2))
    with pytest.raises(ValueError, match="template 5: its feature is zero"):
        template_features(torch.tensor([[1.0], [-1.0]]), np.array([5, 5]), np.array([1, 2]))
    with pytest.raises(ValueError, match="both kinds"):
        judge_pairs(np.ones(2), np.ones(2, bool))
    with pytest.raises(ValueError, match=r"fars must be in \(0, 1\]"):
        judge_pairs(np.ones(2), np.array([True, False]), fars=(0.0,))
