"""Interleaved repetitions: what is compared is measured in turn, so that other load disturbs all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of every repetition but the first, which warms up."""

    cpu_s: Sequence[float]
    """User and system time of the process, all threads."""
    wall_s: Sequence[float]

    @property
    def cpu(self) -> float:
        """Median."""
        return statistics.median(self.cpu_s)

    @property
    def wall(self) -> float:
        """Median."""
        return statistics.median(self.wall_s)

    def row(self, name: str) -> dict[str, float]:
        """Columns of a result."""
        return {
            f"{name}_cpu_s": round(self.cpu, 5),
            f"{name}_cpu_s_min": round(min(self.cpu_s), 5),
            f"{name}_cpu_s_max": round(max(self.cpu_s), 5),
            f"{name}_wall_s": round(self.wall, 5),
        }


def interleaved(timed: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, Times]:
    """Times of each function, called in turn `repeat` times after a warm-up round."""
    cpu: dict[str, list[float]] = {name: [] for name in timed}
    wall: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeat + 1):
        for name, function in timed.items():
            start, start_wall = time.process_time(), time.perf_counter()
            function()
            cpu[name].append(time.process_time() - start)
            wall[name].append(time.perf_counter() - start_wall)
    return {name: Times(cpu[name][1:], wall[name][1:]) for name in timed}


def ratios(above: Times, below: Times) -> Sequence[float]:
    """CPU seconds of one over those of the other, repetition by repetition."""
    return [a / max(b, 1e-9) for a, b in zip(above.cpu_s, below.cpu_s, strict=True)]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest as columns of a result."""
    return {
        name: round(statistics.median(values), 3),
        f"{name}_min": round(min(values), 3),
        f"{name}_max": round(max(values), 3),
    }
