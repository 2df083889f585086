"""Mean, spread and percentiles of a sample, named as ``vllm bench serve`` names them."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
CURVE_POINTS = 201


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the percentile of an ordered, non-empty sample by linear interpolation (numpy's default)."""
    place = percent / 100 * (len(ordered) - 1)
    low = min(int(place), len(ordered) - 1)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def field_names(metric: str) -> list[str]:
    """Return the names that ``describe`` gives: mean, median, std and percentiles, in milliseconds."""
    return [f"{word}_{metric}_ms" for word in ("mean", "median", "std", *map(_word, PERCENTILES))]


def describe(metric: str, ordered_us: Sequence[float]) -> dict[str, float | None]:
    """Return mean, median, standard deviation (of the whole sample) and percentiles, in milliseconds.

    ``ordered_us``: the sample in microseconds, ascending. All values are None for an empty sample:
    a latency that was not measured is not 0.
    """
    names = field_names(metric)
    if not ordered_us:
        return dict.fromkeys(names)
    mean = math.fsum(ordered_us) / len(ordered_us)
    offsets = [value - mean for value in ordered_us]
    deviation = math.sqrt(sum(map(mul, offsets, offsets)) / len(ordered_us))
    values = [mean, percentile(ordered_us, 50), deviation]
    values += [percentile(ordered_us, p) for p in PERCENTILES]
    return {name: round(value / 1000, 4) for name, value in zip(names, values, strict=True)}


def describe_histogram(metric: str, counts: Mapping[int, int]) -> dict[str, float | None]:
    """Return the same figures for a sample given as value in microseconds → how often."""
    names = field_names(metric)
    keys = sorted(key for key, count in counts.items() if count > 0)
    if not keys:
        return dict.fromkeys(names)
    ends = list(accumulate(counts[key] for key in keys))
    total = ends[-1]
    mean = math.fsum(key * counts[key] for key in keys) / total
    variance = math.fsum((key - mean) ** 2 * counts[key] for key in keys) / total
    percents = _walk(keys, ends, PERCENTILES)
    values = [mean, percents[0], math.sqrt(variance), *percents]
    return {name: round(value / 1000, 4) for name, value in zip(names, values, strict=True)}


def curve(ordered_us: Sequence[float]) -> list[float]:
    """Return 201 quantiles from 0 to 100 % in steps of half a percent, in milliseconds; [] for none."""
    if not ordered_us:
        return []
    last = CURVE_POINTS - 1
    return [round(percentile(ordered_us, 100 * k / last) / 1000, 3) for k in range(CURVE_POINTS)]


def _walk(keys: Sequence[int], ends: Sequence[int], percents: Sequence[float]) -> list[float]:
    """Return percentiles of the histogram whose bin ``i`` ends before rank ``ends[i]``; percents ascend."""
    found, at = [], 0
    for percent in percents:
        place = percent / 100 * (ends[-1] - 1)
        rank = int(place)
        while ends[at] <= rank:
            at += 1
        following = keys[at] if rank + 1 < ends[at] or at + 1 == len(keys) else keys[at + 1]
        found.append(keys[at] + (following - keys[at]) * (place - rank))
    return found


def _word(percent: float) -> str:
    return f"p{percent:g}"
