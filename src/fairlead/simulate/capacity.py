"""How much of a workload a fleet can serve: what ``--load`` is a share of.

The maximum is the highest rate of arrivals that reference policies (``lmetric`` over ``fcfs``) follow:
between a fifth and four fifths of all ends, they complete requests at 95% or more of the pace at which
a fleet without load would complete them with the same arrivals. Found by bisection over the spacing of
arrivals, and kept on disk by content and code. Of generators, which are the same all along, a first part is
looked at.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fairlead.simulate.code import hash_of
from fairlead.simulate.settings import GATEWAY, Settings
from fairlead.simulate.world import World
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.transform import gamma_arrivals, limit, stretch

REFERENCE = ("lmetric", "fcfs")
FOLLOWS = 0.95
"""Share of the pace of a fleet without load that counts as following."""
PRECISION = 0.03
FEWEST = 16
"""Fewer requests than this have no pace in the middle of a run."""
MOST_OVER_GUESS = 1e4
"""A search that leaves its first guess by so much finds no maximum: too few requests run at once."""
LONGEST = 20_000
"""Requests that are looked at; a workload's first ones."""
LONGEST_GENERATED = 4_000
"""Likewise of a generator."""


class Capacity(NamedTuple):
    """The measured maximum."""

    requests_per_s: float
    requests: int
    """How many it was measured on."""


def cache_folder() -> Path:
    """Return where results of the past are kept; ``FAIRLEAD_CACHE`` overrides the usual place."""
    base = os.environ.get("FAIRLEAD_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairlead"


def measure(
    trace: Trace,
    settings: Settings,
    *,
    longest: int = LONGEST,
    keep: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Capacity:
    """Return the most requests a second that a fleet like ``settings``'s keeps up with.

    Raises ``TraceError`` where there are too few to tell.

    Policies, seeds and faults of ``settings`` do not matter; engines and their number do.
    """
    reference = _reference(settings)
    path = cache_folder() / "capacity" / f"{_key(trace, reference, longest)}.json"
    if keep and path.is_file():
        found = json.loads(path.read_text())
        return Capacity(found["requests_per_s"], found["requests"])
    part = spaced(limit(trace, longest))
    if not part.duration_us or part.requests < FEWEST:
        raise _too_few(part)
    rate = _search(part, reference, progress or (lambda _: None))
    found = Capacity(rate, part.requests)
    if keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(found._asdict()))
        temporary.replace(path)
    return found


def at_load(trace: Trace, capacity: Capacity, load: float) -> Trace:
    """Return the trace with arrivals spaced so that ``load`` of the maximum arrives."""
    trace = spaced(trace)
    return stretch(trace, rate_of(trace) / (load * capacity.requests_per_s))


def spaced(trace: Trace) -> Trace:
    """Return a trace whose sessions do not all start at once, so that their spacing can be scaled."""
    return trace if trace.duration_us else gamma_arrivals(trace, 1.0)


def rate_of(trace: Trace) -> float:
    """Return requests a second while sessions start."""
    return trace.requests / (trace.duration_us / 1e6)


def _reference(settings: Settings) -> Settings:
    policy, order = REFERENCE
    kept = {
        name: getattr(settings, name)
        for name in (
            "workers", "engine", "kv_tokens", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
            "prefill_backlog_us", "hop_us", "costs", "async_scheduling",
        )
    }  # fmt: skip
    return Settings(policy=policy, order=order, topology=GATEWAY, interval_us=60_000_000, **kept)


def _key(trace: Trace, reference: Settings, longest: int) -> str:
    told = f"{hash_of(__name__)} {trace.identity} {reference} {longest}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _search(trace: Trace, settings: Settings, say: Callable[[str], None]) -> float:
    own_rate = rate_of(trace)

    def ends_at(rate: float) -> list[tuple[int, int]]:
        """Return start and length of every session's every turn, if so many requests a second arrive."""
        world = World(stretch(trace, own_rate / rate), settings)
        ends: list[tuple[int, int]] = []
        world.clients.ends = ends
        world.run()
        return ends

    # With everything at once: a first guess. With next to nothing: how long each turn takes by itself.
    guess = _pace(sum(end) for end in ends_at(1e4 * own_rate))
    if guess <= 0:
        raise _too_few(trace)
    quiet_rate = guess / 20
    quiet = ends_at(quiet_rate)

    def follows(rate: float) -> bool:
        ideal = _pace(int(start * quiet_rate / rate) + length for start, length in quiet)
        share = _pace(sum(end) for end in ends_at(rate)) / ideal
        say(f"{rate:.4g} requests/s: {share:.0%} of the pace without load")
        return share >= FOLLOWS

    low = high = guess
    if follows(guess):
        while follows(high := high * 1.4):
            low = high
            if high > MOST_OVER_GUESS * guess:
                raise _too_few(trace)
    else:
        while not follows(low := low / 1.4):
            high = low
            if low * MOST_OVER_GUESS < guess:
                raise _too_few(trace)
    while high / low > 1 + PRECISION:
        middle = (low * high) ** 0.5
        if follows(middle):
            low = middle
        else:
            high = middle
    return low


def _too_few(trace: Trace) -> TraceError:
    return TraceError(
        f"{trace.name}: {trace.requests} requests are too few to measure the maximum load with: take more of"
        " them, in more sessions, or take their arrivals as they are (--load 0)"
    )


def _pace(ends: Iterable[int]) -> float:
    """Return requests that end in a second, in the middle of a run."""
    times = sorted(ends)
    low, high = len(times) // 5, len(times) * 4 // 5
    return (high - low) * 1e6 / max(1, times[high] - times[low])
