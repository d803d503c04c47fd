"""Numbers, sizes and times as people read them."""

import math

MISSING = "\u2013"
MINUS = "\u2212"


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits, thousands apart; whole numbers in full.

    >>> number(12345.0), number(0.123456), number(1.5e-7), number(None)
    ('12,345', '0.1235', '1.5e-07', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if value == int(value) and size < 1e15:
        text = f"{int(value):,}"
    elif size >= 10 ** (digits - 1):
        text = f"{value:,.0f}"
    elif size < 1e-4:
        return f"{value:.{digits - 1}g}"
    else:
        text = f"{value:.{min(digits - 1 - math.floor(math.log10(size)), digits)}f}"
    return text.replace("-", MINUS)


def fixed(value: float | None, decimals: int = 4) -> str:
    """So many decimals, for figures that stand below each other."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.{decimals}f}".replace("-", MINUS)


def signed(value: float, decimals: int = 4) -> str:
    """A difference, with its sign; a true minus sign."""
    text = f"{value:+,.{decimals}f}"
    return text.replace("-", MINUS)


def percent(value: float | None, decimals: int = 1) -> str:
    """A share in per cent."""
    return MISSING if value is None else f"{100 * value:.{decimals}f} %"


def short(value: float) -> str:
    """For an axis: 1,500 is 1.5k; no more digits than it has.

    >>> short(0.25), short(1500.0), short(2e6), short(1e-5), short(0.0)
    ('0.25', '1.5k', '2M', '1e-5', '0')
    """
    size = abs(value)
    if size == 0:
        return "0"
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit * 0.9999999:
            return f"{value / limit:.6g}{suffix}".replace("-", MINUS)
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        if exponent:
            return f"{mantissa}e{int(exponent)}"
    return f"{value:.6g}".replace("-", MINUS)


def byte_unit(num_bytes: float) -> tuple[float, str]:
    """The binary unit that suits a number of bytes, and its bytes."""
    for limit, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if num_bytes >= limit:
            return float(limit), unit
    return 1024.0, "KiB"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return MISSING if seconds is None else f"{number(1000 * seconds, 3)} ms"


def count(num: int, word: str) -> str:
    """1 step, 2 steps, 2 classes."""
    plural = word if num == 1 else f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{num:,} {plural}"
