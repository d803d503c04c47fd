"""Rows of one method put together: mean and 95 % interval over seeds."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

# Student's t at 97.5 %, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Estimate:
    """Mean of n runs."""

    mean: float
    half_width: float
    """Of the 95 % interval (Student's t); infinite for one run."""
    num: int

    def text(self, digits: int = 1) -> str:
        """As in the tables: with three runs or more the interval, else the mean alone."""
        if self.num < 3:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and interval of figures of different seeds."""
    found = list(values)
    num = len(found)
    if num < 2:
        return Estimate(fmean(found), math.inf, num)
    quantile = _T.get(num - 1, 1.96)
    return Estimate(fmean(found), quantile * stdev(found) / math.sqrt(num), num)


@dataclass(frozen=True)
class Method:
    """All runs of one method on one data set with the same settings."""

    dataset: str
    name: str
    rows: tuple[Mapping[str, Any], ...]

    def figure(self, name: str) -> Estimate | None:
        """A metric or a column over the seeds; None if no run has it."""
        values = [row["metrics"].get(name, row.get(name)) for row in self.rows]
        known = [value for value in values if isinstance(value, int | float)]
        return estimate(known) if known else None


def difference(method: Method, other: Method, name: str) -> Estimate | None:
    """`method` minus `other`, seed by seed: what seeds have in common drops out. None below three seeds."""
    of_seed = {row["seed"]: row["metrics"].get(name) for row in other.rows}
    pairs = [(row["metrics"].get(name), of_seed.get(row["seed"])) for row in method.rows]
    found = [one - two for one, two in pairs if one is not None and two is not None]
    return estimate(found) if len(found) >= 3 else None


def methods(rows: Rows, claim: str) -> dict[str, list[Method]]:
    """Methods by data set, in the order of their first rows; the newest settings of each count.

    Rows of other settings than the method's last row are left out: they were tried before.
    """
    grouped: defaultdict[str, defaultdict[str, list[Mapping[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if row["claim"] == claim:
            grouped[row["dataset"]][row["method"]].append(row)
    return {
        dataset: [
            Method(
                dataset,
                name,
                tuple(row for row in found if row["settings"] == found[-1]["settings"]),
            )
            for name, found in of_dataset.items()
        ]
        for dataset, of_dataset in grouped.items()
    }
