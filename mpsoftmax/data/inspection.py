"""What ``inspect`` reports about a set, and how it reads as text."""

import itertools
from dataclasses import dataclass, field

import numpy as np

EXAMPLES = 5
# Lower ends of the class-size buckets; the last is open.
BUCKETS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Problem:
    """One kind of problem.

    Attributes:
        kind: What is wrong.
        count: How often, among the images examined.
        examples: Up to five of them.
    """

    kind: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The findings about one set.

    Attributes:
        path: What was inspected.
        format: ``folder``, ``tar``, ``rec (insightface)``, ``rec (im2rec)``, ``arrow``, ``parquet``,
            ``webdataset``, ``list of paths``, ``bin``, or the name of a built-in set.
        num_classes: Classes, empty ones included.
        num_images: Images, ignored ones included.
        num_ignored: Images labelled -1.
        class_sizes: int64 [num_classes], images of each class.
        num_examined: Images whose bytes were read: all, or a random sample with a fixed seed.
        sizes: Number of examined images by (height, width) in pixels, most frequent first.
        num_bytes: Encoded bytes of the examined images.
        problems: What is wrong, if anything.
        num_pairs: Verification pairs (``bin`` only).
        num_same: Pairs of the same class (``bin`` only).
    """

    path: str
    format: str
    num_classes: int
    num_images: int
    num_ignored: int
    class_sizes: np.ndarray = field(repr=False)
    num_examined: int
    sizes: dict[tuple[int, int], int]
    num_bytes: int
    problems: tuple[Problem, ...]
    num_pairs: int | None = None
    num_same: int | None = None

    def histogram(self) -> dict[str, int]:
        """Number of classes by number of images, in buckets such as ``"2-4"``."""
        counts, _ = np.histogram(self.class_sizes, [*BUCKETS, np.iinfo(np.int64).max])
        names = [
            str(low) if low + 1 == high else f"{low}-{high - 1}"
            for low, high in itertools.pairwise(BUCKETS)
        ]
        return dict(zip([*names, f"{BUCKETS[-1]}+"], counts.tolist(), strict=True))

    def render(self) -> str:
        """Plain text for people."""
        lines = [f"{self.path}: {self.format}", f"images    {self.num_images:,}"]
        if self.num_ignored and self.num_classes:
            lines.append(f"ignored   {self.num_ignored:,} (label -1)")
        if self.num_pairs is not None:
            lines.append(f"pairs     {self.num_pairs:,} ({self.num_same:,} same)")
        if self.num_classes:
            lines += self._render_classes()
        examined = f"{self.num_examined:,} of {self.num_images:,} images"
        mean = self.num_bytes / max(self.num_examined, 1)
        lines.append(f"examined  {examined}, mean {mean:,.0f} bytes")
        for (height, width), count in list(self.sizes.items())[:EXAMPLES]:
            lines.append(f"  {height} x {width} (height x width): {count:,}")
        if len(self.sizes) > EXAMPLES:
            lines.append(f"  and {len(self.sizes) - EXAMPLES:,} more sizes")
        lines.append(f"problems  {len(self.problems) or 'none found'}")
        for problem in self.problems:
            lines.append(f"  {problem.kind}: {problem.count:,}")
            lines += [f"    {example}" for example in problem.examples]
            if problem.count > len(problem.examples):
                lines.append(f"    and {problem.count - len(problem.examples):,} more")
        return "\n".join(lines)

    def _render_classes(self) -> list[str]:
        sizes = self.class_sizes
        singles = int((sizes == 1).sum())
        lines = [
            f"classes   {self.num_classes:,}",
            f"per class min {sizes.min():,}, median {np.median(sizes):,.0f}, max {sizes.max():,};"
            f" {singles:,} classes with a single image",
        ]
        rows = {name: count for name, count in self.histogram().items() if count}
        widest = max(rows.values())
        for name, count in rows.items():
            bar = "#" * max(1, round(40 * count / widest))
            lines.append(f"  {name:>8} images {count:>10,} classes {bar}")
        return lines
