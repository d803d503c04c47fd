"""The numbers that the cost of a head depends on, all of the rank with the largest shard."""

from dataclasses import dataclass, replace

import torch

from mpsoftmax.head.arguments import Description
from mpsoftmax.head.candidates import DSoftmaxB, DSoftmaxK, UniformBlocks
from mpsoftmax.head.class_table import local_range
from mpsoftmax.head.mining import Hardest, Rule
from mpsoftmax.head.objectives.base import Context
from mpsoftmax.head.shift import static_shift
from mpsoftmax.kernels.blocked import block_size


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """A head and its batch."""

    parts: Description
    """Objective, candidates, negatives, baskets, weights, optimiser."""
    classes: int
    """C, over all ranks."""
    dim: int
    """D."""
    world: int
    """W."""
    samples: int
    """Valid samples of all ranks in one forward (n)."""
    capacity: int
    """Lines a rank hands to the gather: `batch_capacity`, or the largest local batch."""
    has_capacity: bool = True
    """Whether `batch_capacity` is given: without it sizes are exchanged first."""
    accumulation: int = 1
    """Forwards a step."""
    untouched: str = "frozen"
    compute_dtype: torch.dtype = torch.float32
    row_dtype: torch.dtype = torch.float32
    e_budget_bytes: int = 2**30
    storage: str = "device"
    prefetch: bool = False
    """Whether the loop calls `head.prefetch` before each forward, as `mpsoftmax train` does."""
    device: str = "cpu"
    """Kind of device the kernels run on: cpu or cuda."""

    @property
    def wide_dtype(self) -> torch.dtype:
        """Accumulate dtype."""
        return torch.float64 if self.compute_dtype == torch.float64 else torch.float32

    @property
    def work_dtype(self) -> torch.dtype:
        """What rows move in."""
        return torch.float32 if self.row_dtype == torch.bfloat16 else self.row_dtype

    @property
    def num_centres(self) -> int:
        """K."""
        return self.parts.weights.num_centres

    @property
    def num_states(self) -> int:
        """Optimiser rows a class row has."""
        return len(self.parts.optimizer.buffers)

    @property
    def local_classes(self) -> int:
        """Classes of the largest shard."""
        start, stop = local_range(self.classes, self.world, 0)
        return stop - start

    @property
    def local_rows(self) -> int:
        """Rows of the largest shard."""
        return self.local_classes * self.num_centres

    @property
    def positives(self) -> int:
        """Distinct own classes in the largest shard, where labels are uniform over the classes."""
        expected = self.classes * -torch.expm1(
            torch.tensor(self.samples * -1.0 / self.classes, dtype=torch.float64)
        )
        return min(self.local_classes, self.samples, -(-int(expected) // self.world))

    @property
    def sampled(self) -> bool:
        """Whether a step leaves classes out."""
        return self.parts.candidates.samples_classes

    @property
    def swept_classes(self) -> int:
        """Candidate classes of a forward in the largest shard."""
        if not self.sampled:
            return self.local_classes
        candidates = self.parts.candidates
        drawn = int(candidates.rate * self.local_classes)  # type: ignore[attr-defined]
        if isinstance(candidates, DSoftmaxK):
            drawn = max(1, drawn)
            return drawn + self.positives if candidates.batch_labels == "included" else drawn
        if isinstance(candidates, UniformBlocks) and drawn > self.positives:
            blocks = -(-(drawn - self.positives) // candidates.size)
            drawn = self.positives + blocks * candidates.size
        return min(self.local_classes, max(self.positives, drawn))

    @property
    def swept_rows(self) -> int:
        """S: candidate rows of a forward."""
        return self.swept_classes * self.num_centres

    @property
    def moved_rows(self) -> int:
        """Rows that a step moves; of several forwards' draws at most the sum."""
        if not self.sampled:
            return self.local_rows
        apart = 0 if self.parts.candidates.holds_positives else self.positives * self.num_centres
        return min(self.local_rows, self.accumulation * (self.swept_rows + apart))

    @property
    def swept_samples(self) -> int:
        """Samples that meet their negatives (m)."""
        candidates = self.parts.candidates
        if not isinstance(candidates, DSoftmaxB):
            return self.samples
        return min(self.samples, max(1, int(candidates.rate * self.samples)))

    @property
    def rule(self) -> Rule | None:
        """The mining rule after its warm-up."""
        baskets = self.parts.baskets
        return None if baskets is None else baskets.rule_at(baskets.warmup)

    @property
    def needs_target(self) -> bool:
        """Whether target cosines are reduced before the sweep."""
        return self.parts.objective.needs_target or bool(self.rule and self.rule.needs_target)

    @property
    def has_hard_negatives(self) -> bool:
        """Whether an objective or a filter treats hard negatives apart."""
        t, objective = torch.zeros(1), self.parts.objective
        context = Context(state=objective.initial_state())
        transforms = objective.transform(t, context), self.parts.negatives.transform(t)
        return any(transform is not None for transform in transforms)

    @property
    def mines(self) -> bool:
        """Whether classes of other baskets are looked at one by one."""
        return self.rule is not None and not self.rule.all_distinct

    @property
    def sweeps_before(self) -> int:
        """Products of all candidates that mining takes before the sweep."""
        rule = self.rule
        if rule is None:
            return 0
        return int(rule.num_dropped > 0) + int(isinstance(rule, Hardest))

    @property
    def has_running_maximum(self) -> bool:
        """Whether no constant shift fits at the initial state."""
        objective = self.parts.objective
        logits = objective.logit_range(objective.initial_state())
        return static_shift(logits, self.classes, self.compute_dtype) is None

    @property
    def is_plain(self) -> bool:
        """Whether the sweep does nothing but exponentiate."""
        simple = not self.has_hard_negatives and not self.mines and self.parts.weights.learned
        return simple and self.num_centres == 1

    @property
    def casts(self) -> bool:
        """Whether rows are cast before the products."""
        return self.row_dtype != self.compute_dtype

    @property
    def block_rows(self) -> int:
        """Rows in a block of the sweep."""
        size = block_size(self.dim, self.compute_dtype, torch.device(self.device))
        size = max(1, size // self.num_centres) * self.num_centres
        return min(size, self.swept_rows)

    @property
    def tile_rows(self) -> int:
        """Rows in a tile of the update."""
        return min(
            self.moved_rows, block_size(self.dim, self.work_dtype, torch.device(self.device))
        )

    @property
    def kept_rows(self) -> int:
        """Rows of one forward whose E is kept, where no other forward has kept any before."""
        if not self.parts.weights.learned:
            return 0
        fitting = self.e_budget_bytes // max(1, self.swept_samples * self.compute_dtype.itemsize)
        if fitting >= self.swept_rows:
            return self.swept_rows
        return fitting // self.block_rows * self.block_rows

    @property
    def e_bytes(self) -> int:
        """E of all forwards of a step, kept or not."""
        per_row = self.swept_samples * self.compute_dtype.itemsize
        return self.accumulation * self.swept_rows * per_row

    @property
    def kept_bytes(self) -> int:
        """E kept over all forwards of a step."""
        per_row = self.swept_samples * self.compute_dtype.itemsize
        budget = self.e_budget_bytes - self.e_budget_bytes % max(1, per_row * self.block_rows)
        fits = self.e_bytes <= self.e_budget_bytes
        return self.e_bytes if fits else self.kept_rows and budget

    def with_classes(self, classes: int) -> "HeadShape":
        """The same head over another number of classes."""
        return replace(self, classes=classes)
