"""PLAS: programs by the service that their calls attained, in levels, and who waited long goes up."""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import ClassVar

from fairlead.core.model import BlockKey, Request
from fairlead.core.ordering.base import ON_NO_FIT, Fits, Matched, OrderingBase, OrderingContext, QueuedRequest
from fairlead.core.ordering.clients import Accounts
from fairlead.core.ordering.heaps import SPARE, ItemHeap
from fairlead.core.params import Param

LEVELS = 8
"""The last one has no upper end."""
RATIO = 4
"""Of the upper ends of two levels in succession."""


class Program:
    """What one program got, and how long its calls waited. ``client`` is its key among all programs."""

    __slots__ = ("client", "idle_us", "queued", "service", "used", "waited")

    def __init__(self, client: str) -> None:
        self.client = client
        self.service = 0
        """Service units of its calls that ended."""
        self.waited = 0
        """Service units that workers gave while its calls waited for them."""
        self.queued = 0
        """Its calls that wait."""
        self.used = False
        self.idle_us = -1


class Programs:
    """All programs of a fleet by key. A request without a session is one of its own, and is not kept."""

    __slots__ = ("_upper", "accounts", "patience")

    def __init__(self, quantum: int, patience: float) -> None:
        self.accounts: Accounts[Program] = Accounts(Program)
        self.patience = patience
        self._upper = [quantum * RATIO**i for i in range(LEVELS - 1)]

    def of(self, request: Request) -> Program | None:
        """Return the program that a request is a call of; None if it is one of its own."""
        if not request.session:
            return None
        # The length keeps names apart that themselves contain what separates them here.
        return self.accounts.get(f"{len(request.client)}:{request.client}:{request.session}")

    def level(self, program: Program) -> int:
        """Return the level of a program's next call, 0 to ``LEVELS`` - 1."""
        service = program.service
        return next((level for level, upper in enumerate(self._upper) if service < upper), LEVELS - 1)


class WaitingCall:
    """One waiting call: its program, its level, and when it came in terms of service."""

    __slots__ = ("due", "item", "level", "program", "since")

    def __init__(self, item: QueuedRequest, program: Program, level: int, since: int, due: float) -> None:
        self.item = item
        self.program = program
        self.level = level
        self.since = since
        """Service that the worker had given when the call came."""
        self.due = due
        """Service of the worker from which on the call belongs to the first level."""


class PlasQueue:
    """One worker's waiting calls by (level, arrival)."""

    def __init__(self, programs: Programs, skip: bool) -> None:
        self._programs = programs
        self._skip = skip
        self._items = ItemHeap()
        self._waiting: dict[int, WaitingCall] = {}
        """By number of arrival: the calls of programs that are kept."""
        self._due: list[tuple[float, int]] = []
        """A heap of (due, number of arrival) of calls below the first level. Stale entries stay a while."""
        self.given = 0
        """Service units that the worker has given: the clock by which waiting is measured."""

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``; its level is by the calls of its program that have ended by now."""
        item.matched = matched
        programs = self._programs
        program = programs.of(item.request)
        if program is None:
            self._items.put(item, 0)
            return
        if not program.queued:
            programs.accounts.busy(program)
        program.queued += 1
        level = programs.level(program)
        due = self.given + programs.patience * program.service - program.waited
        self._waiting[item.seq] = WaitingCall(item, program, level, self.given, due)
        self._items.put(item, -level)
        if level:
            heappush(self._due, (due, item.seq))
            self._compact()

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``; its waiting counts for its program. Raises KeyError if it is not queued here."""
        self._items.remove(item)
        call = self._waiting.pop(item.seq, None)
        if call is None:
            return
        program = call.program
        program.waited += self.given - call.since
        program.used = True
        program.queued -= 1
        if not program.queued:
            self._programs.accounts.idle(program)
        self._compact()

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the oldest call of the first level that has any; with ``skip``, the first that fits."""
        due, given = self._due, self.given
        while due and due[0][0] <= given:
            at, seq = heappop(due)
            call = self._waiting.get(seq)
            if call is not None and call.due == at and call.level:
                call.level = 0
                self._items.put(call.item, 0)
        return self._items.head(fits, self._skip)

    def _compact(self) -> None:
        if len(self._due) > 2 * len(self._waiting) + SPARE:
            self._due = [(call.due, seq) for seq, call in self._waiting.items() if call.level]
            heapify(self._due)

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: caches do not matter here."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        self._items.check()
        entries = set(self._due)
        items = {item.seq: item for item in self._items}
        for seq, call in self._waiting.items():
            assert items[seq] is call.item
            assert call.since <= self.given
            assert not call.level or (call.due, seq) in entries
            assert call.program.queued > 0
        assert all(not item.request.session for seq, item in items.items() if seq not in self._waiting)
        assert len(self._due) <= 2 * len(self._waiting) + SPARE

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._items)


class Plas(OrderingBase[PlasQueue]):
    """Calls of the program that attained the least service first, in ``LEVELS`` levels, by arrival in each.

    A program is a client's session. Its attained service is that of its calls that have ended: extend
    tokens and output tokens at their costs. Level 0 ends at ``quantum`` service units, each further one at
    ``RATIO`` times as many. A call whose program has waited ``patience`` times what it attained goes to the
    first level, which keeps programs with long histories from starving.

    Decisions of ours: service is counted in tokens at their costs (the paper: seconds of execution), and
    waiting in the service that the worker gave meanwhile (seconds), so that the order depends on no clock.
    The bounds of the levels, their number and ``patience``. A call keeps the level that it came with until
    it is promoted. Running calls are not interrupted: an ordering cannot (the paper moves a call down, and
    preempts it, when it outlives its level's quantum). A program that was idle for an hour starts anew.
    """

    name: ClassVar[str] = "plas"
    source: ClassVar[str] = "arXiv 2502.13965 (Autellix), PLAS; without its preemption, in tokens for seconds"
    summary: ClassVar[str] = (
        "The program (session) with the least attained service, in levels; who waited long goes to the first."
    )
    params: ClassVar[tuple[Param, ...]] = (
        Param("quantum", 2048, "service units up to which a program is in the first level", low=1),
        Param(
            "patience",
            64.0,
            "times the service that its program attained, given by the worker while it waited, after which a"
            " call goes to the first level",
            low=0,
        ),
        ON_NO_FIT,
    )
    uses_match: ClassVar[bool] = False

    def __init__(
        self, context: OrderingContext, quantum: int = 2048, patience: float = 64.0, on_no_fit: str = "stop"
    ) -> None:
        super().__init__(context)
        self.skips = on_no_fit == "skip"
        self._programs = Programs(quantum, patience)

    def _new_queue(self, number: int, matched: Matched) -> PlasQueue:  # noqa: ARG002 - one interface
        return PlasQueue(self._programs, self.skips)

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:  # noqa: ARG002 - one interface
        """Move the worker's clock on by the prompt's service; return 0, since nothing is owed."""
        self._give(number, self.costs.extend * extend_tokens)
        return 0.0

    def decoded(self, number: int, client: str, tokens: int) -> None:  # noqa: ARG002 - one interface
        """Move the worker's clock on by the tokens' service."""
        self._give(number, self.costs.output * tokens)

    def ended(self, number: int, item: QueuedRequest, extend_tokens: int, output_tokens: int) -> None:  # noqa: ARG002 - one interface
        """Count the service of a call that ended for its program."""
        program = self._programs.of(item.request)
        if program is not None:
            program.service += self.costs.extend * extend_tokens + self.costs.output * output_tokens
            program.used = True

    def _give(self, number: int, units: int) -> None:
        """Move a worker's clock on; what is taken back does not turn it back."""
        queue = self._queues.get(number)
        if queue is not None and units > 0:
            queue.given += units

    def tick(self, now: int) -> None:
        """Forget programs that were idle for an hour."""
        self._programs.accounts.tick(now, lambda _: False)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        super().check()
        programs = self._programs.accounts
        idle = set(programs.idle_clients())
        waiting: dict[str, int] = {}
        for queue in self._queues.values():
            for item in queue:
                program = self._programs.of(item.request)
                if program is not None:
                    waiting[program.client] = waiting.get(program.client, 0) + 1
        for key, program in programs.by_client.items():
            assert program.queued == waiting.get(key, 0)
            assert (key in idle) == (not program.queued)
