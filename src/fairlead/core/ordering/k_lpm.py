"""k-LPM: the oldest request, then k - 1 by longest prefix match, and so on."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

from fairlead.core.model import BlockKey
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingBase, OrderingContext, QueuedRequest
from fairlead.core.ordering.heaps import ItemHeap
from fairlead.core.ordering.tracker import MatchTracker
from fairlead.core.params import Param


class KLpmQueue:
    """Waiting requests in two orders: by arrival, and by matched tokens. ``place`` says which one counts."""

    def __init__(self, matched: Matched, k: int, skip: bool) -> None:
        self._k = k
        self._skip = skip
        self._by_age = ItemHeap()
        self._by_match = ItemHeap()
        self._tracker = MatchTracker(matched)
        self.place = 0
        """Requests admitted since the last round of ``k`` was complete; at 0 the oldest is next."""

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``, of whose blocks the worker caches the first ``matched``."""
        self._tracker.add(item, matched)
        self._by_age.put(item, 0)
        self._by_match.put(item, item.matched_tokens)

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``. Raises KeyError if it is not queued here."""
        self._by_age.remove(item)
        self._by_match.remove(item)
        self._tracker.remove(item)

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the oldest request, or the one with the longest match; with ``skip``, of those that fit."""
        order = self._by_match if self.place else self._by_age
        return order.head(fits, self._skip)

    def admitted(self) -> None:
        """Count a request that runs."""
        self.place = (self.place + 1) % self._k

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Move up who waited for one of ``keys``."""
        for item in self._tracker.stored(keys):
            self._by_match.put(item, item.matched_tokens)

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Move down who held one of ``keys``."""
        for item in self._tracker.evicted(keys):
            self._by_match.put(item, item.matched_tokens)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        assert 0 <= self.place < self._k
        self._by_age.check()
        self._by_match.check()
        self._tracker.check(self._by_age)
        assert sorted(item.seq for item in self._by_age) == sorted(item.seq for item in self._by_match)

    def __len__(self) -> int:
        return len(self._by_age)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._by_age)


class KLpm(OrderingBase[KLpmQueue]):
    """Algorithm 1 of the paper: process the oldest query, then ``k`` - 1 times the one of the best hit rate.

    ``k=1`` is ``fcfs``; a ``k`` that no queue ever reaches is ``lpm``. Of at most ``k`` admissions in a row
    one is of the oldest request, so one with n older ones before it waits for at most k * (n + 1) of them.

    Decisions of ours, where the paper leaves it open: the rounds are each worker's own, and go on where
    they were when a queue was empty for a while. A place in a round is used by an admission, so a request
    that is cancelled before uses none. The best hit rate is the most matched tokens, as in ``lpm`` (in the
    paper's model all prompts of a queue are about as long). The default of ``k`` is ours, too.
    """

    name: ClassVar[str] = "k_lpm"
    source: ClassVar[str] = "arXiv 2502.04677, algorithm 1; the default of k is ours"
    summary: ClassVar[str] = (
        "The oldest request, then k - 1 by longest cached prefix; not fair between clients."
    )
    params: ClassVar[tuple[Param, ...]] = (
        Param(
            "k", 8, "requests in a round, the first of them the oldest; 1 is fcfs, a large k is lpm", low=1
        ),
        ON_NO_FIT,
    )
    uses_match: ClassVar[bool] = True

    def __init__(self, context: OrderingContext, k: int = 8, on_no_fit: str = "stop") -> None:
        super().__init__(context)
        self._k = k
        self.skips = on_no_fit == "skip"

    def _new_queue(self, number: int, matched: Matched) -> KLpmQueue:  # noqa: ARG002 - one interface
        return KLpmQueue(matched, self._k, self.skips)

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:  # noqa: ARG002 - one interface
        """Count the request in its round; return 0, since nothing is owed."""
        queue = self._queues.get(number)
        if queue is not None:
            queue.admitted()
        return 0.0
