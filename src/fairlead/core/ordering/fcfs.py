"""First come, first served."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

from fairlead.core.model import BlockKey
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingBase, OrderingContext, QueuedRequest
from fairlead.core.ordering.heaps import ItemHeap
from fairlead.core.params import Param


class FcfsQueue:
    """Waiting requests by arrival."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self._items = ItemHeap()

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``; its place depends on ``seq`` alone, so one that came back keeps it."""
        item.matched = matched
        self._items.put(item, 0)

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``. Raises KeyError if it is not queued here."""
        self._items.remove(item)

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the oldest request; with ``skip``, the oldest that fits."""
        return self._items.head(fits, self._skip)

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        self._items.check()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._items)


class Fcfs(OrderingBase[FcfsQueue]):
    """Arrival order: no fairness between clients and no locality. Engines' usual default."""

    name: ClassVar[str] = "fcfs"
    source: ClassVar[str] = "vLLM's default"
    summary: ClassVar[str] = "First come, first served."
    params: ClassVar[tuple[Param, ...]] = (ON_NO_FIT,)
    uses_match: ClassVar[bool] = False

    def __init__(self, context: OrderingContext, on_no_fit: str = "stop") -> None:
        super().__init__(context)
        self.skips = on_no_fit == "skip"

    def _new_queue(self, number: int, matched: Matched) -> FcfsQueue:  # noqa: ARG002 - one interface
        return FcfsQueue(self.skips)
