"""Bootstrap over the items of a protocol (pairs, queries): how far its figures would vary with other ones.

Items are drawn with replacement within each stratum (a fold's genuine pairs, say), as many as there
are, so that a replicate keeps the layout of the protocol.
"""

from collections.abc import Callable, Iterator

import numpy as np

from mpsoftmax.evaluate.result import Interval

_CHUNK_ELEMENTS = 500_000  # items x replicates held at once


def intervals(
    strata: np.ndarray,
    figures: Callable[[np.ndarray], dict[str, np.ndarray]],
    num_bootstrap: int,
    seed: int,
) -> dict[str, Interval]:
    """2.5 and 97.5 percentiles of each figure over the replicates; nothing without replicates."""
    parts = [figures(weights) for weights in bootstrap_weights(strata, num_bootstrap, seed)]
    if not parts:
        return {}
    intervals = {}
    for name in parts[0]:
        low, high = np.percentile(np.concatenate([part[name] for part in parts]), (2.5, 97.5))
        intervals[name] = (float(low), float(high))
    return intervals


def bootstrap_weights(strata: np.ndarray, num_bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item was drawn: int64 [r, p] in chunks of replicates. strata: int64 [p]."""
    rng = np.random.default_rng(seed)
    num_items = len(strata)
    members = [np.flatnonzero(strata == number) for number in np.unique(strata)]
    chunk = max(1, _CHUNK_ELEMENTS // num_items)
    for start in range(0, num_bootstrap, chunk):
        weights = np.zeros((min(chunk, num_bootstrap - start), num_items), np.int64)
        for rows in members:
            share = np.full(len(rows), 1 / len(rows))
            weights[:, rows] = rng.multinomial(len(rows), share, size=len(weights))
        yield weights
