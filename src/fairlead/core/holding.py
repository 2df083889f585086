"""Back-pressure: a worker that has just said that it has no room gets nothing for as long as it says.

While it is held it is no candidate for new requests, unless every worker is. What waited for it already
goes to others as they come to take requests, a few each time, in the order of its queue.
"""

from collections.abc import Iterator

from fairlead.core.fleet import FleetState
from fairlead.core.tracked import TrackedRequest
from fairlead.core.worker import Worker

_MOST_MOVED = 64
"""Requests that leave the queue of one held worker a tick: a long queue must not make a tick long."""


class Holding:
    """The workers that are held. What is to be moved from their queues, the dispatcher moves."""

    __slots__ = ("_fleet", "_workers")

    def __init__(self, fleet: FleetState, workers: list[Worker]) -> None:
        self._fleet = fleet
        self._workers = workers
        """By slot."""

    def hold(self, worker: Worker, until: int) -> None:
        """Send nothing to a worker until then, in microseconds; never shorter than was said before."""
        worker.held_until = max(worker.held_until, until)
        self._fleet.held.add(worker.slot)
        self._fleet.refresh()

    def release(self, now: int) -> list[Worker]:
        """Let go of the workers whose time is over, and return them."""
        fleet = self._fleet
        over = [self._workers[slot] for slot in sorted(fleet.held) if self._workers[slot].held_until <= now]
        for worker in over:
            worker.held_until = 0
            fleet.held.discard(worker.slot)
        if over:
            fleet.refresh()
        return over

    def stranded(self) -> Iterator[TrackedRequest]:
        """Iterate over requests that wait for a held worker while another takes requests.

        Each has to be taken out of its queue before the next one is asked for.
        """
        fleet = self._fleet
        for slot in sorted(fleet.held):
            worker = self._workers[slot]
            for _ in range(_MOST_MOVED):
                if not fleet.queued[slot] or not fleet.candidates or fleet.candidates[0] in fleet.held:
                    break
                item = worker.head or worker.queue.head()
                if item is None:
                    break
                assert isinstance(item, TrackedRequest)
                yield item
