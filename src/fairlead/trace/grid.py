"""Arrival times that a source has rounded: found, and spread again."""

from array import array
from itertools import pairwise
from statistics import median

_JITTER_US = 5_000
"""Quantised times differ from their grid by up to 3 ms in Mooncake's files."""


def grid_us(at: "array[int]") -> int:
    """Return the grid that arrival times were rounded to, at least 1 s wide; 0 if there is none."""
    seen = sorted(set(at))
    steps = [later for before, later in pairwise(seen) if later - before > 2 * _JITTER_US]
    if len(steps) < 10:
        return 0
    points = [seen[0], *steps]
    gap = median(b - a for a, b in pairwise(points))
    grid = round(gap / 10_000) * 10_000
    if grid < 1_000_000:
        return 0
    off = sum(1 for time in at if abs(time - round(time / grid) * grid) > _JITTER_US)
    return grid if off <= 0.01 * len(at) else 0


def spread_evenly(at: "array[int]", grid: int) -> "array[int]":
    """Return ``at`` with the arrivals of each point of the grid spread evenly up to the next one."""
    points = [round(time / grid) for time in at]
    crowd: dict[int, int] = {}
    for point in points:
        crowd[point] = crowd.get(point, 0) + 1
    taken: dict[int, int] = {}
    spread = array("q", bytes(8 * len(at)))
    for index in sorted(range(len(at)), key=at.__getitem__):
        point = points[index]
        rank = taken.get(point, 0)
        taken[point] = rank + 1
        spread[index] = point * grid + rank * grid // crowd[point]
    return spread
