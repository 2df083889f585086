"""Arrival processes: gaps with mean 1 from a named family, and session starts where a source has none."""

import math
from collections.abc import Callable, Iterator
from random import Random

from fairlead.core.params import Param, Values

Gap = Callable[[Random], float]
"""Draws one gap of mean 1."""

SECOND = 1_000_000


def gamma_gap(cv: float) -> Gap:
    """Return gamma gaps with coefficient of variation ``cv``; 1 is Poisson, 0 is a metronome."""
    if cv <= 0:
        return lambda _rng: 1.0
    shape = 1 / (cv * cv)
    return lambda rng: rng.gammavariate(shape, 1 / shape)


def weibull_gap(shape: float) -> Gap:
    """Return Weibull gaps; below 1 they are burstier than Poisson."""
    scale = 1 / math.gamma(1 + 1 / shape)
    return lambda rng: rng.weibullvariate(scale, shape)


def arrivals(rng: Random, per_second: float, gap: Gap) -> Iterator[int]:
    """Yield arrival times in microseconds without end, the first after one gap."""
    mean_us = SECOND / per_second
    at = 0.0
    while True:
        at += gap(rng) * mean_us
        yield round(at)


def start_params(per_second: float) -> tuple[Param, ...]:
    """Return the parameters of synthetic session starts."""
    return (
        Param("sessions_per_s", per_second, "sessions that start per second (Poisson)", low=1e-6, high=1e6),
        Param("seed", 1, "seed of the session starts", low=0),
    )


def session_starts(values: Values) -> tuple[Iterator[int], str]:
    """Return the starts of sessions, and a label that says they are synthetic."""
    rate, seed = values.number("sessions_per_s"), values.integer("seed")
    label = f"session starts are synthetic: Poisson, {rate:g} sessions/s, seed {seed}"
    return arrivals(Random(f"session starts/{seed}"), rate, gamma_gap(1)), label
