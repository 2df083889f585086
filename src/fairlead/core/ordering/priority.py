"""Strict priority: whoever has the highest weight goes first."""

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from fairlead.core.model import BlockKey, ClientId
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingBase, OrderingContext, QueuedRequest
from fairlead.core.ordering.heaps import ItemHeap
from fairlead.core.params import Param


class PriorityQueue:
    """Waiting requests by rank, highest first; ties by arrival."""

    def __init__(self, rank: Callable[[ClientId], int], skip: bool) -> None:
        self._rank = rank
        self._skip = skip
        self._items = ItemHeap()

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``; what the worker caches of it does not matter."""
        item.matched = matched
        self._items.put(item, self._rank(item.client))

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``. Raises KeyError if it is not queued here."""
        self._items.remove(item)

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the oldest request of the highest rank; with ``skip``, the first that fits."""
        return self._items.head(fits, self._skip)

    def ranked(self, client: ClientId) -> None:
        """Take up a changed rank: move the client's requests."""
        for item in [item for item in self._items if item.client == client]:
            self._items.put(item, self._rank(client))

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        self._items.check()
        if self._items:
            assert self._items.first() is min(self._items, key=lambda i: (-self._rank(i.client), i.seq))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._items)


class Priority(OrderingBase[PriorityQueue]):
    """The clients of the highest weight first, however much they send; equal weights by arrival.

    Weights are ranks here, not shares: a client whose weight is twice another's always goes before it.
    """

    name: ClassVar[str] = "priority"
    source: ClassVar[str] = "as vLLM's --scheduling-policy priority, by client and without preemption"
    summary: ClassVar[str] = "The highest weight first, ties by arrival; not fair, lower weights can starve."
    params: ClassVar[tuple[Param, ...]] = (ON_NO_FIT,)
    uses_match: ClassVar[bool] = False

    def __init__(self, context: OrderingContext, on_no_fit: str = "stop") -> None:
        super().__init__(context)
        self.skips = on_no_fit == "skip"
        self._ranks: dict[ClientId, int] = {}

    def _rank_of(self, client: ClientId) -> int:
        return self._ranks.get(client, _rank(1.0))

    def _new_queue(self, number: int, matched: Matched) -> PriorityQueue:  # noqa: ARG002 - one interface
        return PriorityQueue(self._rank_of, self.skips)

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's weight, also for what it has queued. Raises ValueError unless it is above 0."""
        super().set_weight(client, weight)
        self._ranks[client] = _rank(weight)
        for queue in self._queues.values():
            queue.ranked(client)


def _rank(weight: float) -> int:
    """Return the weight as a whole number of millionths: ranks are compared exactly."""
    return max(1, round(weight * 1_000_000))
