"""Deficit round robin over clients in uncached prompt tokens, as NVIDIA Dynamo's router has it by class."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import ClassVar

from fairlead.core.model import BlockKey, ClientId
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingBase, OrderingContext, QueuedRequest
from fairlead.core.ordering.heaps import ItemHeap
from fairlead.core.ordering.tracker import MatchTracker
from fairlead.core.params import Param


class RingLane(ItemHeap):
    """One client's waiting requests in one queue, by arrival, and what it may still use."""

    __slots__ = ("deficit", "quantum")

    def __init__(self, quantum: int) -> None:
        super().__init__()
        self.quantum = quantum
        self.deficit = 0
        """Uncached tokens that the client earned and has not used."""


class DrrQueue:
    """One worker's waiting requests: a lane a client, the lanes in a ring whose next one comes first."""

    def __init__(self, matched: Matched, ordering: "Drr", skip: bool) -> None:
        self._ordering = ordering
        self._skip = skip
        self._tracker = MatchTracker(matched)
        self._ring: OrderedDict[ClientId, RingLane] = OrderedDict()
        self._costs: dict[int, int] = {}
        """Of each waiting request, by number of arrival: fixed when it came."""
        self._taken = (-1, 0)
        """Number and cost of the request that was taken out last, to be charged if it was admitted."""
        self._size = 0

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``; what it will cost is its prompt tokens that are not cached now, at least 1."""
        self._tracker.add(item, matched)
        lane = self._ring.get(item.client)
        if lane is None:
            lane = self._ring[item.client] = RingLane(self._ordering.quantum_of(item.client))
        lane.put(item, 0)
        self._costs[item.seq] = max(1, item.request.prompt_tokens - item.matched_tokens)
        self._size += 1

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``; a client with nothing left leaves the ring. Raises KeyError if it is not."""
        lane = self._ring[item.client]
        lane.remove(item)
        self._tracker.remove(item)
        self._taken = item.seq, self._costs.pop(item.seq)
        self._size -= 1
        if not lane:
            del self._ring[item.client]

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the oldest request of the first client in the ring that can pay for it.

        A client that cannot pay yet gets its quantum and, if that is not enough, goes to the end of the
        ring. When nobody can pay after a whole turn, all get as many further quanta as the first needs. With
        ``skip``, clients whose oldest request does not fit are passed over: they keep what they have and get
        nothing.
        """
        ring = self._ring
        blocked: set[ClientId] = set()
        for _ in range(len(ring)):
            client, lane = next(iter(ring.items()))
            item = lane.first()
            if self._skip and fits is not None and not fits(item):
                blocked.add(client)
            else:
                if lane.deficit < self._costs[item.seq]:
                    lane.deficit += lane.quantum
                if lane.deficit >= self._costs[item.seq]:
                    return item if self._skip or fits is None or fits(item) else None
            ring.move_to_end(client)
        waiting = [(client, lane) for client, lane in ring.items() if client not in blocked]
        if not waiting:
            return None
        rounds = min(-((lane.deficit - self._costs[lane.first().seq]) // lane.quantum) for _, lane in waiting)
        found: QueuedRequest | None = None
        for _, lane in waiting:
            lane.deficit += rounds * lane.quantum
            item = lane.first()
            if found is None and lane.deficit >= self._costs[item.seq]:
                found = item
        assert found is not None
        while (first := next(iter(ring))) != found.client:
            ring.move_to_end(first)
        return found if self._skip or fits is None or fits(found) else None

    def admitted(self, item: QueuedRequest) -> float:
        """Charge a request that was taken out to run; return what its client had before."""
        seq, cost = self._taken
        lane = self._ring.get(item.client)
        if lane is None or seq != item.seq:  # it was the client's last, or never waited
            return 0.0
        self._taken = -1, 0
        before = lane.deficit
        lane.deficit -= cost
        if lane.deficit < self._costs[lane.first().seq]:
            self._ring.move_to_end(item.client)
        return before

    def deficit(self, client: ClientId) -> int:
        """Return what a client may use; 0 if nothing of it waits."""
        lane = self._ring.get(client)
        return lane.deficit if lane is not None else 0

    def set_weight(self, client: ClientId) -> None:
        """Take up a changed weight, for the quanta to come."""
        lane = self._ring.get(client)
        if lane is not None:
            lane.quantum = self._ordering.quantum_of(client)

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Keep matches current; costs stay as they were on arrival."""
        self._tracker.stored(keys)

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Keep matches current; costs stay as they were on arrival."""
        self._tracker.evicted(keys)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        assert self._size == sum(map(len, self._ring.values())) == len(self._costs)
        self._tracker.check(self)
        for client, lane in self._ring.items():
            lane.check()
            assert lane
            assert lane.deficit >= 0
            assert lane.quantum >= 1
            assert all(item.client == client and self._costs[item.seq] >= 1 for item in lane)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[QueuedRequest]:
        return chain.from_iterable(self._ring.values())


class Drr(OrderingBase[DrrQueue]):
    """Clients in turn; in each turn as many uncached prompt tokens as the quantum, and what was left over.

    A request costs its prompt tokens that were not cached when it came, at least 1; output tokens are
    free. A client that has nothing left waiting loses its deficit. Inside a client the oldest goes first:
    Dynamo's queues are by deadline there, and a class gives all its requests equally long.

    Decisions of ours: a class is a client, its quantum is ``quantum`` times the client's weight, and a
    client that comes back is last in the ring (Dynamo's classes are few, and their ring is fixed). With
    ``on_no_fit=skip`` a client whose oldest request does not fit is passed over, which is Dynamo's rule;
    with ``stop`` its turn waits. Requests are not rejected for being late: that is not the order's.
    """

    name: ClassVar[str] = "drr"
    source: ClassVar[str] = "NVIDIA Dynamo 1.7, policy classes of its router; Shreedhar and Varghese, 1995"
    summary: ClassVar[str] = (
        "Clients in turn, each for a quantum of uncached prompt tokens; its oldest first. Output is free."
    )
    params: ClassVar[tuple[Param, ...]] = (
        Param("quantum", 2048, "uncached prompt tokens that a client of weight 1 earns in a turn", low=1),
        ON_NO_FIT,
    )
    uses_match: ClassVar[bool] = True
    in_turns: ClassVar[bool] = True

    def __init__(self, context: OrderingContext, quantum: int = 2048, on_no_fit: str = "stop") -> None:
        super().__init__(context)
        self.skips = on_no_fit == "skip"
        self._quantum = quantum
        self._weights: dict[ClientId, float] = {}

    def quantum_of(self, client: ClientId) -> int:
        """Return what a client earns in a turn, at least 1."""
        return max(1, round(self._quantum * self._weights.get(client, 1.0)))

    def _new_queue(self, number: int, matched: Matched) -> DrrQueue:  # noqa: ARG002 - one interface
        return DrrQueue(matched, self, self.skips)

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's weight. Raises ValueError unless it is above 0."""
        super().set_weight(client, weight)
        self._weights[client] = weight
        for queue in self._queues.values():
            queue.set_weight(client)

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:  # noqa: ARG002 - one interface
        """Charge what the request cost when it came; return the client's deficit before."""
        queue = self._queues.get(number)
        return queue.admitted(item) if queue is not None else 0.0

    def credit(self, number: int, client: ClientId) -> float:
        """Return the client's deficit in one queue, for explanations."""
        queue = self._queues.get(number)
        return queue.deficit(client) if queue is not None else 0.0
