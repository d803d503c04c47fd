"""Operations and bytes that one step of one rank takes, by docs/planning.md's formulas.

Bytes are those that must cross the memory bus. Passes over a block of logits count once where the block stays
in the cache, and each where it does not.
"""

from dataclasses import dataclass

from mpsoftmax.plan.shape import HeadShape

# Passes over a block of logits, reads and writes counted apart, in this code's own loops.
PLAIN_PASSES = 5  # product; exponential read and written; column sums; product with the rows
SHIFT_PASSES = 2
FACTOR_PASSES = 4  # twice read and written, where rows enter the products as they are
MASKING_PASSES = 24  # masking.py, in the wide dtype


@dataclass(frozen=True)
class Work:
    """One step of the head on the rank with the largest shard."""

    flops: float
    """Of the matrix products that cannot be avoided."""
    again_flops: float
    """Of products taken once more: E past its budget, classes looked up."""
    logit_bytes: float
    """Logits and exponentials moved."""
    row_bytes: float
    """Rows and optimiser rows moved."""

    @property
    def all_flops(self) -> float:
        """Both."""
        return self.flops + self.again_flops


def head_work(shape: HeadShape, cache_bytes: float) -> Work:
    """Work of one step.

    Args:
        shape: The head.
        cache_bytes: Last-level cache that one rank has.
    """
    compute, rows = shape.compute_dtype.itemsize, shape.swept_rows * shape.accumulation
    logits = float(shape.swept_samples) * rows
    product = 2.0 * logits * shape.dim
    kept = shape.kept_bytes / compute
    learned = shape.parts.weights.learned
    again = (logits - kept) * 2 * shape.dim if learned else 0.0
    looked_up = shape.sweeps_before * product
    return Work(
        flops=product * (3 if learned else 2),
        again_flops=again + looked_up,
        logit_bytes=logit_bytes(shape, logits, kept, cache_bytes),
        row_bytes=row_bytes(shape, logits - kept, logits),
    )


def logit_bytes(shape: HeadShape, logits: float, kept: float, cache_bytes: float) -> float:
    """Bytes of logits and exponentials that cross the bus."""
    compute, wide = shape.compute_dtype.itemsize, shape.wide_dtype.itemsize
    block = shape.block_rows * (shape.swept_samples + shape.dim) * compute
    through_memory = 2.0 * kept * compute  # written once, read once by the update
    if block <= cache_bytes:
        return through_memory
    passes = PLAIN_PASSES + SHIFT_PASSES + (0 if shape.casts else FACTOR_PASSES)
    in_blocks = passes * logits * compute
    if not shape.is_plain or shape.has_running_maximum:
        in_blocks += MASKING_PASSES * logits * wide
    return in_blocks + 2.0 * (logits - kept) * compute + kept * compute


def row_bytes(shape: HeadShape, again: float, logits: float) -> float:
    """Bytes of class rows and optimiser rows that cross the bus."""
    row, parts = shape.row_dtype.itemsize * shape.dim, 1 + shape.num_states
    swept = shape.swept_rows * shape.accumulation
    num_bytes = float(swept * row)
    if shape.sampled:
        num_bytes += 2 * swept * row
    num_bytes += swept * row * (again / logits if logits else 0.0)
    num_bytes += swept * row * shape.sweeps_before
    if shape.parts.weights.learned:
        num_bytes += 2 * parts * shape.moved_rows * row
    return num_bytes


def moved_outside(shape: HeadShape) -> float:
    """Bytes of rows that come from, and go back to, host memory or a file in one step."""
    if shape.storage == "device":
        return 0.0
    row = shape.row_dtype.itemsize * shape.dim * (1 + shape.num_states)
    return 2.0 * shape.moved_rows * row
