"""Longest prefix match first."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

from fairlead.core.model import BlockKey
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingBase, OrderingContext, QueuedRequest
from fairlead.core.ordering.heaps import ItemHeap
from fairlead.core.ordering.tracker import MatchTracker
from fairlead.core.params import Param


class LpmQueue:
    """Waiting requests by matched tokens, most first; ties by arrival."""

    def __init__(self, matched: Matched, skip: bool) -> None:
        self._skip = skip
        self._items = ItemHeap()
        self._tracker = MatchTracker(matched)

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``, of whose blocks the worker caches the first ``matched``."""
        self._tracker.add(item, matched)
        self._items.put(item, item.matched_tokens)

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``. Raises KeyError if it is not queued here."""
        self._items.remove(item)
        self._tracker.remove(item)

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the request with the longest match; with ``skip``, the first that fits."""
        return self._items.head(fits, self._skip)

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Move up who waited for one of ``keys``."""
        for item in self._tracker.stored(keys):
            self._items.put(item, item.matched_tokens)

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Move down who held one of ``keys``."""
        for item in self._tracker.evicted(keys):
            self._items.put(item, item.matched_tokens)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        self._items.check()
        self._tracker.check(self._items)
        if self._items:
            assert self._items.first() is min(self._items, key=lambda i: (-i.matched_tokens, i.seq))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._items)


class Lpm(OrderingBase[LpmQueue]):
    """Longest matched prefix first, ties by arrival. Most reuse; a cold request can starve."""

    name: ClassVar[str] = "lpm"
    source: ClassVar[str] = "SGLang's lpm (arXiv 2312.07104)"
    summary: ClassVar[str] = (
        "Longest cached prefix first, ties by arrival; not fair, a cold request can starve."
    )
    params: ClassVar[tuple[Param, ...]] = (ON_NO_FIT,)
    uses_match: ClassVar[bool] = True

    def __init__(self, context: OrderingContext, on_no_fit: str = "stop") -> None:
        super().__init__(context)
        self.skips = on_no_fit == "skip"

    def _new_queue(self, number: int, matched: Matched) -> LpmQueue:  # noqa: ARG002 - one interface
        return LpmQueue(matched, self.skips)
