import tracemalloc

import numpy as np
import pytest
import torch

import mpsoftmax as mp
from mpsoftmax.head.candidates import (
    All,
    Uniform,
    UniformBlocks,
    sample_without_replacement,
)

NONE = np.empty(0, dtype=np.int64)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("num_local", [1, 10, 997])
def test_sample(rate, num_local):
    """Sorted, unique, in range, every positive kept, and exactly as many as asked for."""
    for step in range(20):
        stream = np.random.default_rng(step)
        positives = np.unique(stream.integers(0, num_local, size=stream.integers(0, 12)))
        drawn = Uniform(rate).draw(num_local, positives, (0, 0, step))
        assert drawn.size == max(positives.size, int(rate * num_local))
        assert np.all(np.diff(drawn) > 0)
        assert drawn.size == 0 or (drawn[0] >= 0 and drawn[-1] < num_local)
        assert np.isin(positives, drawn).all()


def test_empty_shard():
    assert Uniform(0.5).draw(0, NONE, (0, 0, 0)).size == 0


def test_all_has_no_index():
    assert All().draw(10, NONE, (0,)) is None


@pytest.mark.parametrize("size", [3, 10, 19, 30])
def test_sample_without_replacement_is_uniform(size):
    """Single elements and pairs are included as often as a uniform set of that size says."""
    population, rounds = 38, 4000
    stream = np.random.default_rng(0)
    included = np.zeros((rounds, population))
    for k in range(rounds):
        included[k, sample_without_replacement(population, size, stream)] = 1
    assert np.all(included.sum(1) == size)
    single = size / population
    pair = single * (size - 1) / (population - 1)
    both = (included.T @ included)[np.triu_indices(population, 1)]
    within(included.sum(0), rounds, single)
    within(both, rounds, pair)


def within(counts, rounds, probability):
    """Binomial counts stay within 5 standard deviations, and are as spread as they should be."""
    sigma = np.sqrt(rounds * probability * (1 - probability))
    assert np.abs(counts - rounds * probability).max() < 5 * sigma
    assert 0.5 < counts.std() / sigma < 1.5


def test_negatives_are_uniform_around_the_positives():
    """Rows beside, before and after the positives are as likely as any other."""
    positives = np.array([0, 3, 4, 17, 39])
    counts = np.zeros(40)
    for step in range(4000):
        counts[Uniform(0.3).draw(40, positives, (1, 0, step))] += 1
    assert np.all(counts[positives] == 4000)
    within(np.delete(counts, positives), 4000, 7 / 35)


def test_streams_are_reproducible_and_independent():
    """Same key, same draw; another rank, step or seed draws independently of it."""
    n, k = 10_000, 1_000
    base = Uniform(0.1).draw(n, NONE, (5, 0, 0, 0))
    assert np.array_equal(base, Uniform(0.1).draw(n, NONE, (5, 0, 0, 0)))
    sigma = np.sqrt(k * k / n * (1 - k / n) ** 2)
    for key in [(5, 1, 0, 0), (5, 0, 1, 0), (5, 0, 0, 1), (6, 0, 0, 0), (0, 5, 0, 0)]:
        common = np.intersect1d(base, Uniform(0.1).draw(n, NONE, key)).size
        assert abs(common - k * k / n) < 5 * sigma


def test_cost_is_that_of_the_sample():
    """A hundred million classes, a hundred candidates: kilobytes."""
    positives = np.arange(0, 10**8, 4 * 10**6)
    tracemalloc.start()
    drawn = Uniform(1e-6).draw(10**8, positives, (0, 0, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert drawn.size == 100
    assert peak < 100_000
    tracemalloc.start()
    drawn = UniformBlocks(1e-6, 10).draw(10**8, positives, (0, 0, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 90 <= drawn.size <= 110
    assert peak < 100_000


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("num_local", [1, 10, 997])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_blocks(rate, num_local, size):
    """Sorted, unique, in range, every positive kept, whole blocks but for the ends."""
    sizes = []
    for step in range(20):
        stream = np.random.default_rng(step)
        positives = np.unique(stream.integers(0, num_local, size=stream.integers(0, 12)))
        drawn = UniformBlocks(rate, size).draw(num_local, positives, (0, 0, step))
        assert np.all(np.diff(drawn) > 0)
        assert drawn.size == 0 or (drawn[0] >= 0 and drawn[-1] < num_local)
        assert np.isin(positives, drawn).all()
        others = np.setdiff1d(drawn, positives)
        runs = np.split(drawn, np.flatnonzero(np.diff(drawn) > 1) + 1)
        with_others = [run for run in runs if np.isin(run, others).any()]
        for run in with_others:
            whole = run[-1] - run[0] + 1 >= size
            assert whole or run[0] == 0 or run[-1] == num_local - 1
        sizes.append(drawn.size)
    assert abs(np.mean(sizes) - max(rate * num_local, 0)) <= 1.5 * size + 12


def test_blocks_are_uniform():
    """Every class is as likely as any other, at the ends too; neighbours come together."""
    counts = np.zeros(50)
    together = 0
    for step in range(6000):
        drawn = UniformBlocks(0.2, 5).draw(50, NONE, (1, 0, step))
        counts[drawn] += 1
        together += np.isin([20, 21], drawn).all()
    within(counts, 6000, counts.mean() / 6000)
    assert together > 0.7 * counts[20]


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match=r"Uniform\.rate: .*allowed: 0 .* to 1"):
        Uniform(rate)
    with pytest.raises(ValueError, match=r"UniformBlocks\.rate: .*allowed: 0 .* to 1"):
        UniformBlocks(rate)
    with pytest.raises(ValueError, match=r"UniformBlocks\.size: 0; allowed"):
        UniformBlocks(0.1, 0)


def candidates_of(steps):
    """This rank's candidate ids and the labels of all ranks, step by step."""
    head = mp.ModelParallelSoftmax(8, 101, candidates=mp.Uniform(0.2), seed=3)
    log = []
    for step in range(steps):
        stream = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 101, (head.comm.world, 4), generator=stream)
        features = torch.randn(head.comm.world, 4, 8, generator=stream)
        head(features[head.comm.rank], labels[head.comm.rank]).backward()
        head.step()
        log.append((head.local_range, head.candidate_ids(), labels.view(-1)))
    return log


@pytest.mark.parametrize("world", [1, 3])
def test_head_keeps_every_class_of_the_batch(ranks, world):
    results = ranks.run(candidates_of, world, steps=5)
    for step in range(5):
        ids = torch.cat([log[step][1] for log in results])
        assert torch.isin(results[0][step][2], ids).all()
        for (start, stop), mine, _ in (log[step] for log in results):
            assert ((mine >= start) & (mine < stop)).all()
            assert mine.numel() >= int(0.2 * (stop - start))
    assert not torch.equal(results[0][0][1], results[0][1][1])
