"""Bytes that a head hands to each collective in one step, exactly as `head.comm.payload_bytes` counts them.

    all_gather       labels, norms, features: (capacity + 1) lines; a running maximum's numbers; found classes
    all_reduce       row statistics, target cosines, found classes
    reduce_scatter   feature gradients of all ranks

None depends on the number of classes.
"""

from collections import Counter
from dataclasses import dataclass

from mpsoftmax.head.exchange import line_bytes
from mpsoftmax.head.mining import Hardest
from mpsoftmax.plan.shape import HeadShape

HEADER_BYTES = 24
PAIR_BYTES = 8  # (float32 cosine, class id) in one int64


@dataclass(frozen=True)
class Traffic:
    """What one rank hands over in a step, and what the links carry for it."""

    calls: Counter[str]
    payload_bytes: Counter[str]
    world: int

    @property
    def wire_bytes(self) -> float:
        """Bytes through one rank's link, one way, by algorithms of least volume (rings).

        gloo's reduce-scatter is an all-reduce, twice that.
        """
        others, payload = self.world - 1, self.payload_bytes
        gathered = payload["all_gather"] * others
        reduced = 2 * payload["all_reduce"] * others / self.world
        return gathered + reduced + payload["reduce_scatter"] * others / self.world


def collectives(shape: HeadShape) -> Traffic:
    """One step: `accumulation` forwards and backwards, and the update, which needs none."""
    calls: Counter[str] = Counter()
    payload: Counter[str] = Counter()

    def count(name: str, num_bytes: int) -> None:
        calls[name] += shape.accumulation
        payload[name] += shape.accumulation * num_bytes

    count_input(shape, count)
    count_mining(shape, count)
    wide, columns = shape.wide_dtype.itemsize, statistics_columns(shape)
    numbers = columns * shape.swept_samples
    if shape.needs_target:
        count("all_reduce", wide * shape.samples)
    else:
        numbers += shape.samples
    if shape.has_running_maximum:
        count("all_gather", wide * (numbers + shape.swept_samples))
    else:
        count("all_reduce", wide * numbers)
    count("reduce_scatter", shape.world * shape.capacity * shape.dim * wide)
    return Traffic(calls, payload, shape.world)


def count_input(shape: HeadShape, count) -> None:  # noqa: ANN001
    """Features, labels and norms; sizes where no capacity is given; labels read ahead."""
    if shape.prefetch and shape.storage != "device":
        if not shape.has_capacity:
            count("all_gather", 8)
        count("all_gather", 8 * shape.capacity)
    if not shape.has_capacity:
        count("all_gather", HEADER_BYTES)
    line = line_bytes(shape.dim, shape.compute_dtype)
    count("all_gather", (shape.capacity + 1) * line)


def count_mining(shape: HeadShape, count) -> None:  # noqa: ANN001
    """Classes of other baskets that a rule looks up before the sweep."""
    rule, baskets = shape.rule, shape.parts.baskets
    if rule is None or baskets is None:
        return
    looked_up = []
    if rule.num_dropped:
        looked_up.append((len(baskets.sizes), rule.num_dropped))
    if isinstance(rule, Hardest):
        looked_up.append((1, rule.num))
    for groups, k in looked_up:
        name = "all_reduce" if k == 1 else "all_gather"
        count(name, PAIR_BYTES * groups * k * shape.swept_samples)


def statistics_columns(shape: HeadShape) -> int:
    """Numbers a swept sample has in collective (2): total, hard sum and count, rejected and mined."""
    return 1 + 2 * shape.has_hard_negatives + 2 * shape.mines
