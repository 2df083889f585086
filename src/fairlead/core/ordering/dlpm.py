"""Deficit longest prefix match: fair between clients, longest cached prefix first within that."""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain
from typing import ClassVar

from fairlead.core.model import BlockKey, ClientId
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingBase, OrderingContext, Waiting
from fairlead.core.ordering.deficits import CREDITED, Deficit, Deficits
from fairlead.core.ordering.heaps import SPARE, ItemHeap, Rank, TagHeap
from fairlead.core.ordering.tracker import MatchTracker
from fairlead.core.params import Param

_Entry = tuple[int, int, ClientId]


class Lane(ItemHeap):
    """One client's waiting requests in one queue."""

    __slots__ = ("account", "born", "listed")

    def __init__(self, account: Deficit, born: int) -> None:
        super().__init__()
        self.account = account
        self.born = born
        """Arrival of the request that opened the lane; breaks ties between equal debts."""
        self.listed: _Entry | None = None
        """The lane's entry in the queue's list of clients with credit: no later than its rank."""


class DlpmQueue:
    """One worker's waiting requests: a lane a client, and a heap of lanes whose client has credit.

    A lane whose client lost its credit is found out when it surfaces. It is then filed among the
    owing ones, least debt first, for a worker that has nobody else to serve.
    """

    def __init__(
        self, number: int, deficits: Deficits, matched: Matched, skip: bool, debt_limit: int
    ) -> None:
        self._number = number
        self._deficits = deficits
        self._skip = skip
        self._debt_limit = debt_limit
        self._tracker = MatchTracker(matched)
        self._lanes: dict[ClientId, Lane] = {}
        self._listed: list[_Entry] = []
        self._owing: TagHeap[Deficit] = TagHeap(deficits.by_client)
        self._size = 0

    def push(self, item: Waiting, matched: int) -> None:
        """Add ``item``, of whose blocks the worker caches the first ``matched``."""
        self._tracker.add(item, matched)
        self._size += 1
        lane = self._lanes.get(item.client)
        if lane is None:
            lane = self._open(item)
        self._place(lane, item)

    def discard(self, item: Waiting) -> None:
        """Take out ``item``. Raises KeyError if it is not queued here."""
        lane = self._lanes[item.client]
        lane.remove(item)
        self._tracker.remove(item)
        self._size -= 1
        if not lane:
            self._close(lane)

    def head(self, fits: Fits | None = None) -> Waiting | None:
        """Return the longest match among clients with credit, refilling when nobody queued has any.

        Where others elsewhere have credit and nobody here, the least indebted client goes.
        """
        if not self._size:
            return None
        lane = self._first_lane()
        if lane is None and not self._deficits.credited:
            self._deficits.refill()
            lane = self._first_lane()
        if lane is None:
            return self._without_credit(fits)
        first = lane.first()
        if fits is None or fits(first):
            return first
        return next(filter(fits, self._in_order()), None) if self._skip else None

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Move up who waited for one of ``keys``."""
        for item in self._tracker.stored(keys):
            self._place(self._lanes[item.client], item)

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Move down who held one of ``keys``."""
        for item in self._tracker.evicted(keys):
            self._place(self._lanes[item.client], item)

    def credited(self, account: Deficit) -> None:
        """List the client's lane instead of filing its debt: it has credit now."""
        self._owing.drop(account.client)
        lane = self._lanes[account.client]
        self._list(lane, lane.first_rank())

    def eased(self, account: Deficit) -> None:
        """File the client's debt anew if it was filed: it shrank."""
        tag = account.tag()
        if tag is not None:
            self._owing.refile(account.client, tag)

    def _open(self, item: Waiting) -> Lane:
        account = self._deficits.accounts.get(item.client)
        lane = self._lanes[item.client] = Lane(account, item.seq)
        if not account.holders:
            self._deficits.join(account)
        account.holders[self._number] = self
        self._file(lane)
        return lane

    def _close(self, lane: Lane) -> None:
        account = lane.account
        del self._lanes[account.client], account.holders[self._number]
        self._owing.drop(account.client)
        if not account.holders:
            self._deficits.leave(account)
        self._compact()

    def _place(self, lane: Lane, item: Waiting) -> None:
        rank = lane.put(item, item.matched_tokens)
        if lane.account.state == CREDITED:
            self._list(lane, rank)

    def _list(self, lane: Lane, rank: Rank) -> None:
        """See that the lane is listed at ``rank`` or before."""
        if lane.listed is not None and lane.listed[:2] <= rank:
            return
        lane.listed = (*rank, lane.account.client)
        heappush(self._listed, lane.listed)
        self._compact()

    def _compact(self) -> None:
        if len(self._listed) > 2 * len(self._lanes) + SPARE:
            self._listed = [lane.listed for lane in self._lanes.values() if lane.listed is not None]
            heapify(self._listed)

    def _file(self, lane: Lane) -> None:
        tag = lane.account.tag()
        if tag is not None:
            self._owing.file(lane.account.client, tag, lane.born)

    def _first_lane(self) -> Lane | None:
        """Return the lane with the best request of a client with credit; None if nobody has any."""
        listed, lanes = self._listed, self._lanes
        while listed:
            entry = listed[0]
            lane = lanes.get(entry[2])
            if lane is None or lane.listed is not entry:
                heappop(listed)
            elif lane.account.state != CREDITED:
                heappop(listed)
                lane.listed = None
                self._file(lane)
            else:
                rank = lane.first_rank()
                if rank == entry[:2]:
                    return lane
                lane.listed = (*rank, entry[2])
                heapreplace(listed, lane.listed)
        return None

    def _without_credit(self, fits: Fits | None) -> Waiting | None:
        """Return the best request of the least indebted client here: idling would help nobody.

        When even that client owes ``debt_limit`` quanta, all clients here are forgiven equally:
        service that nobody else could have had must not shut them out for hours later.
        """
        account = self._owing.least()
        assert account is not None, "a lane is neither listed nor filed"
        owed = self._deficits.rounds_owed(account)
        if owed >= self._debt_limit:
            clients = [lane.account for lane in self._lanes.values()]
            self._deficits.forgive(clients, owed - self._debt_limit // 2)
        first = self._lanes[account.client].first()
        if fits is None or fits(first):
            return first
        return next(filter(fits, self._by_debt()), None) if self._skip else None

    def _in_order(self) -> Iterator[Waiting]:
        """Walk the requests of clients with credit, best first, without taking anything out.

        A best-first walk down the heap of lanes; each lane that it meets is walked alongside.
        """
        listed = self._listed
        steps = 0
        frontier: list[tuple[int, int, int, int | Iterator[tuple[Rank, Waiting]], Waiting | None]] = []
        if listed:
            frontier.append((*listed[0][:2], steps, 0, None))
        while frontier:
            _, _, _, source, item = heappop(frontier)
            if isinstance(source, int):
                for child in range(2 * source + 1, min(2 * source + 3, len(listed))):
                    steps += 1
                    heappush(frontier, (*listed[child][:2], steps, child, None))
                lane = self._lanes.get(listed[source][2])
                if lane is None or lane.listed is not listed[source] or lane.account.state != CREDITED:
                    continue
                source = lane.in_order()
            elif item is not None:
                yield item
            following = next(source, None)
            if following is not None:
                steps += 1
                heappush(frontier, (*following[0], steps, source, following[1]))

    def _by_debt(self) -> Iterator[Waiting]:
        """Walk the requests of clients without credit, least indebted client first."""
        lanes = sorted(self._lanes.values(), key=lambda lane: (lane.account.tag() or 0, lane.born))
        return (item for lane in lanes for _, item in lane.in_order())

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        assert self._size == sum(map(len, self._lanes.values()))
        self._tracker.check(self)
        self._owing.check()
        entries = set(map(id, self._listed))
        for client, lane in self._lanes.items():
            lane.check()
            assert lane.account.client == client
            assert lane.account.holders[self._number] is self
            assert all(item.client == client for item in lane)
            first = min(lane, key=lambda item: (-item.matched_tokens, item.seq))
            assert lane.first() is first
            if lane.listed is not None:
                assert id(lane.listed) in entries
            if lane.account.state == CREDITED:
                assert lane.listed is not None
                assert lane.listed[:2] <= (-first.matched_tokens, first.seq)
            assert lane.listed is not None or client in self._owing
        assert len(self._listed) <= 2 * len(self._lanes) + SPARE

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Waiting]:
        return chain.from_iterable(self._lanes.values())


class Dlpm(OrderingBase[DlpmQueue]):
    """Longest match first among clients that have credit; whoever has none waits for a refill.

    Service is charged when it is known: computed prompt tokens at admission, output tokens as they
    come. Credit may go below zero and is repaid by later refills, which makes unknown output
    lengths fair. A refill gives each queued client without credit ``quantum`` times its weight,
    once no queued client has credit; so refills never lift anybody above one quantum, and an idle
    client banks nothing.

    With ``scope=fleet`` a client has one account for all workers. A worker none of whose queued
    clients has credit, while others elsewhere do, serves its least indebted one meanwhile.
    """

    name: ClassVar[str] = "dlpm"
    source: ClassVar[str] = "arXiv 2501.14312, algorithm 1; scope=fleet is ours"
    summary: ClassVar[str] = "longest cached prefix first among clients with credit (deficit round robin)"
    params: ClassVar[tuple[Param, ...]] = (
        Param(
            "quantum",
            8192,
            "service units a refill gives: small is as fair as vtc, large as local as lpm",
            low=1,
            high=2**31,
        ),
        Param(
            "scope",
            "fleet",
            "deficits of a client: one for the fleet, or one a worker as in the paper",
            choices=("fleet", "worker"),
        ),
        ON_NO_FIT,
        Param(
            "debt_limit",
            32,
            "scope=fleet: quanta that a worker's clients may all owe before it forgives half of them",
            low=2,
        ),
    )
    uses_match: ClassVar[bool] = True

    def __init__(
        self,
        context: OrderingContext,
        quantum: int = 8192,
        scope: str = "fleet",
        on_no_fit: str = "stop",
        debt_limit: int = 32,
    ) -> None:
        super().__init__(context)
        self._quantum = quantum
        self.skips = on_no_fit == "skip"
        self._debt_limit = debt_limit
        self._weights: dict[ClientId, float] = {}
        self._fleet = Deficits(quantum, self._weights) if scope == "fleet" else None
        self._scopes: dict[int, Deficits] = {}

    def _new_queue(self, number: int, matched: Matched) -> DlpmQueue:
        scope = self._scopes[number] = self._fleet or Deficits(self._quantum, self._weights)
        return DlpmQueue(number, scope, matched, self.skips, self._debt_limit)

    def passes(self, number: int, client: ClientId) -> bool:
        """Let it pass if it would be served now, with the refill that it would cause."""
        return self._scopes[number].passes(client, self._debt_limit)

    def drop_queue(self, number: int) -> None:
        """Forget an empty queue, and with ``scope=worker`` the deficits that were kept for it."""
        super().drop_queue(number)
        del self._scopes[number]

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's weight; debts stay as they are. Raises ValueError unless it is above 0."""
        super().set_weight(client, weight)
        self._weights[client] = weight
        for scope in self._deficits():
            scope.set_weight(client)

    def admitted(self, number: int, item: Waiting, extend_tokens: int) -> None:
        """Charge the prompt tokens that will be computed."""
        self._charge(number, item.client, self.costs.extend * extend_tokens)

    def decoded(self, number: int, client: ClientId, tokens: int) -> None:
        """Charge output tokens."""
        self._charge(number, client, self.costs.output * tokens)

    def corrected(self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int) -> None:  # noqa: ARG002 - one interface
        """Charge the signed difference in computed prompt tokens."""
        self._charge(number, client, self.costs.extend * extend_tokens)

    def _charge(self, number: int, client: ClientId, units: int) -> None:
        """Charge where the client's account is; the books of a worker that is gone are closed."""
        scope = self._fleet or self._scopes.get(number)
        if scope is not None:
            scope.charge(client, units)

    def credit(self, number: int, client: ClientId) -> float:
        """Return q of the client: above 0 it may be served, below it owes."""
        scope = self._fleet or self._scopes.get(number)
        return scope.credit(client) if scope is not None else 0.0

    def tick(self, now: int) -> None:
        """Forget clients that were idle for an hour and owe nothing."""
        for scope in self._deficits():
            scope.tick(now)

    def _deficits(self) -> Iterable[Deficits]:
        return (self._fleet,) if self._fleet is not None else self._scopes.values()

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        super().check()
        for scope in self._deficits():
            scope.check()
