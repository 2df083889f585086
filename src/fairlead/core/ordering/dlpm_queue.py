"""The queue of ``dlpm.py``: finds the longest match among clients with credit in logarithmic time.

The plain way, which ``tests/core/ordering_naive.py`` takes, sorts all that waits at each decision.
"""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain, count

from fairlead.core.model import BlockKey, ClientId
from fairlead.core.ordering.base import Fits, Matched, QueuedRequest
from fairlead.core.ordering.deficits import Deficit, Deficits
from fairlead.core.ordering.heaps import SPARE, ItemHeap, Rank
from fairlead.core.ordering.tracker import MatchTracker

_Entry = tuple[int, int, ClientId]


_TIE_BITS = 40
"""Room for what breaks ties below a match: prompts, and ageing over decades."""


class Lane(ItemHeap):
    """One client's waiting requests in one queue."""

    __slots__ = ("account", "listed")

    def __init__(self, account: Deficit) -> None:
        super().__init__()
        self.account = account
        self.listed: _Entry | None = None
        """The lane's valid entry in its queue's agenda."""


class DlpmQueue:
    """One worker's waiting requests: a lane a client, and an agenda of lanes.

    Lanes of newly active clients (``Deficits.newly_active``) stand in a heap of their own and go first. The
    agenda holds, for each round to come, a heap of the lanes whose client will have credit in
    it, best request first. When the round comes its heap is the order; nothing moves. An entry is
    never later than its lane should be: one that turns out to be early, because the client was
    charged or its best request went, is put right when it surfaces.

    Entries are compared by value. A stale one that happens to equal the lane's valid one, in another
    round, does no harm: whatever surfaces is held against the lane's present round and best request.
    """

    def __init__(
        self,
        number: int,
        deficits: Deficits,
        matched: Matched,
        skip: bool,
        debt_limit: int,
        ageing: int | None,
    ) -> None:
        self._number = number
        self._ageing = ageing
        """Tokens a second, where of equal matches the shorter prompt goes first; None: the older request."""
        self._deficits = deficits
        self._skip = skip
        self._debt_limit = debt_limit
        self._tracker = MatchTracker(matched)
        self._lanes: dict[ClientId, Lane] = {}
        self._newly: list[_Entry] = []
        """A heap of the lanes of newly active clients, best request first."""
        self._newly_in = 0
        """The round in which they are newly active."""
        self._agenda: dict[int, list[_Entry]] = {}
        self._rounds: list[int] = []
        """A heap of the agenda's rounds."""
        self._entries = 0
        self._size = 0

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``, of whose blocks the worker caches the first ``matched``."""
        self._tracker.add(item, matched)
        self._size += 1
        lane = self._lanes.get(item.client)
        if lane is None:
            account = self._deficits.arriving(item.client)
            lane = self._lanes[item.client] = Lane(account)
            self._deficits.join(account, self._number, self)
        self._place(lane, item)

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``. Raises KeyError if it is not queued here."""
        lane = self._lanes[item.client]
        lane.remove(item)
        self._tracker.remove(item)
        self._size -= 1
        if not lane:
            del self._lanes[item.client]
            self._deficits.leave(lane.account, self._number)
            self._compact()

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the longest match among clients with credit, refilling when nobody queued has any.

        Where others elsewhere have credit and nobody here, the least indebted client goes.
        """
        if not self._size:
            return None
        deficits = self._deficits
        if deficits.due():
            deficits.refill()
        lane = self._front()
        if lane.account.round > deficits.rounds:
            self._forgive(lane.account)
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

    def eased(self, account: Deficit) -> None:
        """List the client's lane in its earlier round."""
        lane = self._lanes[account.client]
        self._list(lane, lane.first_rank())
        self._compact()

    def _place(self, lane: Lane, item: QueuedRequest) -> None:
        rank = lane.put(item, self._merit(item))
        if lane.listed is None or rank < lane.listed:
            self._list(lane, rank)
            self._compact()

    def _merit(self, item: QueuedRequest) -> int:
        """Return what the request goes by: more goes first."""
        if self._ageing is None:
            return item.matched_tokens
        request = item.request
        # Everybody ages alike, so the time of arrival says it once and for all.
        aged = request.arrived_us * self._ageing // 1_000_000
        return (item.matched_tokens << _TIE_BITS) - request.prompt_tokens - aged

    def _list(self, lane: Lane, rank: Rank) -> None:
        """Give the lane a new entry, in the round in which its client has credit."""
        lane.listed = (*rank, lane.account.client)
        self._entries += 1
        if self._deficits.newly_active(lane.account):
            heappush(self._newly, lane.listed)
            return
        number = self._number_of(lane.account)
        entries = self._agenda.get(number)
        if entries is None:
            self._agenda[number] = [lane.listed]
            heappush(self._rounds, number)
        else:
            heappush(entries, lane.listed)

    def _number_of(self, account: Deficit) -> int:
        """Return the round that the client's lane is listed in.

        With ``light`` credit can be more than a quantum. Who has more by whole quanta then goes first: it was
        newly active when a round passed, and has not been served since.
        """
        deficits = self._deficits
        return account.round if deficits.light else max(account.round, deficits.rounds)

    def _front(self) -> Lane:
        """Return the lane that goes first: a newly active client's, else of the earliest round.

        Newly active clients let others with credit go once these are a quantum behind.
        """
        deficits = self._deficits
        if self._newly_in != deficits.rounds:
            self._list_newly_again()
        newly = self._surface(self._newly, deficits.rounds, newly=True) if self._newly else None
        if newly is None:
            lane = self._first_by_round()
            assert lane is not None, "no lane is listed"
            return lane
        if deficits.lead >= deficits.quantum:
            lane = self._first_by_round()
            if lane is not None and lane.account.round <= deficits.rounds:
                return lane
        return newly

    def _list_newly_again(self) -> None:
        """A round passed: list those that were newly active with the others."""
        entries, self._newly = self._newly, []
        self._newly_in = self._deficits.rounds
        self._entries -= len(entries)
        for entry in entries:
            lane = self._lanes.get(entry[2])
            if lane is not None and lane.listed == entry:
                self._list(lane, lane.first_rank())

    def _first_by_round(self) -> Lane | None:
        """Return the lane with the best request of the earliest round."""
        rounds = self._rounds
        while rounds:
            number = rounds[0]
            lane = self._surface(self._agenda[number], number)
            if lane is not None:
                return lane
            del self._agenda[heappop(rounds)]
        return None

    def _surface(self, entries: list[_Entry], number: int, *, newly: bool = False) -> Lane | None:
        """Return the first lane of a round, or of newly active clients; None if all were stale or early."""
        while entries:
            entry = entries[0]
            lane = self._lanes.get(entry[2])
            if lane is None or lane.listed != entry:
                heappop(entries)
                self._entries -= 1
            elif (
                self._number_of(lane.account) > number
                or self._deficits.newly_active(lane.account) is not newly
            ):
                heappop(entries)
                self._entries -= 1
                self._list(lane, lane.first_rank())
            else:
                rank = lane.first_rank()
                if rank == entry[:2]:
                    return lane
                lane.listed = (*rank, entry[2])
                heapreplace(entries, lane.listed)
        return None

    def _forgive(self, least: Deficit) -> None:
        """Forgive all clients here alike when even the least indebted owes ``debt_limit`` quanta.

        Service that nobody else could have had must not shut them out for hours later.
        """
        owed = least.round - 1 - self._deficits.rounds
        if owed >= self._debt_limit:
            clients = [lane.account for lane in self._lanes.values()]
            self._deficits.forgive(clients, owed - self._debt_limit // 2)

    def _in_order(self) -> Iterator[QueuedRequest]:
        """Walk the requests of clients with credit in order; where there are none, of all, by round."""
        deficits = self._deficits
        now = deficits.rounds
        self._rebuild()
        numbers = sorted(self._rounds)
        if not self._newly and numbers[0] > now:
            return chain.from_iterable(self._walk(self._agenda[number], number) for number in numbers)
        newly = self._walk(self._newly, now)
        others = chain.from_iterable(self._walk(self._agenda[n], n) for n in numbers if n <= now)
        return chain(others, newly) if deficits.lead >= deficits.quantum else chain(newly, others)

    def _walk(self, entries: list[_Entry], number: int) -> Iterator[QueuedRequest]:
        """Walk one round's requests in order without taking anything out.

        A best-first walk down the heap of lanes; each lane that it meets is walked alongside.
        """
        steps = count()
        frontier: list[tuple[Rank, int, int | Iterator[tuple[Rank, QueuedRequest]], QueuedRequest | None]]
        frontier = [(entries[0][:2], next(steps), 0, None)] if entries else []
        while frontier:
            _, _, source, item = heappop(frontier)
            if isinstance(source, int):
                for child in range(2 * source + 1, min(2 * source + 3, len(entries))):
                    heappush(frontier, (entries[child][:2], next(steps), child, None))
                lane = self._lanes.get(entries[source][2])
                if lane is None or lane.listed != entries[source] or lane.account.round > number:
                    continue
                source = lane.in_order()
            elif item is not None:
                yield item
            following = next(source, None)
            if following is not None:
                heappush(frontier, (following[0], next(steps), source, following[1]))

    def _compact(self) -> None:
        if self._entries > 2 * len(self._lanes) + SPARE:
            self._rebuild()

    def _rebuild(self) -> None:
        """Make the agenda anew, without stale or early entries."""
        self._agenda.clear()
        self._newly = []
        self._newly_in = self._deficits.rounds
        for client, lane in self._lanes.items():
            lane.listed = (*lane.first_rank(), client)
            if self._deficits.newly_active(lane.account):
                self._newly.append(lane.listed)
            else:
                self._agenda.setdefault(self._number_of(lane.account), []).append(lane.listed)
        heapify(self._newly)
        for entries in self._agenda.values():
            heapify(entries)
        self._rounds = list(self._agenda)
        heapify(self._rounds)
        self._entries = len(self._lanes)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        assert self._size == sum(map(len, self._lanes.values()))
        self._tracker.check(self)
        assert sorted(self._agenda) == sorted(self._rounds)
        entries = len(self._newly) + sum(map(len, self._agenda.values()))
        assert self._entries == entries <= 2 * len(self._lanes) + SPARE
        listed: dict[_Entry, int] = {}
        for number in sorted(self._agenda, reverse=True):
            listed.update(dict.fromkeys(self._agenda[number], number))
        for client, lane in self._lanes.items():
            lane.check()
            assert lane.account.client == client
            assert lane.account.holders[self._number] is self
            assert all(item.client == client for item in lane)
            first = min(lane, key=lambda item: (-self._merit(item), item.seq))
            assert lane.first() is first
            assert lane.listed is not None
            assert lane.listed[:2] <= (-self._merit(first), first.seq)
            # An entry among the newly active is listed again when a round passes, or when it surfaces.
            if lane.listed not in self._newly:
                assert not self._deficits.newly_active(lane.account)
                assert listed[lane.listed] <= self._number_of(lane.account)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[QueuedRequest]:
        return chain.from_iterable(self._lanes.values())
