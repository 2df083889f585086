"""The record of one run, simulated or live: a row for each request, and series over time.

Columns are arrays, so a million requests take some 50 MB. Times are integer microseconds from the start
of the run; -1 where the moment never came. ``fairlead.report.metrics`` folds a ``Run`` into figures.
"""

from __future__ import annotations  # array[int] is not known at run time before Python 3.12

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DONE, REJECTED, CANCELLED, FAILED, UNFINISHED = range(5)
OUTCOMES = ("done", "rejected", "cancelled", "failed", "unfinished")


@dataclass(slots=True)
class Requests:
    """One row a request, in order of arrival. All columns have the same length."""

    client: array[int] = field(default_factory=lambda: array("H"))
    """Index into ``Run.clients``."""
    arrived: array[int] = field(default_factory=lambda: array("q"))
    """When it was scheduled to arrive. TTFT and E2E count from here."""
    sent: array[int] = field(default_factory=lambda: array("q"))
    """When it was last sent to a worker."""
    first: array[int] = field(default_factory=lambda: array("q"))
    """When the client had its first token."""
    ended: array[int] = field(default_factory=lambda: array("q"))
    prompt: array[int] = field(default_factory=lambda: array("i"))
    cached: array[int] = field(default_factory=lambda: array("i"))
    """Prompt tokens that the worker had cached; -1 where unknown."""
    output: array[int] = field(default_factory=lambda: array("i"))
    """Output tokens delivered."""
    worker: array[int] = field(default_factory=lambda: array("h"))
    """Number of the worker that served it last; -1 for none."""
    outcome: array[int] = field(default_factory=lambda: array("b"))
    """Index into ``OUTCOMES``."""

    def __len__(self) -> int:
        return len(self.client)


@dataclass(slots=True)
class Series:
    """Samples at the end of every interval, the first one ``interval_us`` after the start."""

    interval_us: int
    service: list[array[float]]
    """A client: service delivered so far, in service units."""
    demand: list[array[float]]
    """A client: service of everything that arrived so far (its true cost if nothing were shared)."""
    queued: list[array[int]]
    """A client: requests waiting (not yet admitted to a batch) at the sample."""
    running: list[array[int]]
    """A worker: requests in its batch."""
    waiting: list[array[int]]
    """A worker: requests waiting for it, at the dispatcher and inside."""
    kv_used: list[array[float]]
    """A worker: share of its KV blocks that requests hold."""
    prefilled: list[array[int]]
    """A worker: prompt tokens computed so far."""


@dataclass(slots=True)
class Fairness:
    """The worst difference in service between clients that were backlogged together."""

    worst_gap: float = 0.0
    """Worst |W_f/w_f - W_g/w_g| over every interval in which both were backlogged, in service units."""
    pair: tuple[str, str] = ("", "")
    """Which two clients."""
    bound: float = 0.0
    """What the ordering guarantees for this run's sizes; 0 where it guarantees nothing."""
    bound_text: str = ""
    """The bound as a formula with its numbers, or why there is none."""


@dataclass(slots=True)
class Loops:
    """The clients that are closed loops, and what they share."""

    slots: int
    """Sequences that the fleet runs at once: workers times ``max_num_seqs``."""
    open: Sequence[int]
    """A client: the sessions that it keeps open; 0 for one that sends by the clock."""
    pause_us: Sequence[int]
    """A client: mean time from the end of a session to the start of the next: round trip and think time."""


@dataclass(slots=True)
class Run:
    """Everything that a report needs of one run."""

    kind: str
    """``simulate`` or ``replay``."""
    workload: str
    policy: str
    order: str
    engine: str
    workers: int
    topology: str
    """``gateway``: the dispatcher holds the queue; ``engine``: each engine orders its own."""
    seed: int
    load: float
    """Share of the measured maximum that arrives; 0 where arrivals were taken as they are."""
    clients: Sequence[str]
    weights: Sequence[float]
    misbehaving: Sequence[str]
    labels: Sequence[str]
    requests: Requests
    series: Series
    fairness: Fairness
    duration_us: int
    """From the first arrival to the last end."""
    reachable_hit_rate: float = -1.0
    """Prompt tokens that an infinite cache shared by all would have had, as a share; -1 where unknown."""
    loops: Loops | None = None
    """None if every client sends by the clock."""
    itl: dict[int, int] = field(default_factory=dict)
    """Inter-token latency: how many times between output tokens (value) were about so long (key, µs)."""
    steps: int = 0
    preemptions: int = 0
    computed_tokens: int = 0
    """Prompt tokens computed, recomputation included."""
    elapsed_s: float = 0.0
    """Wall time that the simulation took."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Every option that shaped the run, so that it can be repeated."""
