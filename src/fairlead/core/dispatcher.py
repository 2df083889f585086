"""The one mind: events in, commands out.

``Dispatcher.step`` routes each request to a worker, keeps a queue for each worker, orders it, and
admits within credits. Everything is decided and reserved inside the call; the caller does the I/O
afterwards and reports what came of it as further events.

Credits hold requests back so that fairness can act on them: a worker gets as many sequences and KV
tokens as it can run at once, counted in this dispatcher's own books, and the rest waits here.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from fairlead.core import events as ev
from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reject, Why
from fairlead.core.covered import covered
from fairlead.core.fleet import FleetState
from fairlead.core.job import Job
from fairlead.core.ledger import Ledger
from fairlead.core.lifecycle import ENDS, LifecycleError, State
from fairlead.core.model import BlockKey, ClientId, Request, RequestId
from fairlead.core.ordering.base import Fits, Ordering, Queue, Waiting
from fairlead.core.prefilling import Prefilling
from fairlead.core.prefix import PrefixIndex
from fairlead.core.routing.base import Choice, Match, Routing
from fairlead.core.settings import Settings
from fairlead.core.shedding import QueueShares

__all__ = ["Dispatcher", "Settings"]

HOUR_US = 3_600_000_000
_HIT_MEMORY = 0.98  # weight of the past in a worker's hit rate: the last ~50 requests count
_OUTPUT_MEMORY = 0.98  # likewise for the mean output length
_MASK_CACHE = 4096
_LOOKS = 16


class Dispatcher:
    """State machine over all requests, clients and workers of one gateway, plugin or simulation.

    ``routing`` and ``ordering`` are the two policies. ``weights`` gives a client's weight (default
    1). Time is whatever the events say, in microseconds; it never runs backwards here.
    """

    def __init__(
        self,
        routing: Routing,
        ordering: Ordering,
        settings: Settings | None = None,
        weights: Mapping[ClientId, float] | None = None,
    ) -> None:
        self.routing = routing
        self.ordering = ordering
        self.settings = settings or Settings()
        self._gated = self.settings.prefill_backlog_us > 0
        self._forward = self.settings.forward
        self._moves = ordering.moves
        self._looked = 0
        """The slot whose queue was last asked for a request that may move."""
        self._vacated: list[int] = []
        """Slots whose turn has moved away: another of their requests may fit."""
        self._tracked = ordering.uses_match
        """Whether queues keep ``Waiting.matched`` current."""
        self.ledger = Ledger(self.settings.costs)
        self.fleet = FleetState(self._count_kv)
        self.fleet.in_turns = ordering.in_turns
        self.index = PrefixIndex(self._on_stored, self._on_evicted)
        self.shares = QueueShares()
        self.jobs: dict[RequestId, Job] = {}
        """Requests that have not ended."""
        self.ended = dict.fromkeys(ENDS, 0)
        self.arrived = 0
        self.retries = 0
        self.now = 0
        self._queues: list[Queue | None] = []
        self._fits_on: list[Fits] = []
        self._turn: list[Waiting | None] = []
        """Who is next but does not fit yet: a turn, once taken, is kept, or large requests starve."""
        self._prefilling: list[Prefilling] = []
        self._kv_extra: list[int] = []
        self._hits: list[tuple[float, float]] = []
        self._exact: list[bool] = []
        self._leaving: set[int] = set()
        self._parked: dict[RequestId, Job] = {}
        self._deadlines: deque[tuple[int, RequestId]] = deque()
        self._seq = 0
        self._retry_tokens = float(self.settings.retry_burst)
        self._block_tokens = self._sized_for = 16.0
        self._slots_of: dict[int, tuple[int, ...]] = {}
        self._next_forget = 0
        self._handlers: dict[type, Callable[..., None]] = {
            ev.Arrived: self._arrived,
            ev.FirstToken: self._first_token,
            ev.Progressed: self._progressed,
            ev.Finished: self._finished,
            ev.Failed: self._failed,
            ev.Cancelled: self._cancelled,
            ev.WorkerUp: self._worker_up,
            ev.WorkerDown: self._worker_down,
            ev.WorkerGone: self._worker_gone,
            ev.WorkerChanged: self._worker_changed,
            ev.CacheStored: self._cache_stored,
            ev.CacheEvicted: self._cache_evicted,
            ev.CacheCleared: self._cache_cleared,
            ev.Tick: self._tick,
        }
        for client, weight in (weights or {}).items():
            self.set_weight(client, weight)

    # ------------------------------------------------------------------ the boundary

    def step(self, event: ev.Event) -> list[Command]:
        """Take in one event and return what to do, in order.

        Raises ``LifecycleError`` for an event about an unknown or ended request, or an illegal move,
        and ``KeyError`` for an unknown worker; nothing has changed then.
        """
        out = self._at(event[0])
        self._handlers[type(event)](event, out)
        return self._done(out)

    # The events that come most often, for callers that make no event of them: the same as ``step``.

    def arrive(self, at: int, request: Request) -> list[Command]:
        """Take in ``Arrived``."""
        out = self._at(at)
        self._arrive(request, out)
        return self._done(out)

    def first_token(self, at: int, rid: RequestId) -> list[Command]:
        """Take in ``FirstToken``."""
        out = self._at(at)
        self._begin_answer(rid, out)
        return self._done(out)

    def progress(self, at: int, rid: RequestId, tokens: int) -> list[Command]:
        """Take in ``Progressed``."""
        out = self._at(at)
        self._progress(rid, tokens)
        return self._done(out)

    def finish(
        self,
        at: int,
        rid: RequestId,
        prompt_tokens: int | None,
        cached_tokens: int | None,
        output_tokens: int | None,
    ) -> list[Command]:
        """Take in ``Finished``."""
        out = self._at(at)
        self._finish(rid, prompt_tokens, cached_tokens, output_tokens, out)
        return self._done(out)

    def _at(self, at: int) -> list[Command]:
        """Move the clock, and return a list for what is to be done."""
        if at > self.now:  # noqa: PLR1730 - a call of max() takes longer
            self.now = at
        return []

    def _done(self, out: list[Command]) -> list[Command]:
        if self._parked and self.fleet.candidates:
            self._unpark(out)
        return out

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's weight; raises ValueError unless it is positive and finite."""
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight of client '{client}' must be positive, not {weight!r}")
        self.ledger.account(client).weight = weight
        self.ordering.set_weight(client, weight)
        self.routing.set_weight(client, weight)

    @property
    def queued(self) -> int:
        """Requests waiting for a worker."""
        return self.shares.total

    @property
    def running(self) -> int:
        """Requests sent to a worker and not ended."""
        return len(self.jobs) - self.shares.total

    # ------------------------------------------------------------------ requests

    def _arrived(self, event: ev.Arrived, out: list[Command]) -> None:
        self._arrive(event.request, out)

    def _arrive(self, request: Request, out: list[Command]) -> None:
        if request.rid in self.jobs:
            raise LifecycleError(f"request {request.rid} arrived twice")
        self.arrived += 1
        self._seq += 1
        settings = self.settings
        if self._retry_tokens < settings.retry_burst:
            self._retry_tokens += settings.retry_ratio
        expected = int(self.fleet.mean_output)
        if request.max_tokens is not None and request.max_tokens < expected:
            expected = request.max_tokens
        job = Job(request, self._seq, expected)
        if not self.fleet.slots:
            self._refuse_new(job, out, "no_worker", "no worker is known")
            return
        if self._full() and not self._shed_for(request.client, out):
            self._refuse_new(job, out, "queue_full", f"{self.shares.total} requests are waiting already")
            return
        self.jobs[request.rid] = job
        self._place(job, out)

    def _refuse_new(self, job: Job, out: list[Command], code: str, message: str) -> None:
        job.move("reject")
        self.ended[State.REJECTED] += 1
        out.append(Reject(job.request.rid, code, message))

    def _full(self) -> bool:
        fleet = self.fleet
        return self.shares.total >= self.settings.max_queued or (not fleet.candidates and any(fleet.up))

    def _shed_for(self, client: ClientId, out: list[Command]) -> bool:
        """Make room for ``client`` by dropping the newest of one with more waiting."""
        victim = self.shares.victim()
        if victim is None or self.shares.count(victim[0]) <= self.shares.count(client) + 1:
            return False
        job = self.jobs[victim[1]]
        slot = job.slot
        self._leave_queue(job)
        self._end(job, "reject")
        self._pump(slot, out)
        out.append(Reject(victim[1], "queue_full", "the queue is full and this client has most waiting"))
        return not self._full()

    def _first_token(self, event: ev.FirstToken, out: list[Command]) -> None:
        self._begin_answer(event.rid, out)

    def _begin_answer(self, rid: RequestId, out: list[Command]) -> None:
        job = self._job(rid)
        job.move("first_token")
        if job.pending:
            self._prefilling[job.slot].computed(job.pending, self.now)
            self._computed(job, out)

    def _computed(self, job: Job, out: list[Command]) -> None:
        """Count a running request's prompt as computed; there may be room for more prefill now."""
        slot = job.slot
        self.fleet.pending[slot] -= job.pending
        job.pending = 0
        if self.fleet.waiting:
            self._pump(slot, out)

    def _progressed(self, event: ev.Progressed, out: list[Command]) -> None:
        self._progress(event.rid, event.tokens)

    def _progress(self, rid: RequestId, tokens: int) -> None:
        job = self._job(rid)
        if job.state is not State.DECODING:  # the usual case, which changes nothing
            job.move("progress")
        self._charge_output(job, tokens)

    def _charge_output(self, job: Job, tokens: int) -> None:
        self._decoded(job, tokens)
        self.ordering.decoded(job.slot, job.client, tokens)
        self.routing.decoded(job.client, job.slot, tokens)

    def _decoded(self, job: Job, tokens: int) -> None:
        """Count output tokens in the dispatcher's own books."""
        before = job.decoded
        job.decoded = after = before + tokens
        self.ledger.decoded(job.account, tokens)
        expected = job.expected
        if after > expected or before > expected:
            over = max(after - expected, 0) - max(before - expected, 0)
            job.kv_extra += over
            self._kv_extra[job.slot] += over
            self.fleet.kv_stale.add(job.slot)

    def _finished(self, event: ev.Finished, out: list[Command]) -> None:
        _, rid, prompt, cached, output = event
        self._finish(rid, prompt, cached, output, out)

    def _finish(
        self, rid: RequestId, prompt: int | None, cached: int | None, output: int | None, out: list[Command]
    ) -> None:
        job = self._job(rid)
        job.move("finish")
        slot, expected_prompt = job.slot, job.request.prompt_tokens
        if prompt is None:
            prompt = expected_prompt
        if cached is not None:
            extend = prompt - cached
        else:
            extend = job.extend if prompt == expected_prompt else max(prompt - job.hit_tokens, 1)
        more = 0 if output is None else output - job.decoded
        if more:
            self._decoded(job, more)
        self.ledger.settle(job.account, job.extend, extend)
        prompt_change, change = prompt - expected_prompt, extend - job.extend
        if more or change or prompt_change:
            self.ordering.settled(slot, job.client, prompt_change, change, more)
            self.routing.settled(job.client, slot, prompt_change, change, more)
        fleet = self.fleet
        fleet.mean_output += (job.decoded - fleet.mean_output) * (1 - _OUTPUT_MEMORY)
        job.account.requests += 1
        self._leave_worker(job, computed=True)
        self.ended[State.DONE] += 1
        del self.jobs[rid]
        if fleet.waiting:
            self._pump(slot, out)
        if slot in self._leaving:
            self._free_if_empty(slot)

    def _failed(self, event: ev.Failed, out: list[Command]) -> None:
        job = self._job(event.rid)
        slot = job.slot
        if job.state is State.QUEUED:
            raise LifecycleError(f"request {event.rid} is queued: it cannot fail on a worker")
        if job.state is State.DECODING:
            self._end_running(job, "fail")
            out.append(Fail(event.rid, event.reason))
        else:
            self._refund(job)
            if event.retryable and job.attempts < self.settings.max_attempts and self._retry_tokens >= 1:
                self._retry(job, out)
            else:
                self._end(job, "fail")
                out.append(Fail(event.rid, event.reason))
        self._pump(slot, out)

    def _retry(self, job: Job, out: list[Command]) -> None:
        """Queue a request again, on another worker if there is one; it keeps its place by arrival."""
        self._retry_tokens -= 1
        self.retries += 1
        job.move("retry")
        job.tried = (*job.tried, job.slot)
        job.slot = -1
        self._place(job, out)

    def _refund(self, job: Job) -> None:
        """Take back everything that an attempt was charged, since the worker did no work for it."""
        request, slot = job.request, job.slot
        self.ledger.refund(job.account, job.extend)
        self.ordering.corrected(slot, request.client, -request.prompt_tokens, -job.extend)
        self.routing.unassigned(request, slot, job.extend, self.now)
        self._leave_worker(job, computed=False)

    def _cancelled(self, event: ev.Cancelled, out: list[Command]) -> None:
        job = self._job(event.rid)
        slot = job.slot
        if job.state is State.QUEUED:
            self._leave_queue(job)
            self._end(job, "cancel")
            self._pump(slot, out)
        else:
            worker = self.fleet.ids[slot]
            # What was admitted stays charged: else hanging up before the first token would be free.
            self._end_running(job, "cancel")
            out.append(Cancel(event.rid, worker))
            self._pump(slot, out)

    def _end_running(self, job: Job, what: str) -> None:
        """End a request on its worker, with its reservation taken as the work that was done."""
        self.ledger.settle(job.account, job.extend, job.extend)
        self._leave_worker(job, computed=job.state is State.DECODING)
        self._end(job, what)

    def _end(self, job: Job, what: str) -> None:
        job.move(what)
        self.ended[job.state] += 1
        del self.jobs[job.request.rid]
        if job.slot in self._leaving:
            self._free_if_empty(job.slot)

    def _job(self, rid: RequestId) -> Job:
        job = self.jobs.get(rid)
        if job is None:
            raise LifecycleError(f"request {rid} is unknown or has ended")
        return job

    # ------------------------------------------------------------------ routing and admission

    def _place(self, job: Job, out: list[Command]) -> None:
        """Choose a worker for a request and send it, or queue it for that worker."""
        if not self._route(job):
            self._wait(job)
            self._parked[job.request.rid] = job
            return
        slot, request, fleet = job.slot, job.request, self.fleet
        if (
            not fleet.queued[slot]
            and self._room(slot, job.extend + job.expected)
            and self.ordering.passes(slot, request.client)
        ):
            fleet.begin(slot)
            self._admit(job, slot, out)
            fleet.kv_stale.add(slot)
            return
        self._wait(job)
        self._enqueue(job, slot)
        self._pump(slot, out)

    def _enqueue(self, job: Job, slot: int) -> None:
        """Put a request into a worker's queue."""
        queue, request, fleet = self._queues[slot], job.request, self.fleet
        assert queue is not None
        fleet.add_queued(slot, 1)
        fleet.waits(slot, request.client, job.pending)
        queue.push(job, self.index.ready(slot, request.keys) if self._tracked else 0)
        fleet.kv_stale.add(slot)

    def _wait(self, job: Job) -> None:
        """Count a request among the waiting."""
        rid, timeout = job.request.rid, self.settings.queue_timeout_us
        self.shares.add(job.request.client, rid)
        if timeout:
            self._deadlines.append((self.now + timeout, rid))

    def _route(self, job: Job) -> bool:
        """Choose a worker and assign the request to it in all books; False if no worker can take it."""
        request, fleet = job.request, self.fleet
        if job.tried and not self._avoid(job.tried):
            return False
        match = self._match(request)
        choice = self.routing.choose(request, match, fleet, self.now)
        job.candidates = fleet.candidates
        if job.tried:
            fleet.refresh()
        if choice is None:
            return False
        job.choice = choice
        self._block_tokens = request.block_tokens
        self._assign(job, choice.slot, match.tokens[choice.slot])
        return True

    def _assign(self, job: Job, slot: int, matched: int) -> None:
        """Give a request to a worker in all books."""
        request = job.request
        job.slot = slot
        job.hit_tokens = matched
        job.extend = job.pending = extend = request.prompt_tokens - matched
        self.routing.assigned(request, slot, extend, self.now)
        job.claim = self.index.claim(slot, request.keys)
        self.fleet.pending[slot] += extend

    def _avoid(self, tried: tuple[int, ...]) -> bool:
        """Leave workers that failed a request out of the candidates, unless no other is left."""
        fleet = self.fleet
        others = [s for s in fleet.candidates if s not in tried]
        if others:
            fleet.candidates, fleet.candidate_mask = others, sum(1 << s for s in others)
        return bool(fleet.candidates)

    def _match(self, request: Request) -> Match:
        """Ask the index how much of the prompt each worker caches, for all workers at once."""
        fleet = self.fleet
        tokens = [0] * len(fleet.ids)
        best = blocks_best = 0
        holders: tuple[int, ...] = ()
        candidate_mask = fleet.candidate_mask
        prompt, size = request.prompt_tokens, request.block_tokens
        for blocks, mask in self.index.match(request.keys):
            matched = covered(prompt, size, blocks)
            slots = self._slots(mask)
            for slot in slots:
                tokens[slot] = matched
            eligible = mask & candidate_mask
            if eligible and matched and not holders:
                best, blocks_best = matched, blocks
                holders = slots if eligible == mask else self._slots(eligible)
        return Match(tokens, best, holders, blocks_best)

    def _slots(self, mask: int) -> tuple[int, ...]:
        """Return the slots of a mask. The same few masks recur, so the answers are kept."""
        found = self._slots_of.get(mask)
        if found is None:
            if len(self._slots_of) >= _MASK_CACHE:
                self._slots_of.clear()
            slots = []
            rest = mask
            while rest:
                low = rest & -rest
                slots.append(low.bit_length() - 1)
                rest ^= low
            found = self._slots_of[mask] = tuple(slots)
        return found

    def _pump(self, slot: int, out: list[Command]) -> None:
        """Admit from one worker's queue for as long as it has credit."""
        if slot < 0:
            return
        fleet = self.fleet
        queue = self._queues[slot]
        if queue is None or not fleet.up[slot] or not (fleet.queued[slot] or (self._moves and fleet.waiting)):
            return
        fits, turn = self._fits_on[slot], self._turn
        while not self._busy(slot):
            item = self._next_with_credit(slot, queue) if self._moves else turn[slot] or queue.head()
            if item is None:
                break
            if not fits(item):
                if not self.ordering.skips:
                    turn[slot] = item
                    break
                item = queue.head(fits)
                if item is None:
                    break
            turn[slot] = None
            queue.discard(item)
            job = self.jobs[item.rid]
            self.shares.remove(item.client, item.rid)
            fleet.start(slot)
            fleet.waits_no_more(slot, job.client, job.pending)
            self._admit(job, slot, out)
            fleet.kv_stale.add(slot)
        while self._vacated:
            self._pump(self._vacated.pop(), out)

    def _next_with_credit(self, slot: int, queue: Queue) -> Waiting | None:
        """Return who goes next on a worker; somebody from another queue before one without credit."""
        ordering, item = self.ordering, self._turn[slot]
        if item is None or (ordering.credited() and ordering.credit(slot, item.client) <= 0):
            self._turn[slot] = None
            item = queue.head()
        if ordering.credited() and (item is None or ordering.credit(slot, item.client) <= 0):
            return self._fetch(slot) or item
        return item

    def _fetch(self, slot: int) -> Waiting | None:
        """Move the oldest request with credit that heads another queue here; None if none may move.

        It may if there is room for it, and it has waited longer than it takes to compute what the other
        worker caches of it. Up to ``_LOOKS`` queues are asked, the next ones in turn.
        """
        fleet = self.fleet
        others = [s for s, queued in enumerate(fleet.queued) if queued and s != slot]
        start = bisect_right(others, self._looked)
        rate, best, best_here = self._prefilling[slot].rate, None, 0
        for other in (others[start:] + others[:start])[:_LOOKS]:
            queue = self._queues[other]
            assert queue is not None
            item = self._turn[other] or queue.head()
            self._looked = other
            if item is None or self.ordering.credit(other, item.client) <= 0:
                continue
            job = self.jobs[item.rid]
            if (best is not None and job.seq > best.seq) or slot in job.tried:
                continue
            request = job.request
            here = request.matched_tokens(self.index.ready(slot, request.keys))
            there = request.matched_tokens(self.index.ready(other, request.keys))
            worth = (self.now - request.arrived_us) * rate >= there - here
            if worth and self._room(slot, request.prompt_tokens - here + job.expected):
                best, best_here = job, here
        if best is None:
            return None
        if self._turn[best.slot] is best:
            self._vacated.append(best.slot)
        self._leave_slot(best)
        best.choice, best.candidates = Choice(slot, branch=f"{self.routing.name}, moved: has credit"), (slot,)
        self._assign(best, slot, best_here)
        self._enqueue(best, slot)
        return best

    def _fits(self, slot: int, item: Waiting) -> bool:
        """Say whether the worker has credit for a request that waits for it."""
        request = item.request
        matched = item.matched if self._tracked else self.index.ready(slot, item.keys)
        extend = request.prompt_tokens - request.matched_tokens(matched)
        return self._room(slot, extend + self.jobs[request.rid].expected)

    def _busy(self, slot: int) -> bool:
        """Say whether the worker has all it can use, of whatever size the next request is."""
        if self._forward:
            return False
        fleet = self.fleet
        if fleet.running[slot] >= fleet.sequences[slot]:
            return True
        return self._gated and self._prefilling[slot].full

    def _room(self, slot: int, tokens: int) -> bool:
        """Say whether the worker has credit for one more sequence of so many new KV tokens.

        An idle worker takes anything: a request that can never fit is for the engine to refuse, which
        knows its own limit exactly.
        """
        fleet = self.fleet
        if self._forward or not fleet.running[slot]:
            return True
        if self._busy(slot):
            return False
        in_use = self.index.pinned(slot) * self._sized_for + self._kv_extra[slot]
        return in_use + tokens <= fleet.kv_tokens[slot]

    def _admit(self, job: Job, slot: int, out: list[Command]) -> None:
        """Reserve everything for one request and say that it is to be sent."""
        request, fleet = job.request, self.fleet
        claim, choice = job.claim, job.choice
        assert claim is not None
        rid, client = job.rid, job.client
        prompt, size = request.prompt_tokens, request.block_tokens
        matched = covered(prompt, size, self.index.start(claim))
        extend = prompt - matched
        if extend != job.extend:
            self.routing.corrected(client, slot, 0, extend - job.extend)
            fleet.pending[slot] += extend - job.pending
            job.extend = job.pending = extend
            job.hit_tokens = matched
        job.move("dispatch")
        job.attempts += 1
        job.kv_extra = max(0, prompt - int(len(request.keys) * size)) + job.expected
        self._kv_extra[slot] += job.kv_extra
        fleet.context[slot] += prompt
        prefilling = self._prefilling[slot]
        prefilling.begin(extend, self.now)
        if not request.streamed:
            prefilling.guess(rid, self.now)
        job.account = self.ledger.reserve(client, extend, self.now)
        credit = self.ordering.admitted(slot, job, extend)
        why = Why(choice.branch or self.routing.name, choice.scores, job.candidates, matched, credit)
        hits, total = self._hits[slot]
        self._hits[slot] = hits, total = (
            hits * _HIT_MEMORY + matched,
            total * _HIT_MEMORY + prompt,
        )
        fleet.hit_rate[slot] = hits / total if total else 0.0
        out.append(Dispatch(rid, fleet.ids[slot], job.attempts, why))

    def _leave_queue(self, job: Job) -> None:
        """Take a queued request out of its worker's queue, or of the parked ones; it costs nothing."""
        self.shares.remove(job.client, job.rid)
        if job.slot < 0:
            del self._parked[job.rid]
        else:
            self._leave_slot(job)

    def _leave_slot(self, job: Job) -> None:
        """Take a request out of its worker's queue; it goes on waiting elsewhere, or ends."""
        request, slot = job.request, job.slot
        queue = self._queues[slot]
        assert queue is not None
        assert job.claim is not None
        queue.discard(job)
        self.fleet.waits_no_more(slot, request.client, job.pending)
        if self._turn[slot] is job:
            self._turn[slot] = None
        self.index.abandon(job.claim)
        self.routing.unassigned(request, slot, job.extend, self.now)
        self.fleet.pending[slot] -= job.pending
        job.pending = 0
        self.fleet.add_queued(slot, -1)
        self.fleet.kv_stale.add(slot)

    def _leave_worker(self, job: Job, *, computed: bool) -> None:
        """Give back the credit of a running request; its blocks stay cached if they were computed."""
        slot = job.slot
        assert job.claim is not None
        if computed:
            self.index.end(job.claim)
        else:
            self.index.abandon(job.claim)
        if job.pending:
            self._prefilling[slot].gone(job.pending)
            self.fleet.pending[slot] -= job.pending
            job.pending = 0
        self._kv_extra[slot] -= job.kv_extra
        job.kv_extra = 0
        self.fleet.context[slot] -= job.request.prompt_tokens
        self.fleet.end(slot)
        self.fleet.kv_stale.add(slot)

    def _count_kv(self, slot: int) -> tuple[int, int, int]:
        """Return the KV tokens assigned to a worker, in use by what runs on it, and cached."""
        tokens = self._sized_for
        extra = self._kv_extra[slot]
        assigned = int(self.index.assigned(slot) * tokens) + extra
        return assigned, int(self.index.pinned(slot) * tokens) + extra, int(self.index.cached(slot) * tokens)

    # ------------------------------------------------------------------ workers and their caches

    def _worker_up(self, event: ev.WorkerUp, out: list[Command]) -> None:
        fleet, limits = self.fleet, event.limits
        slot = fleet.slots.get(event.worker)
        blocks = self._blocks(limits.kv_tokens)
        if slot is None:
            slot = fleet.join(event.worker)
            if slot == len(self._queues):
                self._queues.append(None)
                self._fits_on.append(partial(self._fits, slot))
                self._turn.append(None)
                self._prefilling.append(Prefilling(self.settings.prefill_backlog_us))
                self._kv_extra.append(0)
                self._hits.append((0.0, 0.0))
                self._exact.append(False)
            self.index.add(slot, blocks, event.exact)
            self._queues[slot] = self.ordering.make_queue(slot, partial(self.index.ready, slot))
            self._hits[slot] = (0.0, 0.0)
            self._prefilling[slot] = Prefilling(self.settings.prefill_backlog_us)
            self.routing.slot_reset(slot)
        else:
            self._leaving.discard(slot)
            self.index.resize(slot, blocks)
            if self._exact[slot] is not event.exact:
                self.index.clear(slot, event.exact)
        self._exact[slot] = event.exact
        fleet.kv_stale.add(slot)
        fleet.set_limits(slot, limits)
        fleet.set_up(slot, up=True)
        self._pump(slot, out)

    def _unpark(self, out: list[Command]) -> None:
        """Route what no worker could take before, oldest first, for as long as one can."""
        for job in sorted(self._parked.values(), key=lambda job: job.seq):
            if not self.fleet.candidates:
                return
            self._leave_queue(job)
            self._place(job, out)

    def _blocks(self, kv_tokens: int) -> int:
        return max(1, int(kv_tokens / self._sized_for))

    def _worker_down(self, event: ev.WorkerDown, out: list[Command]) -> None:
        slot = self.fleet.slots[event.worker]
        self.fleet.set_up(slot, up=False)
        queue = self._queues[slot]
        assert queue is not None
        moved = sorted((self.jobs[item.rid] for item in queue), key=lambda job: job.seq)
        for job in moved:
            self._leave_queue(job)
        if event.forget_cache:
            self.index.clear(slot, self._exact[slot])
            self.fleet.kv_stale.add(slot)
        for job in moved:
            job.slot = -1
            self._place(job, out)

    def _worker_gone(self, event: ev.WorkerGone, out: list[Command]) -> None:
        slot = self.fleet.slots[event.worker]
        if self.fleet.up[slot]:
            self._worker_down(ev.WorkerDown(event.at, event.worker), out)
        self._leaving.add(slot)
        self._free_if_empty(slot)

    def _free_if_empty(self, slot: int) -> None:
        if self.fleet.bs[slot]:
            return
        self._leaving.discard(slot)
        self.index.drop(slot)
        self.ordering.drop_queue(slot)
        self.routing.slot_reset(slot)
        self._queues[slot] = None
        self._kv_extra[slot] = 0
        self.fleet.leave(slot)

    def _worker_changed(self, event: ev.WorkerChanged, out: list[Command]) -> None:
        fleet = self.fleet
        slot = fleet.slots[event.worker]
        if event.limits is not None:
            fleet.set_limits(slot, event.limits)
            self.index.resize(slot, self._blocks(event.limits.kv_tokens))
            fleet.kv_stale.add(slot)
        if event.engine_running is not None or event.engine_waiting is not None:
            fleet.engine_running[slot] = event.engine_running or 0
            fleet.engine_waiting[slot] = event.engine_waiting or 0
            fleet.reported_us[slot] = self.now
        self._pump(slot, out)

    def _cache_stored(self, event: ev.CacheStored, out: list[Command]) -> None:
        slot = self.fleet.slots[event.worker]
        self.index.stored(slot, event.keys, event.parent)
        self.fleet.kv_stale.add(slot)
        self._pump(slot, out)

    def _cache_evicted(self, event: ev.CacheEvicted, out: list[Command]) -> None:
        slot = self.fleet.slots[event.worker]
        self.index.evicted(slot, event.keys)
        self.fleet.kv_stale.add(slot)

    def _cache_cleared(self, event: ev.CacheCleared, out: list[Command]) -> None:
        slot = self.fleet.slots[event.worker]
        self.index.clear(slot, event.exact)
        self._exact[slot] = event.exact
        self.fleet.kv_stale.add(slot)

    def _on_stored(self, slot: int, keys: Iterable[BlockKey]) -> None:
        queue = self._queues[slot]
        if queue is not None and self.fleet.queued[slot] and self._tracked:
            queue.cache_stored(keys)

    def _on_evicted(self, slot: int, keys: Iterable[BlockKey]) -> None:
        queue = self._queues[slot]
        if queue is not None and self.fleet.queued[slot] and self._tracked:
            queue.cache_evicted(keys)

    # ------------------------------------------------------------------ time

    def _tick(self, event: ev.Tick, out: list[Command]) -> None:
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= self.now:
            _, rid = deadlines.popleft()
            job = self.jobs.get(rid)
            if job is not None and job.state is State.QUEUED:
                slot = job.slot
                self._leave_queue(job)
                self._end(job, "reject")
                self._pump(slot, out)
                seconds = self.settings.queue_timeout_us / 1e6
                out.append(Reject(rid, "queue_timeout", f"no worker had room within {seconds:g} s"))
        if len(deadlines) > 2 * self.shares.total + 1000:
            waiting = ((at, rid) for at, rid in deadlines if rid in self.jobs)
            self._deadlines = deque(entry for entry in waiting if self.jobs[entry[1]].state is State.QUEUED)
        if abs(self._block_tokens - self._sized_for) > 0.05 * self._sized_for:
            self._sized_for = self._block_tokens
            for slot in self.fleet.slots.values():
                self.index.resize(slot, self._blocks(self.fleet.kv_tokens[slot]))
                self.fleet.kv_stale.add(slot)
                self._pump(slot, out)
        for slot in self.fleet.slots.values():
            self._guess_computed(slot, out)
            if self._moves and self.fleet.waiting:
                self._pump(slot, out)
        self.ordering.tick(self.now)
        self.routing.tick(self.now)
        if self.now >= self._next_forget:
            self._next_forget = self.now + 60_000_000
            self.ledger.forget_idle(self.now - HOUR_US, self.settings.max_clients)

    def _guess_computed(self, slot: int, out: list[Command]) -> None:
        """Count requests that say nothing before they end as computed when they should be."""
        while (rid := self._prefilling[slot].due(self.now)) is not None:
            job = self.jobs.get(rid)
            if job is not None and job.slot == slot and job.state is State.RUNNING and job.pending:
                self._prefilling[slot].gone(job.pending)
                self._computed(job, out)

    # ------------------------------------------------------------------ checks

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken. Costs time in proportion to all state."""
        fleet = self.fleet
        states = [job.state for job in self.jobs.values()]
        waiting = sum(state is State.QUEUED for state in states)
        assert self.arrived == len(self.jobs) + sum(self.ended.values()), "a request was lost"
        assert waiting == self.shares.total == len(self._parked) + sum(fleet.queued), "queue counts differ"
        assert len(states) - waiting == sum(fleet.running), "running counts differ"
        assert fleet.waiting == sum(fleet.queued), "counts of who waits differ"
        self.ledger.check()
        self.ordering.check()
        self.index.check()
        outstanding = dict.fromkeys(self.ledger.accounts, 0)
        for job in self.jobs.values():
            if job.state is not State.QUEUED:
                outstanding[job.request.client] += job.extend * self.settings.costs.extend
        for client, account in self.ledger.accounts.items():
            assert account.outstanding == outstanding[client], f"outstanding work of {client} differs"
        for slot in fleet.slots.values():
            self._check_slot(slot)

    def _check_slot(self, slot: int) -> None:
        fleet, queue = self.fleet, self._queues[slot]
        assert queue is not None
        mine = [job for job in self.jobs.values() if job.slot == slot]
        name = fleet.ids[slot]
        assert fleet.queued[slot] == len(queue), f"{name}: queue length differs"
        assert fleet.bs[slot] == fleet.queued[slot] + fleet.running[slot] == len(mine), (
            f"{name}: batch differs"
        )
        assert fleet.pending[slot] == sum(job.pending for job in mine), f"{name}: pending prefill differs"
        sent = sum(job.pending for job in mine if job.state is not State.QUEUED)
        assert fleet.pending[slot] - fleet.waiting_tokens(slot) == sent, f"{name}: tokens that wait differ"
        assert self._prefilling[slot].tokens == sent, f"{name}: prefill under way differs"
        assert self._kv_extra[slot] == sum(job.kv_extra for job in mine), f"{name}: KV books differ"
        prompts = sum(job.request.prompt_tokens for job in mine if job.state is not State.QUEUED)
        assert fleet.context[slot] == prompts, f"{name}: context differs"
        for item in queue if self._tracked else ():
            assert item.matched == self.index.ready(slot, item.keys), f"{name}: stale match of {item!r}"
        if fleet.up[slot] and queue and not self._busy(slot):
            head = self._turn[slot] or queue.head(self._fits_on[slot])
            assert head is None or not self._fits(slot, head), f"{name} idles while {head!r} fits"

    def __repr__(self) -> str:
        fleet = self.fleet
        workers = " ".join(
            f"{fleet.ids[s]}:{'up' if fleet.up[s] else 'down'} "
            f"{fleet.running[s]}/{fleet.sequences[s]}+{fleet.queued[s]}"
            for s in sorted(fleet.slots.values())
        )
        ends = " ".join(f"{state}={count}" for state, count in self.ended.items())
        return f"<Dispatcher queued={self.queued} running={self.running} {ends} | {workers}>"
