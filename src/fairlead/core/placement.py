"""Where requests go: routed to a worker, put into its queue, and sent once it has capacity.

Whatever is decided here is reserved in all books before the call returns. ``now`` is in microseconds;
``out`` takes the commands.
"""

from fairlead.core.block_sizes import BlockSizes
from fairlead.core.commands import Command, Dispatch, Reasons
from fairlead.core.deadlines import Deadlines
from fairlead.core.fleet import FleetState
from fairlead.core.ledger import Ledger
from fairlead.core.matching import Matcher
from fairlead.core.model import RequestId
from fairlead.core.ordering.base import Ordering, QueuedRequest
from fairlead.core.prefix import PrefixIndex
from fairlead.core.routing.base import Choice, Routing
from fairlead.core.shedding import QueueShares
from fairlead.core.stealing import Stealing
from fairlead.core.tracked import TrackedRequest
from fairlead.core.worker import Worker


class Placement:
    """Routes, queues and sends. Which requests there are, and what becomes of them, the dispatcher knows."""

    __slots__ = (
        "_fleet", "_ledger", "_ordering", "_robbed", "_routing", "_workers", "block_sizes", "deadlines",
        "matcher", "parked", "shares", "stealing",
    )  # fmt: skip

    def __init__(
        self,
        routing: Routing,
        ordering: Ordering,
        queue_timeout_us: int,
        ledger: Ledger,
        fleet: FleetState,
        index: PrefixIndex,
        workers: list[Worker],
    ) -> None:
        self._routing = routing
        self._ordering = ordering
        self._ledger = ledger
        self._fleet = fleet
        self._workers = workers
        """By slot."""
        self.matcher = Matcher(fleet, index)
        self.shares = QueueShares()
        self.deadlines = Deadlines(queue_timeout_us)
        self.parked: dict[RequestId, TrackedRequest] = {}
        """Requests that no worker can take now."""
        self.stealing = Stealing(ordering, fleet, index, workers) if ordering.steals else None
        self._robbed: list[Worker] = []
        """Workers whose next request was taken away: another of theirs may fit."""
        self.block_sizes = BlockSizes(fleet.block_tokens)

    # ------------------------------------------------------------------ to a worker

    def place(self, tracked: TrackedRequest, now: int, out: list[Command]) -> None:
        """Choose a worker for a request and send it, or queue it for that worker."""
        if not self._route(tracked, now):
            self._wait(tracked, now)
            self.parked[tracked.rid] = tracked
            return
        slot = tracked.slot
        worker = self._workers[slot]
        if (
            not self._fleet.queued[slot]
            and worker.has_capacity(tracked.sequences, tracked.extend + tracked.expected)
            and self._ordering.passes(slot, tracked.client)
        ):
            self._fleet.begin(slot, tracked.sequences)
            self._admit(tracked, worker, now, out)
            return
        self._wait(tracked, now)
        worker.enqueue(tracked)
        self.send_waiting(worker, now, out)

    def place_again(self, tracked: TrackedRequest, now: int, out: list[Command]) -> None:
        """Choose a worker anew for a request that waits."""
        self.leave_queue(tracked, now)
        tracked.slot = -1
        self.place(tracked, now, out)

    def unpark(self, now: int, out: list[Command]) -> None:
        """Route what no worker could take before, oldest first, for as long as one can."""
        for tracked in sorted(self.parked.values(), key=lambda tracked: tracked.seq):
            if not self._fleet.candidates:
                return
            self.place_again(tracked, now, out)

    def _route(self, tracked: TrackedRequest, now: int) -> bool:
        """Choose a worker and assign the request to it in all books; False if no worker can take it."""
        request, fleet = tracked.request, self._fleet
        if not fleet.candidates:
            return False
        if tracked.tried:
            self._avoid(tracked.tried)
        match = self.matcher.match(request)
        choice = self._routing.choose(request, match, fleet, now)
        tracked.candidates = fleet.candidates
        if tracked.tried:
            fleet.refresh()
        tracked.choice = choice
        self.block_sizes.heard(request.client, request.block_tokens)
        self._assign(tracked, choice.slot, match.tokens[choice.slot], now)
        return True

    def _avoid(self, tried: tuple[int, ...]) -> None:
        """Leave workers that failed a request out of the candidates, unless no other is left."""
        fleet = self._fleet
        others = [s for s in fleet.candidates if s not in tried]
        if others:
            fleet.candidates, fleet.candidate_bitmap = others, sum(1 << s for s in others)

    def _assign(self, tracked: TrackedRequest, slot: int, matched: int, now: int) -> None:
        """Give a request to a worker in all books."""
        self._workers[slot].assign(tracked, matched)
        self._routing.assigned(tracked.request, slot, tracked.extend, now)

    # ------------------------------------------------------------------ from its queue

    def send_waiting(self, worker: Worker, now: int, out: list[Command]) -> None:
        """Send from one worker's queue for as long as it has capacity."""
        fleet, stealing, slot, queue = self._fleet, self.stealing, worker.slot, worker.queue
        if not fleet.up[slot] or not (fleet.queued[slot] or (stealing is not None and fleet.waiting)):
            return
        while not worker.full:
            if stealing is None:
                item = worker.head or queue.head()
            else:
                item = self._next_with_credit(worker, stealing, now)
            if item is None:
                break
            if not worker.fits(item):
                if not self._ordering.skips:
                    worker.head = item
                    break
                item = queue.head(worker.fits)
                if item is None:
                    break
            assert isinstance(item, TrackedRequest)
            self.shares.remove(item.client, item.rid)
            worker.take(item)
            self._admit(item, worker, now, out)
        while self._robbed:
            self.send_waiting(self._robbed.pop(), now, out)

    def _next_with_credit(self, worker: Worker, stealing: Stealing, now: int) -> QueuedRequest | None:
        """Return who goes next on a worker; somebody from another queue before one without credit."""
        item = worker.head
        if item is None or stealing.overtaken(worker.slot, item):
            worker.head = None
            item = worker.queue.head()
        if stealing.overtaken(worker.slot, item):
            found = stealing.find(worker, item, now)
            if found is not None:
                stolen, matched = found
                self._steal(stolen, matched, worker, now)
                return stolen
        return item

    def _steal(self, tracked: TrackedRequest, matched: int, thief: Worker, now: int) -> None:
        """Move a request from the queue that it waits in to another worker's."""
        victim = self._workers[tracked.slot]
        if victim.head is tracked:
            self._robbed.append(victim)
        self._leave_worker(tracked, now)
        # Decision logs have this text: it stays as it is.
        tracked.choice = Choice(thief.slot, branch=f"{self._routing.name}, moved: has credit")
        tracked.candidates = (thief.slot,)
        self._assign(tracked, thief.slot, matched, now)
        thief.enqueue(tracked)

    def _admit(self, tracked: TrackedRequest, worker: Worker, now: int, out: list[Command]) -> None:
        """Reserve everything for one request and say that it is to be sent."""
        choice, slot = tracked.choice, worker.slot
        change = worker.start(tracked, now)
        if change:
            self._routing.corrected(tracked.client, slot, 0, change)
        tracked.account = self._ledger.reserve(tracked.client, tracked.extend, now)
        credit = self._ordering.admitted(slot, tracked, tracked.extend)
        branch, matched = choice.branch or self._routing.name, tracked.request.prompt_tokens - tracked.extend
        reasons = Reasons(branch, choice.scores, tracked.candidates, matched, credit)
        out.append(Dispatch(tracked.rid, self._fleet.ids[slot], tracked.attempts, reasons))

    # ------------------------------------------------------------------ waiting

    def _wait(self, tracked: TrackedRequest, now: int) -> None:
        """Count a request among the waiting."""
        self.shares.add(tracked.client, tracked.rid)
        self.deadlines.begin(tracked, now)

    def leave_queue(self, tracked: TrackedRequest, now: int) -> None:
        """Take a queued request out of its worker's queue, or of the parked ones; it costs nothing."""
        self.shares.remove(tracked.client, tracked.rid)
        if tracked.slot < 0:
            del self.parked[tracked.rid]
        else:
            self._leave_worker(tracked, now)

    def _leave_worker(self, tracked: TrackedRequest, now: int) -> None:
        """Take a request out of its worker's queue; it goes on waiting elsewhere, or ends."""
        slot = tracked.slot
        self._workers[slot].leave(tracked)
        self._routing.unassigned(tracked.request, slot, tracked.extend, now)
