"""Measures of fairness: max-min shares, Jain's index, gaps inside windows of time."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_US = 60_000_000
CELLS = 400_000
"""About how many (client, window) pairs are looked at: long runs of many clients use fewer windows."""


def jain(values: Sequence[float]) -> float:
    """Return Jain's index (Σx)²/(n·Σx²): 1 when all are equal, 1/n when one has everything, 1 for none."""
    top = max(values, default=0.0)
    if not top > 0:
        return 1.0
    scaled = [value / top for value in values]  # squares of tiny or huge values would leave the floats
    return float(sum(scaled) ** 2 / (len(scaled) * sum(x * x for x in scaled)))


def fair_shares(demands: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """Split ``capacity`` max-min fairly: in proportion to weight, and nobody gets more than its demand."""
    shares = [0.0] * len(demands)
    left, weight = capacity, sum(weights)
    for i in sorted(range(len(demands)), key=lambda i: demands[i] / weights[i]):
        shares[i] = min(demands[i], left * weights[i] / weight)
        left -= shares[i]
        weight -= weights[i]
        if weight <= 0:
            break
    return shares


def capped_jain(service: Sequence[float], demands: Sequence[float], weights: Sequence[float]) -> float:
    """Return Jain's index of x = service / max-min fair share, over clients that wanted anything.

    With everyone backlogged the shares go by weight, and x is service over weight up to a constant. A
    client that wanted less than its share counts as 1 when it got all of it.
    """
    wanted = [max(d, s) for d, s in zip(demands, service, strict=True)]
    shares = fair_shares(wanted, weights, sum(service))
    return jain([s / share for s, share in zip(service, shares, strict=True) if share > 0])


@dataclass(frozen=True, slots=True)
class Windows:
    """What 60 s windows over the time of arrivals showed. Rates are service units a second."""

    seconds: float
    """Length of a window: 60 s, or the whole time of arrivals where that is shorter; 0 for no window."""
    gaps: Sequence[float]
    """A window: max over clients j of min(s_max - s_j, demand_j - s_j), s service over weight, as a rate."""
    jains: Sequence[float]
    """A window: demand-capped Jain's index, what waited at its start counting as demand."""

    def as_json(self) -> dict[str, float | int | None]:
        """Return the figures by the names that results use."""
        gaps, jains = self.gaps, self.jains
        return {
            "window_s": self.seconds,
            "windows": len(gaps),
            "max": round(max(gaps), 3) if gaps else None,
            "mean": round(statistics.fmean(gaps), 3) if gaps else None,
            "variance": round(statistics.pvariance(gaps), 3) if gaps else None,
            "jain_mean": round(statistics.fmean(jains), 6) if jains else None,
            "jain_min": round(min(jains), 6) if jains else None,
        }


def look_through_windows(
    service: Sequence[Sequence[float]],
    demand: Sequence[Sequence[float]],
    weights: Sequence[float],
    interval_us: int,
    until_us: int,
) -> Windows:
    """Return gaps and Jain's indices of windows that end no later than ``until_us``.

    ``service`` and ``demand``: a client's totals so far at the end of every interval, in service units;
    ``demand`` in the units of ``service``, that is at the hit rate that the client got.
    """
    samples = min(len(service[0]), until_us // interval_us) if service else 0
    if samples < 1:
        return Windows(0.0, [], [])
    width = min(samples, max(1, round(WINDOW_US / interval_us)))
    seconds = width * interval_us / 1e6
    ends = range(width - 1, samples)
    step = -(-len(ends) // max(300, CELLS // len(service)))
    gaps, jains = [], []
    for end in ends[::step]:
        start = end - width
        before = [
            (s[start], d[start]) if start >= 0 else (0.0, 0.0) for s, d in zip(service, demand, strict=True)
        ]
        got = [s[end] - b[0] for s, b in zip(service, before, strict=True)]
        came = [d[end] - b[1] for d, b in zip(demand, before, strict=True)]
        waited = [max(0.0, b[1] - b[0]) for b in before]
        gaps.append(_gap(got, came, weights) / seconds)
        jains.append(capped_jain(got, [c + w for c, w in zip(came, waited, strict=True)], weights))
    return Windows(seconds, gaps, jains)


def _gap(got: Sequence[float], came: Sequence[float], weights: Sequence[float]) -> float:
    best = max(g / w for g, w in zip(got, weights, strict=True))
    return max(max(0.0, min(best - g / w, (c - g) / w)) for g, c, w in zip(got, came, weights, strict=True))
