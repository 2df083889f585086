"""What will happen in a simulated world, and in which order."""

from heapq import heapify, heappush
from typing import Any, Final

# The kinds of events, and what comes with each.
WAKE: Final = 0
"""Steps of an engine end: its slot."""
SUBMIT: Final = 1
"""A request reaches its engine: the request."""
CLIENT_NEWS: Final = 2
"""Clients see what steps gave: slot, engine run, result."""
DISPATCHER_NEWS: Final = 3
"""The dispatcher hears of it later than they, because its news is stale: the same."""
PROGRESS: Final = 4
"""The dispatcher hears how much was answered so far: pairs of request and output tokens."""
TURN: Final = 5
"""A turn arrives: its session under way, and its index there."""
CACHE_NEWS: Final = 6
"""The dispatcher hears what an engine cached and evicted: slot, engine run, result."""
CANCEL: Final = 7
"""An engine is told to drop a request: slot, request id."""
HANG_UP: Final = 8
"""A client gives up: request id."""
SAMPLE: Final = 9
"""The series get a point: None."""
TICK: Final = 10
"""The dispatcher is told the time: None."""
DIES: Final = 11
"""A worker dies: the fault."""
NOTICED: Final = 12
"""The dispatcher notices that a worker died: its slot."""
RETURNS: Final = 13
"""A worker returns with an empty cache: its slot."""
LOOP: Final = 14
"""A client that is a closed loop starts its next session: the client."""


class Heap:
    """Events to come. Those of the same microsecond come in the order in which they were added.

    The ends of engine steps come after all others, in the order of the engines: the next step sees what
    happened at the moment at which it begins.
    """

    __slots__ = ("_count", "entries")

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, int, int, Any]] = []
        """A heap of: twice the time, plus one for a wake; order; order within; kind; what comes with it."""
        self._count = 0

    def add(self, at: int, kind: int, what: object) -> None:
        """Add an event of any kind but ``WAKE``."""
        self._count += 1
        heappush(self.entries, (at << 1, self._count, 0, kind, what))

    def add_wake(self, at: int, slot: int) -> None:
        """Add the end of steps of the engine in ``slot``."""
        self._count += 1
        heappush(self.entries, (at << 1 | 1, slot, self._count, WAKE, slot))

    def drop_wakes(self, slot: int) -> None:
        """Remove all wakes of the engine in ``slot``: what is left tells whether anything will happen."""
        entries = self.entries
        entries[:] = [entry for entry in entries if entry[3] != WAKE or entry[4] != slot]
        heapify(entries)
