"""What a seed draws from a recorded workload, which is not a distribution.

A generator makes everything anew from its seed. A trace is the same for every seed, so that a confidence
interval over seeds alone would speak only of clients' names and the policies' random numbers. Two samples say
more, and each is labelled with what it leaves as it was:

- ``gaps``: the same requests in the same order, so that prefixes meet as they did, at other times: gaps
  between arrivals are drawn from the trace's own in runs of consecutive ones (a circular block bootstrap;
  Politis and Romano, 1992) and scaled to the trace's duration. Bursts longer than a run are lost.
- a window: one of n parts that follow each other in time. Other requests in each, all of them real, but
  fewer, and with caches that begin empty.

Drawing whole sessions with replacement is not offered: where turns of a conversation are separate
sessions, as in Mooncake's traces, it repeats prompts and breaks chains, and hit rates with them.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import isqrt
from random import Random

from fairlead.trace.model import Session, Trace, TraceError
from fairlead.trace.transform import surveyed


@dataclass(frozen=True, slots=True)
class Sample:
    """What is taken of a trace: a window of it, then perhaps other gaps between arrivals."""

    gaps: bool = False
    """Draw the gaps between arrivals anew, by the workload's seed."""
    window: int = 1
    """Which part, counted from 1 ..."""
    windows: int = 1
    """... of so many, equal in sessions and in order of arrival."""

    def check(self) -> None:
        """Raise ValueError for a window that is not there."""
        if not 1 <= self.window <= self.windows:
            raise ValueError(f"window {self.window} of {self.windows}; they count from 1")

    def of(self, trace: Trace, seed: int) -> Trace:
        """Return the sample. Raises ``TraceError`` for more windows than there are sessions."""
        self.check()
        if self.windows > 1:
            trace = window(trace, self.window, self.windows)
        return redrawn_gaps(trace, seed) if self.gaps else trace


ALL = Sample()


def window(trace: Trace, number: int, count: int) -> Trace:
    """Return part ``number`` (from 1) of ``count``, its first session at time 0."""
    total = sum(1 for _ in trace.sessions())
    if total < count:
        raise TraceError(f"{trace.name}: {total} sessions cannot be cut into {count} windows")
    first, stop = total * (number - 1) // count, total * number // count

    def sessions() -> Iterator[Session]:
        start: int | None = None
        for session in islice(trace.sessions(), first, stop):
            start = session.at if start is None else start
            yield session._replace(at=session.at - start)

    label = f"window {number} of {count}: sessions {first + 1:,} to {stop:,} of {total:,} by arrival"
    return surveyed(trace, sessions, f"window {number} {count}", label)


def redrawn_gaps(trace: Trace, seed: int) -> Trace:
    """Return the same sessions in the same order, gaps between their starts drawn from the trace's own.

    A trace whose sessions all start at once is returned as it is.
    """
    if not trace.duration_us:
        return trace
    starts = array("q", (session.at for session in trace.sessions()))
    run = max(2, isqrt(len(starts) - 1))
    times = _times(starts, run, Random(f"gaps/{seed}"))

    def sessions() -> Iterator[Session]:
        for session, at in zip(trace.sessions(), times, strict=True):
            yield session._replace(at=at)

    label = f"gaps between arrivals drawn anew from the trace's own, in runs of {run}, seed {seed}"
    return surveyed(trace, sessions, f"gaps {run} {seed}", label)


def _times(starts: "array[int]", run: int, rng: Random) -> "array[int]":
    count = len(starts) - 1
    times = array("q", [0])
    while len(times) <= count:
        first = rng.randrange(count)
        for i in range(first, first + run):
            times.append(times[-1] + starts[i % count + 1] - starts[i % count])
    del times[count + 1 :]
    if not times[-1]:  # every run that was drawn had its arrivals at once
        return starts
    scale = (starts[-1] - starts[0]) / times[-1]
    return array("q", (round(at * scale) for at in times))
