"""Closed loops of a simulated world: when a client starts its next session, and which one it is.

Each loop begins its sessions at time 0, or after a first think time. It goes on

- to the end of the simulation where ``until_us`` sets one,
- otherwise, next to clients that send when the trace says, until the last of their sessions has started,
- otherwise until as many requests were started as the trace has.

What runs then is served to its end. A loop whose requests run out takes them again from the first one, with
other keys (``LoopStreams``).
"""

from collections.abc import Sequence
from random import Random
from typing import Final

from fairlead.core.model import ClientId
from fairlead.report.run import Loops
from fairlead.simulate.settings import Settings
from fairlead.simulate.world.heap import LOOP, Heap
from fairlead.trace.loops import LoopStreams
from fairlead.trace.model import Session, Trace

AFTER_ERROR_US: Final = 1_000_000
"""A client that got an error instead of its answer waits for so long before it sends again."""


class ClosedLoops:
    """The clients of ``trace.loops``. Think times follow from the seed and a session's number only."""

    def __init__(self, trace: Trace, settings: Settings, heap: Heap) -> None:
        self.loops = trace.loops
        self.thinking = 0
        """Sessions that will start unless the loops end before: thinking, or on their way."""
        self.started = 0
        """Turns of all sessions that were started."""
        self._streams = LoopStreams(trace)
        self._heap = heap
        self._pauses = {client: Random(f"{settings.seed}/think/{client}") for client in trace.loops}
        self._first = {client: loop.open for client, loop in trace.loops.items()}
        """Sessions of each client that start whatever the others do."""
        self._endless = settings.until_us > 0
        self._requests = trace.requests
        self._others = False
        self._round_trip_us = settings.round_trip_us

    @property
    def passes(self) -> int:
        """How many passes over the trace the loops have begun."""
        return self._streams.passes

    def told(self, clients: Sequence[ClientId], slots: int) -> Loops | None:
        """Return what reports need to know of the loops; None if there are none."""
        if not self.loops:
            return None
        found = [self.loops.get(client) for client in clients]
        return Loops(
            slots,
            [0 if loop is None else loop.open for loop in found],
            [0 if loop is None else self._round_trip_us + loop.think_us for loop in found],
        )

    def begin(self, others: bool) -> None:
        """Begin every loop. ``others``: whether any client sends when the trace says."""
        self._others = others
        for client, loop in self.loops.items():
            for _ in range(loop.open):
                self._add(self._pause(client), client)

    def ended(self, now: int, client: ClientId, answered: bool) -> None:
        """Note that a session has ended; the client's next one starts after round trip and think time."""
        wait = self._round_trip_us if answered else max(self._round_trip_us, AFTER_ERROR_US)
        self._add(now + wait + self._pause(client), client)

    def goes_on(self, client: ClientId, more: bool) -> bool:
        """Take one start that was to come; return whether it does.

        ``more``: whether sessions of the other clients are still to start.
        """
        self.thinking -= 1
        if self._first[client]:
            self._first[client] -= 1
            return True
        if self._endless:
            return True
        return more if self._others else self.started < self._requests

    def take(self, now: int, client: ClientId) -> Session:
        """Return the client's next session, to start now."""
        session = self._streams.take(client)
        self.started += len(session.turns)
        return session._replace(at=now)

    def _add(self, at: int, client: ClientId) -> None:
        self.thinking += 1
        self._heap.add(at, LOOP, client)

    def _pause(self, client: ClientId) -> int:
        think_us = self.loops[client].think_us
        return int(self._pauses[client].expovariate(1.0) * think_us) if think_us else 0
