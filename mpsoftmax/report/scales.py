"""From values to places on a picture: linear, logarithmic, and by normal deviates (for DET curves)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

from mpsoftmax.report.words import percent, short

NORMAL = NormalDist()
RATES = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


@dataclass(frozen=True)
class Scale:
    """A monotone map of [low, high] onto [start, stop] in pixels of the drawing.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``.
        start: Pixels.
        stop: Pixels.
        ticks: Values that are marked.
        bend: Straightens values first: identity, log10, normal deviate.
        label: A tick as text.
    """

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    bend: Callable[[float], float]
    label: Callable[[float], str] = short

    def at(self, value: float) -> float:
        """Where a value lies; beyond the ends it is drawn at them."""
        inside = min(max(value, self.low), self.high)
        low, high = self.bend(self.low), self.bend(self.high)
        part = (self.bend(inside) - low) / (high - low)
        return self.start + part * (self.stop - self.start)


def linear(
    values: Iterable[float],
    start: float,
    stop: float,
    *,
    whole: bool = False,
    rounded: bool = True,
    wanted: int = 5,
) -> Scale:
    """Covers the values.

    Args:
        values: At least one, finite.
        start: Pixels of the least.
        stop: Pixels of the largest.
        whole: Ticks at whole numbers only.
        rounded: Ends lie on ticks; else the values reach them.
        wanted: About as many ticks.
    """
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # one value: give it room
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = nice_step(high - low, wanted)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if rounded:
        low, high = first * step, last * step
    ticks = [k * step for k in range(first, last + 1)]
    inside = [t for t in ticks if low - 1e-9 * step <= t <= high + 1e-9 * step]
    return Scale(low, high, start, stop, tuple(float(f"{t:.12g}") for t in inside), float)


def nice_step(span: float, wanted: int) -> float:
    """1, 2, 2.5 or 5 times a power of ten, so that about `wanted` steps cover the span."""
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power >= rough * 0.999999)


def logarithmic(
    low: float, high: float, start: float, stop: float, *, base: int = 10, wanted: int = 6
) -> Scale:
    """Ends as given, 0 < low < high; ticks at powers of the base."""
    first, last = (
        math.ceil(math.log(low, base) - 1e-9),
        math.floor(math.log(high, base) + 1e-9),
    )
    every = max(1, math.ceil((last - first + 1) / wanted))
    ticks = tuple(float(base) ** k for k in range(first, last + 1, every))
    return Scale(low, high, start, stop, ticks, math.log10)


def deviates(low: float, high: float, start: float, stop: float) -> Scale:
    """Rates 0 < low < high < 1 by normal deviates, as DET curves have it: straight for normal scores."""
    ticks = tuple(rate for rate in RATES if low <= rate <= high)
    return Scale(low, high, start, stop, ticks, NORMAL.inv_cdf, rate_label)


def rate_label(rate: float) -> str:
    """A rate in per cent without needless zeros."""
    return percent(rate, 3).replace(" %", "").rstrip("0").rstrip(".") + "%"
