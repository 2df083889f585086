"""Virtual token counter: the client that got the least service, weighted, goes next."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import ClassVar

from fairlead.core.model import BlockKey, ClientId
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingContext, QueuedRequest
from fairlead.core.ordering.clients import Accounts
from fairlead.core.ordering.heaps import ItemHeap, ValueHeap
from fairlead.core.ordering.scoped import ScopedOrdering
from fairlead.core.params import Param

UNIT = 2**32
"""What one service unit adds to the counter of a client of weight 1; counters are exact integers."""


_FIRST = 1 << 60
"""More than any request's number."""


class Counter:
    """One client's counter, in units of 2**-32 service units over weight."""

    __slots__ = ("client", "idle_us", "price", "queues", "used", "value")

    def __init__(self, client: ClientId, price: int) -> None:
        self.client = client
        self.price = price
        """UNIT over weight."""
        self.value = 0
        self.queues: dict[int, VtcQueue] = {}
        """Queues that the client has requests in."""
        self.used = False
        self.idle_us = -1


class Counters:
    """The counters of all clients within one scope: one queue, or all of them."""

    __slots__ = ("_last_left", "_queued", "_weights", "accounts", "by_client")

    def __init__(self, weights: Mapping[ClientId, float]) -> None:
        self._weights = weights
        self.accounts: Accounts[Counter] = Accounts(self._new)
        self.by_client = self.accounts.by_client
        self._queued: ValueHeap[Counter] = ValueHeap(self.by_client)
        self._last_left: Counter | None = None

    def _price_of(self, client: ClientId) -> int:
        return max(1, round(UNIT / self._weights.get(client, 1.0)))

    def _new(self, client: ClientId) -> Counter:
        return Counter(client, self._price_of(client))

    def level(self) -> int:
        """Return where a client that joins is lifted to: nobody gains by having been idle."""
        least = self._queued.least() or self._last_left
        return least.value if least is not None else 0

    def join(self, account: Counter) -> bool:
        """Say that the client has queued requests now, and had none: lift its counter.

        Return whether that raised it to the smallest of those that have.
        """
        level = self.level()
        lifted = account.value < level and self._queued.least() is not None
        account.value = max(account.value, level)
        self.accounts.busy(account)
        self._queued.file(account.client, 0)
        return lifted

    def leave(self, account: Counter) -> None:
        """Say that the client has no queued request any more."""
        self._last_left = account
        self._queued.drop(account.client)
        account.used = True
        self.accounts.idle(account)

    def credit(self, client: ClientId) -> float:
        """Return minus the client's counter, in service units over weight; 0 if it is not known."""
        account = self.by_client.get(client)
        return -account.value / UNIT if account is not None else 0.0

    def charge(self, client: ClientId, units: int) -> None:
        """Add ``units`` of service to the client's counter; negative takes back."""
        account = self.by_client.get(client)
        if account is None:
            account = self.accounts.get(client)
        account.value += units * account.price
        account.used = True
        if units < 0:
            self._queued.refile(client)
            for queue in account.queues.values():
                queue.eased(account)

    def set_weight(self, client: ClientId) -> None:
        """Take up a changed weight: it prices service from now on."""
        account = self.by_client.get(client)
        if account is not None:
            account.price = self._price_of(client)

    def tick(self, now: int) -> None:
        """Forget clients that are idle and would be lifted on return anyway."""
        level = self.level()
        self.accounts.tick(now, lambda account: account.value > level)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        self._queued.check()
        idle = set(self.accounts.idle_clients())
        for client, account in self.by_client.items():
            assert client == account.client
            assert (client in idle) == (not account.queues)
            assert (client in self._queued) == bool(account.queues)
        queued = [account.value for account in self.by_client.values() if account.queues]
        assert not queued or self.level() == min(queued)


class Lane(ItemHeap):
    """One client's waiting requests in one queue, by arrival."""

    __slots__ = ("account", "born")

    def __init__(self, account: Counter, born: int) -> None:
        super().__init__()
        self.account = account
        self.born = born
        """Breaks ties between equal counters: the arrival of the request that opened the lane. A client
        that was lifted, and so ties with one that got more, goes before that one."""


class VtcQueue:
    """One worker's waiting requests: a lane a client, lanes by counter."""

    def __init__(self, number: int, counters: Counters, skip: bool) -> None:
        self._number = number
        self._counters = counters
        self._skip = skip
        self._lanes: dict[ClientId, Lane] = {}
        self._order: ValueHeap[Counter] = ValueHeap(counters.by_client)
        self._size = 0

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``; what the worker caches of it does not matter."""
        item.matched = matched
        lane = self._lanes.get(item.client)
        if lane is None:
            lane = self._open(item)
        lane.put(item, 0)
        self._size += 1

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``. Raises KeyError if it is not queued here."""
        lane = self._lanes[item.client]
        lane.remove(item)
        self._size -= 1
        if not lane:
            self._close(lane)

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the oldest request of the client with the smallest counter."""
        account = self._order.least()
        if account is None:
            return None
        first = self._lanes[account.client].first()
        if fits is None or fits(first):
            return first
        return next(filter(fits, self._by_counter()), None) if self._skip else None

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def eased(self, account: Counter) -> None:
        """Say that the client's counter became smaller."""
        self._order.refile(account.client)

    def _open(self, item: QueuedRequest) -> Lane:
        account = self._counters.accounts.get(item.client)
        lane = self._lanes[item.client] = Lane(account, item.seq)
        if not account.queues and self._counters.join(account):
            lane.born -= _FIRST
        account.queues[self._number] = self
        self._order.file(account.client, lane.born)
        return lane

    def _close(self, lane: Lane) -> None:
        account = lane.account
        del self._lanes[account.client], account.queues[self._number]
        self._order.drop(account.client)
        if not account.queues:
            self._counters.leave(account)

    def _by_counter(self) -> Iterator[QueuedRequest]:
        """Walk all requests, smallest counter first, oldest first within a client."""
        for lane in sorted(self._lanes.values(), key=lambda lane: (lane.account.value, lane.born)):
            for _, item in lane.in_order():
                yield item

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        assert self._size == sum(map(len, self._lanes.values()))
        self._order.check()
        for client, lane in self._lanes.items():
            lane.check()
            assert lane
            assert lane.account.client == client
            assert lane.account.queues[self._number] is self
            assert all(item.client == client for item in lane)
            assert client in self._order

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[QueuedRequest]:
        return chain.from_iterable(self._lanes.values())


class Vtc(ScopedOrdering[VtcQueue, Counters]):
    """Smallest counter first. A counter grows by the service that its client gets, over its weight.

    Input tokens are charged at admission, all of them, since the rule knows no cache; output tokens
    as they come. A client that had nothing queued is lifted to the smallest counter of those that
    have, or of the client that left the queue last.
    """

    name: ClassVar[str] = "vtc"
    source: ClassVar[str] = "arXiv 2401.00588, algorithms 2 and 4"
    summary: ClassVar[str] = (
        "The client with the least service over weight, its oldest request; knows no cache."
    )
    params: ClassVar[tuple[Param, ...]] = (
        Param(
            "scope",
            "worker",
            "counters of a client: one a worker as in the paper, or one for the fleet",
            choices=("worker", "fleet"),
        ),
        ON_NO_FIT,
    )
    uses_match: ClassVar[bool] = False
    in_turns: ClassVar[bool] = True

    def __init__(self, context: OrderingContext, scope: str = "worker", on_no_fit: str = "stop") -> None:
        super().__init__(
            context, lambda: Counters(self._weights), fleet=scope == "fleet", skips=on_no_fit == "skip"
        )

    def _new_queue(self, number: int, matched: Matched) -> VtcQueue:  # noqa: ARG002 - one interface
        return VtcQueue(number, self._scope_of_new(number), self.skips)

    def passes(self, number: int, client: ClientId) -> bool:  # noqa: ARG002 - one interface
        """Have it queued: arriving lifts a counter, and leaving is remembered."""
        return False

    def _billed(self, prompt_tokens: int, extend_tokens: int) -> int:  # noqa: ARG002 - one interface
        """Return the whole prompt: the rule knows no cache."""
        return prompt_tokens
