"""Whether a run kept up with what arrived: a saturated run measures its own length, not its policy."""

from collections.abc import Sequence
from typing import Any

from fairlead.report.run import DONE, Run

KEPT_UP = 0.95
GREW = 0.02
RULE = (
    "saturated: in the second half of the arrivals fewer than 95 % as many requests completed as arrived, and"
    " either the fitted line through the number waiting rose by more than 2 % of those arrivals or more than"
    " 5 % of them were never completed; loaded: something waited in at least half of that time's samples;"
    " light: neither"
)


def slope(values: Sequence[float]) -> float:
    """Return the least-squares slope of equally spaced samples, a sample; 0 for fewer than two."""
    n = len(values)
    if n < 2:
        return 0.0
    middle = (n - 1) / 2
    return 12 * sum((i - middle) * v for i, v in enumerate(values)) / (n * (n * n - 1))


def utilisation(run: Run) -> dict[str, Any]:
    """Return the run's label by ``RULE`` and the figures behind it.

    A closed loop slows its own clients down, so that it is seldom labelled saturated; read its waiting.
    """
    requests = run.requests
    start, end = (requests.arrived[0], requests.arrived[-1]) if len(requests) else (0, 0)
    half = (start + end) // 2
    arrived = sum(1 for at in requests.arrived if at > half)
    completed = lost = 0
    for at, ended, outcome in zip(requests.arrived, requests.ended, requests.outcome, strict=True):
        if outcome == DONE:
            completed += half < ended <= end
        elif at > half:
            lost += 1
    waiting = _total_waiting(run, half, end)
    rise = slope(waiting) * len(waiting)
    ratio = completed / arrived if arrived else None
    behind = ratio is not None and ratio < KEPT_UP
    if behind and (rise > GREW * arrived or lost > (1 - KEPT_UP) * arrived):
        label = "saturated"
    elif waiting and sum(1 for w in waiting if w > 0) * 2 >= len(waiting):
        label = "loaded"
    else:
        label = "light"
    return {
        "label": label,
        "rule": RULE,
        "completed_per_arrived": None if ratio is None else round(ratio, 4),
        "waiting_slope_per_s": round(slope(waiting) * 1e6 / max(1, run.series.interval_us), 6),
        "mean_waiting": round(sum(waiting) / len(waiting), 3) if waiting else None,
    }


def _total_waiting(run: Run, start_us: int, end_us: int) -> list[float]:
    """Return requests waiting anywhere at the samples in (start, end]."""
    interval = max(1, run.series.interval_us)
    columns = run.series.queued or run.series.waiting
    first, last = start_us // interval, end_us // interval
    return [float(sum(row)) for row in zip(*(column[first:last] for column in columns), strict=True)]
