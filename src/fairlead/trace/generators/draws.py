"""Random draws, in bulk: one named stream for each use, so that no use disturbs another."""

import math
from collections.abc import Iterator
from random import Random

from fairlead.core.params import PolicyError

_CHUNK = 1024


def evenly(rng: Random, mean: int, spread: float) -> Iterator[int]:
    """Yield whole numbers from mean * (1 - spread) to mean * (1 + spread), all as likely, at least 1."""
    low = max(1, math.ceil(mean * (1 - spread)))
    values = range(low, max(low, math.floor(mean * (1 + spread))) + 1)
    while True:
        yield from rng.choices(values, k=_CHUNK)


def skewed(rng: Random, mean: float, cv: float) -> Iterator[int]:
    """Yield lognormal whole numbers of this mean and coefficient of variation, at least 1."""
    variance = math.log1p(cv * cv)
    mu, sigma = math.log(mean) - variance / 2, math.sqrt(variance)
    while True:
        yield from [max(1, round(rng.lognormvariate(mu, sigma))) for _ in range(_CHUNK)]


def pauses(rng: Random, mean_s: float) -> Iterator[int]:
    """Yield exponential pauses in microseconds; all 0 if the mean is."""
    mean = mean_s * 1e6
    while True:
        yield from [int(rng.expovariate(1.0) * mean) for _ in range(_CHUNK)]


def times(rng: Random, rate: float, cv: float) -> Iterator[int]:
    """Yield arrival times in microseconds: gamma gaps of 1 / rate seconds on average.

    ``cv`` is the gaps' coefficient of variation: 1 is Poisson, above 1 bursts, 0 a metronome.
    """
    mean, now = 1e6 / rate, 0.0
    shape = 1 / (cv * cv) if cv > 0 else 0.0
    while True:
        for _ in range(_CHUNK):
            if cv == 1:
                now -= math.log(1.0 - rng.random()) * mean  # as expovariate(1.0) draws, which takes longer
            elif shape:
                now += rng.gammavariate(shape, mean / shape)
            else:
                now += mean
            yield int(now)


def picks(rng: Random, clients: int, skew: float) -> Iterator[int]:
    """Yield numbers of clients: client i has a share in proportion to 1 / (i + 1) ** skew."""
    if not skew:
        while True:
            yield from rng.choices(range(clients), k=_CHUNK)
    sums: list[float] = []
    for i in range(clients):
        sums.append((sums[-1] if sums else 0.0) + (i + 1) ** -skew)
    while True:
        yield from rng.choices(range(clients), cum_weights=sums, k=_CHUNK)


def numbers(where: str, name: str, text: str, count: int) -> list[float]:
    """Read a list such as ``1.5/3``, repeated until there are ``count``. Raises ``PolicyError``."""
    try:
        found = [float(part) for part in text.split("/")]
    except ValueError:
        found = []
    if not found or not all(value > 0 and math.isfinite(value) for value in found):
        raise PolicyError(f"{where}: parameter '{name}' takes numbers above 0 like 1.5/3, not {text!r}")
    return [found[i % len(found)] for i in range(count)]
