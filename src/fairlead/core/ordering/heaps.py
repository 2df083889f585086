"""Two heaps that tolerate change: entries are never searched for, only found out to be stale.

Both drop stale entries when they surface and are rebuilt when these outnumber the live ones, so
that their memory stays within a constant of what is live and each change costs O(log n) amortised.
"""

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

from fairlead.core.model import ClientId
from fairlead.core.ordering.base import Fits, QueuedRequest

Rank = tuple[int, int]
"""Order of a waiting request: (minus its matched tokens, its arrival). Smaller goes first."""

SPARE = 32
"""Stale entries that no heap is rebuilt for."""


class ItemHeap:
    """Waiting requests by (tokens descending, arrival). ``tokens`` is 0 where matches do not count."""

    __slots__ = ("_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[Rank] = []
        self._live: dict[int, tuple[int, QueuedRequest]] = {}

    def put(self, item: QueuedRequest, tokens: int) -> Rank:
        """Add ``item``, or move it when its tokens changed. Return its rank."""
        rank = (-tokens, item.seq)
        self._live[item.seq] = (-tokens, item)
        heappush(self._heap, rank)
        self._compact()
        return rank

    def remove(self, item: QueuedRequest) -> None:
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

    def first(self) -> QueuedRequest:
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

    def in_order(self) -> Iterator[tuple[Rank, QueuedRequest]]:
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

    def head(self, fits: Fits | None, skip: bool) -> QueuedRequest | None:
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

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return (item for _, item in self._live.values())


class Valued(Protocol):
    """A client's account with a value to be ordered by."""

    client: ClientId
    value: int


A = TypeVar("A", bound=Valued)


class ValueHeap(Generic[A]):
    """Accounts by value, smallest first, where values mostly grow.

    A filed value is a lower bound and put right when it surfaces, so growth costs nothing when it
    happens. Whoever makes a value smaller must ``file`` the client again.
    """

    __slots__ = ("_accounts", "_filed", "_heap")

    def __init__(self, accounts: Mapping[ClientId, A]) -> None:
        self._accounts = accounts
        self._heap: list[tuple[int, int, ClientId]] = []
        self._filed: dict[ClientId, tuple[int, int]] = {}

    def file(self, client: ClientId, tie: int) -> None:
        """Add the client under its present value. Equal values go by ``tie``."""
        value = self._accounts[client].value
        self._filed[client] = (value, tie)
        heappush(self._heap, (value, tie, client))
        self._compact()

    def refile(self, client: ClientId) -> None:
        """File the client under its present value if it is here."""
        filed = self._filed.get(client)
        if filed is not None:
            self.file(client, filed[1])

    def drop(self, client: ClientId) -> None:
        """Forget the client. Raises KeyError if it is not here."""
        del self._filed[client]
        self._compact()

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._filed) + SPARE:
            self._heap = [(*filed, client) for client, filed in self._filed.items()]
            heapify(self._heap)

    def least(self) -> A | None:
        """Return the account with the smallest value; None if there is none."""
        heap, filed = self._heap, self._filed
        while heap:
            value, tie, client = heap[0]
            if filed.get(client) != (value, tie):
                heappop(heap)
                continue
            account = self._accounts[client]
            if account.value == value:
                return account
            filed[client] = (account.value, tie)
            heapreplace(heap, (account.value, tie, client))
        return None

    def check(self) -> None:
        """Raise AssertionError if a filed value is no lower bound, or stale entries pile up."""
        entries = set(self._heap)
        for client, (value, tie) in self._filed.items():
            assert value <= self._accounts[client].value, client
            assert (value, tie, client) in entries
        assert len(self._heap) <= 2 * len(self._filed) + SPARE

    def __contains__(self, client: ClientId) -> bool:
        return client in self._filed
