"""Work stealing: a worker that would serve a client without credit takes a request of one that has some.

Only for orderings that keep one account a client for the whole fleet (``Ordering.steals``). The request is
taken from the queue of another worker, where it may have been put for what that worker caches. How long it
would still wait there, nobody knows. So it waits for as long as the move costs, and is then moved: whatever
it would have been, waiting and move together cost at most twice the better of the two (the rule of the ski
rental: rent until the rent has come to the price).
"""

from bisect import bisect_right

from fairlead.core.fleet import FleetState
from fairlead.core.ordering.base import Ordering, QueuedRequest
from fairlead.core.prefix import PrefixIndex
from fairlead.core.routing.marginal import SLOWED
from fairlead.core.tracked import TrackedRequest
from fairlead.core.worker import Worker

_MOST_QUEUES = 16
"""Queues that are asked each time, the next ones in turn: a large fleet must not make this slow."""


def price(lost: int, slower: float, owed: float) -> float:
    """Return what moving a request costs, in tokens of prefill, where ``lost`` of its tokens are cached less.

    It computes these itself, and slows each request that runs there by as much: ``slower`` is what
    ``marginal`` counts for a token of prefill, with the batch that has to wait for it. What the others lose
    does not count as far as the client that would be served instead is in debt (``owed``): the more it has
    had ahead of its turn, the less others must wait to spare the batch.
    """
    return max(lost, lost * slower - owed)


class Stealing:
    """Looks for requests to be stolen. It changes no books: whoever asked moves what was found."""

    __slots__ = ("_asked_last", "_fleet", "_index", "_ordering", "_workers")

    def __init__(
        self, ordering: Ordering, fleet: FleetState, index: PrefixIndex, workers: list[Worker]
    ) -> None:
        self._ordering = ordering
        self._fleet = fleet
        self._index = index
        self._workers = workers
        """By slot."""
        self._asked_last = 0
        """The slot whose queue was asked last."""

    def overtaken(self, slot: int, item: QueuedRequest | None) -> bool:
        """Say whether ``item``, next on a worker, should let a request with credit go first."""
        ordering = self._ordering
        return ordering.credited() and (item is None or ordering.credit(slot, item.client) <= 0)

    def find(
        self, thief: Worker, instead: QueuedRequest | None, now: int
    ) -> tuple[TrackedRequest, int] | None:
        """Return the oldest request that heads another queue and may be taken; None if there is none.

        It must have credit, have capacity here, and have waited long enough; and this worker must not
        have failed it before. The number is the prompt tokens that are cached here. ``instead`` is what this
        worker would serve if it took none.
        """
        slot, workers, ordering, index = thief.slot, self._workers, self._ordering, self._index
        others = [s for s, queued in enumerate(self._fleet.queued) if queued and s != slot]
        start = bisect_right(others, self._asked_last)
        rate = thief.prefilling.rate
        slower = 1 + SLOWED * self._fleet.running[slot]
        owed = max(0.0, -ordering.credit(slot, instead.client)) if instead is not None else 0.0
        best: tuple[TrackedRequest, int] | None = None
        for other in (others[start:] + others[:start])[:_MOST_QUEUES]:
            victim = workers[other]
            item = victim.head or victim.queue.head()
            self._asked_last = other
            if item is None or ordering.credit(other, item.client) <= 0:
                continue
            assert isinstance(item, TrackedRequest)
            if (best is not None and item.seq > best[0].seq) or slot in item.tried:
                continue
            request = item.request
            here = request.matched_tokens(index.ready(slot, item.keys))
            there = request.matched_tokens(index.ready(other, item.keys))
            if (now - request.arrived_us) * rate < price(there - here, slower, owed):
                continue
            if thief.has_capacity(item.sequences, request.prompt_tokens - here + item.expected):
                best = item, here
        return best
