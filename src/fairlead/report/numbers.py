"""Numbers as text: few digits, one unit, the same everywhere."""

from fairlead.report.statistics import Difference

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
FACTOR = 3.0


def duration(ms: float | None) -> str:
    """Return a time given in milliseconds: 12.3 ms, 845 ms, 1.31 s, 75.0 s, 4.2 min."""
    if ms is None:
        return NONE
    if ms < 1000:
        return f"{digits(ms)} ms"
    return f"{digits(ms / 1000)} s" if ms < 180_000 else f"{digits(ms / 60_000)} min"


def digits(value: float | None) -> str:
    """Return about three significant digits, thousands separated, no exponent."""
    if value is None:
        return NONE
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def shown(value: float | None, unit: str) -> str:
    """Return a measure's value as text. ``unit``: ``ms``, ``share``, ``index``, or anything for an amount."""
    if value is None:
        return NONE
    if unit == "ms":
        return duration(value)
    if unit == "share":
        return percent(value, 1)
    return f"{value:.3f}" if unit == "index" else digits(value)


def short(value: float) -> str:
    """Return a number for an axis: 0, 0.5, 20, 1.5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def short_time(ms: float) -> str:
    """Return a time for an axis, given in milliseconds."""
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.3g} s" if ms < 60_000 else f"{ms / 60_000:.3g} min"


def percent(share: float | None, decimals: int = 0) -> str:
    """Return a share as a percentage; never 0% for what is not 0, nor 100% for what is less."""
    if share is None:
        return NONE
    least: float = 10**-decimals
    if 0 < 100 * share < least / 2:
        return f"<{least:.{decimals}f}%"
    text = f"{100 * share:.{decimals}f}%"
    whole = share < 1 and text == f"{100:.{decimals}f}%"
    return f">{100 - least:.{decimals}f}%" if whole else text


def change(difference: Difference | None, none: str = "no difference seen") -> str:
    """Return a difference with its confidence interval, such as -35% (-41 to -29), 4.2x (3.1 to 5.7).

    Ratios from 3 up are factors; differences of shares are percentage points. ``none``: what to say where
    the interval includes no difference.
    """
    if difference is None:
        return ""
    amount, within = _parts(difference)
    if difference.seen is None:
        return amount
    return f"{amount} ({within})" if difference.seen else f"{none} ({within})"


def interval(difference: Difference) -> str:
    """Return the confidence interval alone, as ``change`` writes it; nothing for one pair."""
    return "" if difference.seen is None else _parts(difference)[1]


def ratio(value: float) -> str:
    """Return a ratio as a change, such as +3.2%, -35%, 4.2x."""
    return f"{digits(value)}{TIMES}" if value >= FACTOR else f"{_signed(value - 1)}%"


def points(change: float) -> str:
    """Return a difference of two shares in percentage points."""
    return f"{_signed(change)} points"


def _parts(difference: Difference) -> tuple[str, str]:
    if difference.ratio is None:
        low, high = difference.low or 0.0, difference.high or 0.0
        if difference.as_ratio:  # something was 0
            return f"{difference.mean:+,.0f}", f"{low:+,.0f} to {high:+,.0f}"
        low, high = max(-1.0, low), min(1.0, high)  # a share cannot change by more
        return points(difference.mean), f"{_signed(low)} to {_signed(high)}"
    low, high = difference.ratio_low or 1.0, difference.ratio_high or 1.0
    if max(difference.ratio, low, high) >= FACTOR:
        return f"{digits(difference.ratio)}{TIMES}", f"{digits(low)} to {digits(high)}{TIMES}"
    return f"{_signed(difference.ratio - 1)}%", f"{_signed(low - 1)} to {_signed(high - 1)}%"


def _signed(share: float) -> str:
    value = 100 * share
    text = f"{abs(value):,.0f}" if abs(value) >= 9.95 else f"{abs(value):.1f}"
    return text if text == "0.0" else (MINUS if value < 0 else "+") + text
