"""Paired differences with confidence intervals, and where a load curve breaks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


def student_t_cdf(t: float, degrees: int) -> float:
    """Return P(T <= t) of Student's t, exact for whole degrees of freedom (Abramowitz & Stegun 26.7.3-4)."""
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom; at least 1 is needed")
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 if odd else 1, degrees, 2):  # both series step their fractions by two
        total += term
        term *= square * k / (k + 1)
    inside = (angle + sine * total) * 2 / math.pi if odd else sine * total
    return 0.5 + math.copysign(inside, t) / 2


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the t below which a share ``probability`` in (0, 1) of Student's distribution lies."""
    if not 0 < probability < 1:
        raise ValueError(f"{probability} is not a probability between 0 and 1")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    high = 1.0
    while student_t_cdf(high, degrees) < probability:
        high *= 2
    low = 0.0
    for _ in range(200):  # the interval halves until it holds no float
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if student_t_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, slots=True)
class Difference:
    """``after`` against ``before`` over paired seeds: an estimate with its confidence interval."""

    before: float
    after: float
    """Means over the pairs."""
    pairs: int
    mean: float
    """Mean of after - before."""
    low: float | None
    high: float | None
    """Confidence interval of ``mean``; None for a single pair."""
    ratio: float | None
    """Geometric mean of after / before; None unless asked for and every value is positive."""
    ratio_low: float | None
    ratio_high: float | None
    as_ratio: bool = True
    """Whether the ratio is what matters, as for times and amounts, or the difference, as for shares."""

    @property
    def seen(self) -> bool | None:
        """Whether the interval (of the ratio where there is one) excludes no change; None for one pair."""
        if self.ratio_low is not None and self.ratio_high is not None:
            return not self.ratio_low <= 1 <= self.ratio_high
        if self.low is None or self.high is None:
            return None
        return not self.low <= 0 <= self.high


def is_amount(unit: str) -> bool:
    """Return whether values of a measure vary in proportion to their size: all but shares and indices do."""
    return unit not in {"share", "index"}


def paired(
    before: Mapping[int, float],
    after: Mapping[int, float],
    confidence: float = CONFIDENCE,
    *,
    as_ratio: bool = True,
) -> Difference | None:
    """Compare two sets of values by their common keys (seeds); None when they have none in common.

    The interval is Student's on the differences within pairs: common random numbers cancel what the
    workload does to both. The ratio's interval is the same on the logarithms, for times and amounts, which
    vary in proportion to their size; shares go without (``as_ratio=False``).
    """
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return None
    ones, others = [before[s] for s in seeds], [after[s] for s in seeds]
    mean, half = _interval([b - a for a, b in zip(ones, others, strict=True)], confidence)
    ratio = ratio_low = ratio_high = None
    if as_ratio and min(*ones, *others) > 0:
        log, log_half = _interval([math.log(b / a) for a, b in zip(ones, others, strict=True)], confidence)
        ratio = math.exp(log)
        if log_half is not None:
            ratio_low, ratio_high = math.exp(log - log_half), math.exp(log + log_half)
    return Difference(
        before=math.fsum(ones) / len(ones),
        after=math.fsum(others) / len(others),
        pairs=len(seeds),
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        as_ratio=as_ratio,
    )


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float | None]:
    """Return the mean and half the width of its confidence interval, None for one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, student_t_quantile((1 + confidence) / 2, n - 1) * math.sqrt(variance / n)


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One policy at one load."""

    load: float
    ttft_ms: float
    """Mean TTFT."""
    goodput: float
    """Requests a second that met their SLOs."""
    saturated: bool


@dataclass(frozen=True, slots=True)
class Knee:
    """Where a load curve breaks."""

    load: float
    """The highest load before the break."""
    breaks_at: float
    """The next load, where it is broken."""
    why: str


TTFT_TIMES = 5.0
GOODPUT_SHARE = 0.25


def knee(points: Sequence[LoadPoint]) -> Knee | None:
    """Return the knee of a load curve; None where it does not break.

    It breaks at the first load at which the run is saturated, mean TTFT exceeds 5 times its value at the
    lowest load, or goodput grew by less than a quarter of what the load grew by.
    """
    ordered = sorted(points, key=lambda p: p.load)
    for before, at in itertools.pairwise(ordered):
        why = _broken(ordered[0], before, at)
        if why:
            return Knee(before.load, at.load, why)
    return None


def _broken(lowest: LoadPoint, before: LoadPoint, at: LoadPoint) -> str:
    if at.saturated:
        return "saturated"
    if at.ttft_ms > TTFT_TIMES * lowest.ttft_ms:
        return f"mean TTFT over {TTFT_TIMES:g} times that at the lowest load"
    expected = before.goodput * (at.load / before.load - 1) if before.load > 0 else 0.0
    if at.goodput - before.goodput < GOODPUT_SHARE * expected:
        return "goodput stopped growing"
    return ""
