"""Finding, linking, merging and splitting classes of one identity, on any number of ranks."""

import pytest
import torch
from torch.nn.functional import normalize

import mpsoftmax as mp
from mpsoftmax.head.duplicates import search
from mpsoftmax.head.linking import trusted_lead

SIZES, SHARED, DIM = (7, 5, 6), 4, 24
CLASSES = sum(SIZES)


def identities():
    """Identity of every class: 0..3 occur in all three baskets, in another order in each."""
    out, fresh = [], SHARED
    for basket, size in enumerate(SIZES):
        shared = torch.roll(torch.arange(SHARED), basket)
        own = torch.arange(fresh, fresh + size - SHARED)
        fresh += size - SHARED
        out.append(torch.cat([own[:1], shared, own[1:]]))
    return torch.cat(out)


def images(noise, seed=0):
    """Features of six images a class, near its identity's direction."""
    stream = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(int(identities().max()) + 1, DIM, generator=stream), dim=1)
    labels = torch.arange(CLASSES).repeat(6)
    features = centres[identities()[labels]] + noise * torch.randn(
        len(labels), DIM, generator=stream
    )
    return features, labels


def make_head(**more):
    return mp.ModelParallelSoftmax(
        DIM, CLASSES, objective=mp.CosFace(20.0, 0.2), baskets=mp.Baskets(SIZES, "top_one"), **more
    )


def means_of(head, features, labels):
    """Class means from every rank's uneven share."""
    rank, world = head.comm.rank, head.comm.world
    bounds = [len(labels) * k * k // world**2 for k in range(world + 1)]
    means = head.class_means(by_label=True)
    means.add(features[bounds[rank] : bounds[rank + 1]], labels[bounds[rank] : bounds[rank + 1]])
    return means


def found():
    head = make_head()
    result = search(head, means_of(head, *images(0.05)), 0.5)
    return result.pairs, len(result.decoys)


def test_search_finds_every_pair_of_an_identity_and_no_other(ranks):
    truth = identities()
    basket = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    expected = {
        (a, b)
        for a in range(CLASSES)
        for b in range(a + 1, CLASSES)
        if truth[a] == truth[b] and basket[a] != basket[b]
    }
    assert len(expected) == 3 * SHARED
    for world in (1, 2, 4):
        for pairs, num_decoys in ranks.run(found, world):
            assert {pair[:2] for pair in pairs} == expected
            leads = [pair.lead for pair in pairs]
            assert leads == sorted(leads, reverse=True)
            assert num_decoys == 0
    # The same by plain arithmetic on all classes at once.
    naive = normalize(normalize(images(0.05)[0], dim=1).view(6, CLASSES, DIM).mean(0), dim=1)
    cosines = naive @ naive.T
    for a, b, cosine, lead in pairs:
        assert abs(float(cosines[a, b]) - cosine) < 1e-4
        rivals = [
            cosines[one, (basket == basket[other]) & (torch.arange(CLASSES) != other)].max()
            for one, other in ((a, b), (b, a))
        ]
        assert abs(cosine - float(max(rivals)) - lead) < 1e-4


def linked(stable):
    head = make_head()
    linker = mp.IdentityLinker(head, threshold=0.5, stable=stable)
    events = []
    for step in range(stable + 1):
        assert len(head.merged) == 0 or step >= stable
        events.append([event.as_dict() for event in linker.update(means_of(head, *images(0.05)))])
    return events, head.merged, linker.state()


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("stable", [1, 2])
def test_links_whole_identities_after_enough_checks(ranks, world, stable):
    truth = identities()
    for events, merged, _ in ranks.run(linked, world, stable=stable):
        assert all(not early for early in events[: stable - 1])
        assert {event["kind"] for event in events[stable - 1]} == {"link"}
        assert len(merged) == 2 * SHARED  # three classes of an identity: two are merged into one
        assert (truth[merged[:, 0]] == truth[merged[:, 1]]).all()
        assert not events[stable]


def split_again():
    """Link, then bring images in which one linked class is somebody else."""
    head = make_head()
    linker = mp.IdentityLinker(head, threshold=0.5, stable=1)
    features, labels = images(0.05)
    linker.update(means_of(head, features, labels))
    wrong = int(head.merged[0, 1])
    before = head.class_rows(torch.tensor([wrong, int(head.merged[0, 0])]))
    assert torch.equal(before[0], before[1])
    moved = features.clone()
    moved[labels == wrong] = normalize(
        torch.randn(6, DIM, generator=torch.Generator().manual_seed(5)), dim=1
    )
    events = linker.update(means_of(head, moved, labels))
    return wrong, [(event.kind, event.class_b) for event in events], head.merged


def test_a_class_that_left_its_group_is_split_off(ranks):
    for wrong, events, merged in ranks.run(split_again, 2):
        assert events == [("split", wrong)]
        assert wrong not in merged[:, 1].tolist()
        assert len(merged) == 2 * SHARED - 1


def merged_run():
    """Merged classes: rows, statistics, and the way through a state_dict."""
    head = make_head()
    first, second = 1, SIZES[0] + 2
    rows = head.class_rows(torch.tensor([first, second]))
    head.merge_classes([(first, second)])
    shared = head.class_rows(torch.tensor([first, second]))
    direction = normalize(normalize(rows, dim=1).sum(0), dim=0)
    torch.testing.assert_close(normalize(shared[0], dim=0), direction)
    assert torch.equal(shared[0], shared[1])
    owner = head.local_range[0] <= second < head.local_range[1]
    features, labels = images(0.3)
    head(features[:40].clone().requires_grad_(), labels[:40]).backward()
    assert not (owner and second in head.candidate_ids().tolist())
    head.step()
    ids, _ = head.nearest_classes(head.class_rows(torch.tensor([second])))
    assert ids.tolist() == [first]
    other = make_head()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.merged, head.merged)
    with pytest.raises(ValueError, match="not merged"):
        head.split_classes([first])
    head.split_classes([second])
    assert len(head.merged) == 0
    return True


@pytest.mark.parametrize("world", [1, 3])
def test_merged_classes(ranks, world):
    assert ranks.run(merged_run, world) == [True] * world


def test_merging_chains_and_its_refusals():
    head = make_head()
    head.merge_classes([(8, 13)])
    head.merge_classes([])
    head.merge_classes([(0, 8)])
    assert head.merged.tolist() == [[0, 8], [0, 13]]
    head.merge_classes([(8, 13)])  # one class already
    assert head.merged.tolist() == [[0, 8], [0, 13]]
    with pytest.raises(ValueError, match="itself"):
        head.merge_classes([(8, 8)])
    with pytest.raises(ValueError, match="merged with 3 include two of basket 0"):
        head.merge_classes([(3, 0)])
    with pytest.raises(ValueError, match=f"allowed: 0 <= id < {CLASSES}"):
        head.merge_classes([(0, CLASSES)])
    assert head.merged.tolist() == [[0, 8], [0, 13]]


def test_trusted_lead_by_hand():
    """Of ten decoys one in five may lead by as much: 0.3 and 0.2 do, so the third, 0.15, sets the mark."""
    decoys = [0.3, 0.2, 0.15, 0.1, 0.08, 0.05, 0.04, 0.03, 0.02, 0.01]
    assert trusted_lead(decoys, doubt=0.2, least=0.0) == 0.15
    assert trusted_lead(decoys, doubt=0.0, least=0.0) == 0.3
    assert trusted_lead(decoys, doubt=0.9, least=0.05) == 0.05
    assert trusted_lead([], doubt=0.1, least=0.07) == 0.07


def test_linker_refuses_what_it_cannot_link():
    plain = mp.ModelParallelSoftmax(DIM, CLASSES)
    with pytest.raises(ValueError, match="no baskets"):
        mp.IdentityLinker(plain)
    with pytest.raises(ValueError, match="baskets: None"):
        mp.likely_duplicates(plain, plain.class_means(by_label=True))
    centres = make_head(weights=mp.ClassCentres())
    with pytest.raises(ValueError, match="learned"):
        mp.IdentityLinker(centres)
    for name, value in (
        ("threshold", 2.0),
        ("doubt", 1.0),
        ("lead", -1.0),
        ("stable", 0),
        ("release", -3.0),
    ):
        with pytest.raises(ValueError, match=name):
            mp.IdentityLinker(make_head(), **{name: value})
