"""Two heaps that tolerate change: entries are never searched for, only found out to be stale.

Both drop stale entries when they surface and are rebuilt when these outnumber the live ones, so
that their memory stays within a constant of what is live and each change costs O(log n) amortised.
"""

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

from fairlead.core.model import ClientId
from fairlead.core.ordering.base import Fits, Waiting

Rank = tuple[int, int]
"""Order of a waiting request: (minus its matched tokens, its arrival). Smaller goes first."""

SPARE = 32
"""Stale entries that no heap is rebuilt for."""


class ItemHeap:
    """Waiting requests by (tokens descending, arrival). ``tokens`` is 0 where matches do not count."""

    __slots__ = ("_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[Rank] = []
        self._live: dict[int, tuple[int, Waiting]] = {}

    def put(self, item: Waiting, tokens: int) -> Rank:
        """Add ``item``, or move it when its tokens changed. Return its rank."""
        rank = (-tokens, item.seq)
        self._live[item.seq] = (-tokens, item)
        heappush(self._heap, rank)
        self._compact()
        return rank

    def remove(self, item: Waiting) -> None:
        """Take out ``item``. Raises KeyError if it is not here."""
        found = self._live.get(item.seq)
        if found is None or found[1] is not item:
            raise KeyError(item)
        del self._live[item.seq]
        self._compact()

    def _compact(self) -> None:
        if not self._live:
            self._heap.clear()
        elif len(self._heap) > 2 * len(self._live) + SPARE:
            self._heap = [(minus, seq) for seq, (minus, _) in self._live.items()]
            heapify(self._heap)

    def first(self) -> Waiting:
        """Return who goes first. Raises IndexError when empty."""
        return self._live[self.first_rank()[1]][1]

    def first_rank(self) -> Rank:
        """Return the rank of who goes first. Raises IndexError when empty."""
        heap, live = self._heap, self._live
        while True:
            rank = heap[0]
            found = live.get(rank[1])
            if found is not None and found[0] == rank[0]:
                return rank
            heappop(heap)

    def in_order(self) -> Iterator[tuple[Rank, Waiting]]:
        """Walk in order without taking anything out: O(log n) a step. A request may come twice."""
        heap, live = self._heap, self._live
        frontier = [(heap[0], 0)] if heap else []
        while frontier:
            rank, at = heappop(frontier)
            for child in range(2 * at + 1, min(2 * at + 3, len(heap))):
                heappush(frontier, (heap[child], child))
            found = live.get(rank[1])
            if found is not None and found[0] == rank[0]:
                yield rank, found[1]

    def head(self, fits: Fits | None, skip: bool) -> Waiting | None:
        """Return who goes first; with ``skip`` the first that fits. None if that is nobody."""
        if not self._live:
            return None
        first = self.first()
        if fits is None or fits(first):
            return first
        return next((item for _, item in self.in_order() if fits(item)), None) if skip else None

    def check(self) -> None:
        """Raise AssertionError if a live request has no entry, or stale ones pile up."""
        entries = set(self._heap)
        for seq, (minus, item) in self._live.items():
            assert item.seq == seq
            assert (minus, seq) in entries
        assert len(self._heap) <= 2 * len(self._live) + SPARE

    def __contains__(self, item: Waiting) -> bool:
        return item.seq in self._live

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Waiting]:
        return (item for _, item in self._live.values())


class Tagged(Protocol):
    """A client's account with a tag to be ordered by."""

    client: ClientId

    def tag(self) -> int | None:
        """Return what to order by, smallest first; None if it is out of the contest for now."""


A = TypeVar("A", bound=Tagged)


class TagHeap(Generic[A]):
    """Clients by tag, where tags mostly grow: a filed tag is a lower bound and corrected on top.

    Growth therefore costs nothing when it happens. Whoever makes a tag smaller must ``file`` the
    client again.
    """

    __slots__ = ("_accounts", "_filed", "_heap")

    def __init__(self, accounts: Mapping[ClientId, A]) -> None:
        self._accounts = accounts
        self._heap: list[tuple[int, int, ClientId]] = []
        self._filed: dict[ClientId, tuple[int, int]] = {}

    def file(self, client: ClientId, tag: int, tie: int) -> None:
        """Add the client, or file it anew. Equal tags go by ``tie``."""
        self._filed[client] = (tag, tie)
        heappush(self._heap, (tag, tie, client))
        self._compact()

    def refile(self, client: ClientId, tag: int) -> None:
        """File the client under a new tag if it is here."""
        filed = self._filed.get(client)
        if filed is not None:
            self.file(client, tag, filed[1])

    def drop(self, client: ClientId) -> None:
        """Forget the client if it is here."""
        if self._filed.pop(client, None) is not None:
            self._compact()

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._filed) + SPARE:
            self._heap = [(*filed, client) for client, filed in self._filed.items()]
            heapify(self._heap)

    def least(self) -> A | None:
        """Return the account with the smallest tag, dropping those that are out of the contest."""
        heap, filed = self._heap, self._filed
        while heap:
            entry = heap[0]
            tag, tie, client = entry
            if filed.get(client) != (tag, tie):
                heappop(heap)
                continue
            account = self._accounts[client]
            actual = account.tag()
            if actual == tag:
                return account
            if actual is None:
                heappop(heap)
                self.drop(client)
                heap = self._heap
            else:
                filed[client] = (actual, tie)
                heapreplace(heap, (actual, tie, client))
        return None

    def check(self) -> None:
        """Raise AssertionError if a filed tag is no lower bound, or stale entries pile up."""
        entries = set(self._heap)
        for client, (tag, tie) in self._filed.items():
            actual = self._accounts[client].tag()
            assert actual is None or tag <= actual, client
            assert (tag, tie, client) in entries
        assert len(self._heap) <= 2 * len(self._filed) + SPARE

    def __contains__(self, client: ClientId) -> bool:
        return client in self._filed
