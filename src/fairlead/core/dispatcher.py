"""The scheduler: events in, commands out.

``Dispatcher.step`` routes each request to a worker, keeps a queue for each worker, orders it, and
sends within the worker's capacity. Everything is decided and reserved inside the call; the caller does
the I/O afterwards and reports what came of it as further events.

Beside this file: ``worker.py`` (the books and the capacity of one worker), ``matching.py`` (what workers
cache of a prompt), ``stealing.py`` (which request a worker takes from another's queue), ``holding.py``
(workers that said they have no room), ``invariants.py`` (what is always true).
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from fairlead.core import events as ev
from fairlead.core import invariants
from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reasons, Reject
from fairlead.core.fleet import FleetState
from fairlead.core.holding import Holding
from fairlead.core.job import Job
from fairlead.core.ledger import Ledger
from fairlead.core.lifecycle import ENDS, LifecycleError, State
from fairlead.core.matching import Matcher
from fairlead.core.model import BlockKey, ClientId, Request, RequestId, WorkerId
from fairlead.core.ordering.base import Ordering, QueuedRequest
from fairlead.core.prefix import PrefixIndex
from fairlead.core.routing.base import Choice, Routing
from fairlead.core.settings import Settings
from fairlead.core.shedding import QueueShares
from fairlead.core.stealing import Stealing
from fairlead.core.worker import Worker

__all__ = ["Dispatcher", "Settings"]

HOUR_US = 3_600_000_000
_FORGET_EVERY_US = 60_000_000
_OUTPUT_MEMORY = 0.98  # weight of the past in the mean output length: the last ~50 requests count


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
        self.ledger = Ledger(self.settings.costs)
        self.workers: list[Worker] = []
        """By slot; a free slot still has the worker that had it last."""
        self.fleet = FleetState(self._count_kv)
        self.fleet.in_turns = ordering.in_turns
        self.index = PrefixIndex(self._on_stored, self._on_evicted)
        self.matcher = Matcher(self.fleet, self.index)
        self.shares = QueueShares()
        self.jobs: dict[RequestId, Job] = {}
        """Requests that have not ended."""
        self.parked: dict[RequestId, Job] = {}
        """Those of them that no worker can take now."""
        self.ended = dict.fromkeys(ENDS, 0)
        self.arrived = 0
        self.retries = 0
        self.now = 0
        self._holding = Holding(self.fleet, self.workers)
        self._stealing = Stealing(ordering, self.fleet, self.index, self.workers) if ordering.steals else None
        self._robbed: list[Worker] = []
        """Workers whose next request was taken away: another of theirs may fit."""
        self._tracked = ordering.uses_match
        """Whether queues keep ``QueuedRequest.matched`` current."""
        self._deadlines: deque[tuple[int, RequestId]] = deque()
        self._seq = 0
        self._retry_tokens = float(self.settings.retry_burst)
        self._block_tokens = self.fleet.block_tokens
        """Tokens a block of the last request stands for: what the books follow, with a margin."""
        self._next_forget = 0
        self._handlers: dict[type, Callable[..., None]] = {
            ev.Arrived: self._arrived,
            ev.FirstToken: self._first_token,
            ev.Progressed: self._progressed,
            ev.Finished: self._finished,
            ev.Failed: self._failed,
            ev.Refused: self._refused,
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
        if self.parked and self.fleet.candidates:
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
        job = Job(request, self._seq, expected * request.sequences)
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
        self._end_waiting(self.jobs[victim[1]], "reject", out)
        out.append(Reject(victim[1], "queue_full", "the queue is full and this client has most waiting"))
        return not self._full()

    def _first_token(self, event: ev.FirstToken, out: list[Command]) -> None:
        self._begin_answer(event.rid, out)

    def _begin_answer(self, rid: RequestId, out: list[Command]) -> None:
        job = self._job(rid)
        job.move("first_token")
        if job.pending_prefill_tokens:
            worker = self.workers[job.slot]
            worker.prefilling.computed(job.pending_prefill_tokens, self.now)
            worker.computed(job)
            if self.fleet.waiting:  # there may be capacity for more prefill now
                self._pump(worker, out)

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
            self.workers[job.slot].outgrown(job, over)

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
        fleet.mean_output += (job.decoded / job.sequences - fleet.mean_output) * (1 - _OUTPUT_MEMORY)
        job.account.requests += 1
        worker = self.workers[slot]
        worker.release(job, computed=True)
        self.ended[State.DONE] += 1
        del self.jobs[rid]
        if fleet.waiting:
            self._pump(worker, out)
        if worker.leaving:
            self._free_if_empty(worker)

    def _failed(self, event: ev.Failed, out: list[Command]) -> None:
        job = self._job(event.rid)
        if job.state is State.QUEUED:
            raise LifecycleError(f"request {event.rid} is queued: it cannot fail on a worker")
        worker = self.workers[job.slot]
        if job.state is State.DECODING:
            self._end_running(job, "fail")
            out.append(Fail(event.rid, event.reason))
        else:
            self._refund(job)
            tried = job.attempts - job.refusals
            if event.retryable and tried < self.settings.max_attempts and self._retry_tokens >= 1:
                self._retry(job, out)
            else:
                self._end(job, "fail")
                out.append(Fail(event.rid, event.reason))
        self._pump(worker, out)

    def _retry(self, job: Job, out: list[Command]) -> None:
        """Queue a request again, on another worker if there is one; it keeps its place by arrival."""
        self._retry_tokens -= 1
        self.retries += 1
        job.move("retry")
        job.tried = (*job.tried, job.slot)
        job.slot = -1
        self._place(job, out)

    def _refused(self, event: ev.Refused, out: list[Command]) -> None:
        """Hold the worker, and queue the request again: it keeps its place by arrival."""
        job = self._job(event.rid)
        job.move("refuse")
        worker = self.workers[job.slot]
        self._refund(job)
        job.refusals += 1
        self._holding.hold(worker, self.now + max(1, event.wait_us))
        job.slot = -1
        if worker.leaving:
            self._free_if_empty(worker)
        if job.deadline and job.deadline <= self.now:
            self._end(job, "reject")
            self._reject_late(job, out)
            return
        self._place(job, out)
        if job.deadline and job.state is State.QUEUED:
            insort(self._deadlines, (job.deadline, job.rid))

    def _refund(self, job: Job) -> None:
        """Take back everything that an attempt was charged, since the worker did no work for it."""
        request, slot = job.request, job.slot
        self.ledger.refund(job.account, job.extend)
        self.ordering.corrected(slot, request.client, -request.prompt_tokens, -job.extend)
        self.routing.unassigned(request, slot, job.extend, self.now)
        self.workers[slot].release(job, computed=False)

    def _cancelled(self, event: ev.Cancelled, out: list[Command]) -> None:
        job = self._job(event.rid)
        if job.state is State.QUEUED:
            self._end_waiting(job, "cancel", out)
        else:
            worker = self.workers[job.slot]
            name = self.fleet.ids[job.slot]
            # What was admitted stays charged: else hanging up before the first token would be free.
            self._end_running(job, "cancel")
            out.append(Cancel(event.rid, name))
            self._pump(worker, out)

    def _end_running(self, job: Job, what: str) -> None:
        """End a request on its worker, with its reservation taken as the work that was done."""
        self.ledger.settle(job.account, job.extend, job.extend)
        self.workers[job.slot].release(job, computed=job.state is State.DECODING)
        self._end(job, what)

    def _end_waiting(self, job: Job, what: str, out: list[Command]) -> None:
        """End a request that waits; another of its queue may fit now."""
        self._leave_queue(job)
        self._end(job, what)
        if job.slot >= 0:
            self._pump(self.workers[job.slot], out)

    def _end(self, job: Job, what: str) -> None:
        job.move(what)
        self.ended[job.state] += 1
        del self.jobs[job.request.rid]
        if job.slot >= 0 and self.workers[job.slot].leaving:
            self._free_if_empty(self.workers[job.slot])

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
            self.parked[job.request.rid] = job
            return
        worker = self.workers[job.slot]
        if (
            not self.fleet.queued[job.slot]
            and worker.has_capacity(job.sequences, job.extend + job.expected)
            and self.ordering.passes(job.slot, job.client)
        ):
            self.fleet.begin(job.slot, job.sequences)
            self._admit(job, worker, out)
            return
        self._wait(job)
        worker.enqueue(job)
        self._pump(worker, out)

    def _wait(self, job: Job) -> None:
        """Count a request among the waiting."""
        rid, timeout = job.request.rid, self.settings.queue_timeout_us
        self.shares.add(job.request.client, rid)
        if timeout:
            deadline = self.now + timeout
            job.deadline = job.deadline or deadline
            self._deadlines.append((deadline, rid))

    def _route(self, job: Job) -> bool:
        """Choose a worker and assign the request to it in all books; False if no worker can take it."""
        request, fleet = job.request, self.fleet
        if not fleet.candidates:
            return False
        if job.tried:
            self._avoid(job.tried)
        match = self.matcher.match(request)
        choice = self.routing.choose(request, match, fleet, self.now)
        job.candidates = fleet.candidates
        if job.tried:
            fleet.refresh()
        job.choice = choice
        self._block_tokens = request.block_tokens
        self._assign(job, choice.slot, match.tokens[choice.slot])
        return True

    def _assign(self, job: Job, slot: int, matched: int) -> None:
        """Give a request to a worker in all books."""
        self.workers[slot].assign(job, matched)
        self.routing.assigned(job.request, slot, job.extend, self.now)

    def _avoid(self, tried: tuple[int, ...]) -> None:
        """Leave workers that failed a request out of the candidates, unless no other is left."""
        fleet = self.fleet
        others = [s for s in fleet.candidates if s not in tried]
        if others:
            fleet.candidates, fleet.candidate_bitmap = others, sum(1 << s for s in others)

    def _pump(self, worker: Worker, out: list[Command]) -> None:
        """Send from one worker's queue for as long as it has capacity."""
        fleet, stealing, slot, queue = self.fleet, self._stealing, worker.slot, worker.queue
        if not fleet.up[slot] or not (fleet.queued[slot] or (stealing is not None and fleet.waiting)):
            return
        while not worker.full:
            if stealing is None:
                item = worker.head or queue.head()
            else:
                item = self._next_with_credit(worker, stealing)
            if item is None:
                break
            if not worker.fits(item):
                if not self.ordering.skips:
                    worker.head = item
                    break
                item = queue.head(worker.fits)
                if item is None:
                    break
            assert isinstance(item, Job)
            self.shares.remove(item.client, item.rid)
            worker.take(item)
            self._admit(item, worker, out)
        while self._robbed:
            self._pump(self._robbed.pop(), out)

    def _next_with_credit(self, worker: Worker, stealing: Stealing) -> QueuedRequest | None:
        """Return who goes next on a worker; somebody from another queue before one without credit."""
        item = worker.head
        if item is None or stealing.overtaken(worker.slot, item):
            worker.head = None
            item = worker.queue.head()
        if stealing.overtaken(worker.slot, item):
            found = stealing.find(worker, self.now)
            if found is not None:
                self._steal(*found, worker)
                return found[0]
        return item

    def _steal(self, job: Job, matched: int, thief: Worker) -> None:
        """Move a request from the queue that it waits in to another worker's."""
        victim = self.workers[job.slot]
        if victim.head is job:
            self._robbed.append(victim)
        self._leave_slot(job, victim)
        job.choice = Choice(thief.slot, branch=f"{self.routing.name}, moved: has credit")
        job.candidates = (thief.slot,)
        self._assign(job, thief.slot, matched)
        thief.enqueue(job)

    def _admit(self, job: Job, worker: Worker, out: list[Command]) -> None:
        """Reserve everything for one request and say that it is to be sent."""
        choice, slot = job.choice, worker.slot
        change = worker.start(job, self.now)
        if change:
            self.routing.corrected(job.client, slot, 0, change)
        job.account = self.ledger.reserve(job.client, job.extend, self.now)
        credit = self.ordering.admitted(slot, job, job.extend)
        branch, matched = choice.branch or self.routing.name, job.request.prompt_tokens - job.extend
        reasons = Reasons(branch, choice.scores, job.candidates, matched, credit)
        out.append(Dispatch(job.rid, self.fleet.ids[slot], job.attempts, reasons))

    def _leave_queue(self, job: Job) -> None:
        """Take a queued request out of its worker's queue, or of the parked ones; it costs nothing."""
        self.shares.remove(job.client, job.rid)
        if job.slot < 0:
            del self.parked[job.rid]
        else:
            self._leave_slot(job, self.workers[job.slot])

    def _leave_slot(self, job: Job, worker: Worker) -> None:
        """Take a request out of its worker's queue; it goes on waiting elsewhere, or ends."""
        worker.leave(job)
        self.routing.unassigned(job.request, worker.slot, job.extend, self.now)

    # ------------------------------------------------------------------ workers and their caches

    def _worker_up(self, event: ev.WorkerUp, out: list[Command]) -> None:
        fleet, index = self.fleet, self.index
        slot = fleet.slots.get(event.worker)
        if slot is None:
            slot = fleet.join(event.worker)
            fleet.set_limits(slot, event.limits)
            index.add(slot, fleet.kv_blocks(slot), event.precise)
            worker = Worker(slot, event.precise, fleet, index, self.ordering, self.settings)
            self.workers[slot : slot + 1] = [worker]
            self.routing.slot_reset(slot)
        else:
            worker = self.workers[slot]
            worker.leaving = False
            fleet.set_limits(slot, event.limits)
            worker.resize()
            if worker.precise is not event.precise:
                index.clear(slot, event.precise)
                worker.precise = event.precise
        fleet.kv_stale.add(slot)
        fleet.set_up(slot, up=True)
        self._pump(worker, out)

    def _unpark(self, out: list[Command]) -> None:
        """Route what no worker could take before, oldest first, for as long as one can."""
        for job in sorted(self.parked.values(), key=lambda job: job.seq):
            if not self.fleet.candidates:
                return
            self._leave_queue(job)
            self._place(job, out)

    def _worker_down(self, event: ev.WorkerDown, out: list[Command]) -> None:
        self._take_down(self._worker(event.worker), event.forget_cache, out)

    def _take_down(self, worker: Worker, forget_cache: bool, out: list[Command]) -> None:
        """Send nothing more to a worker, and route again what waits for it."""
        slot = worker.slot
        self.fleet.set_up(slot, up=False)
        moved = sorted((self.jobs[item.rid] for item in worker.queue), key=lambda job: job.seq)
        for job in moved:
            self._leave_queue(job)
        if forget_cache:
            self.index.clear(slot, worker.precise)
            self.fleet.kv_stale.add(slot)
        for job in moved:
            job.slot = -1
            self._place(job, out)

    def _worker_gone(self, event: ev.WorkerGone, out: list[Command]) -> None:
        worker = self._worker(event.worker)
        if self.fleet.up[worker.slot]:
            self._take_down(worker, forget_cache=True, out=out)
        worker.leaving = True
        self._free_if_empty(worker)

    def _free_if_empty(self, worker: Worker) -> None:
        slot = worker.slot
        if self.fleet.batch_size[slot]:
            return
        worker.leaving = False
        self.index.drop(slot)
        self.ordering.drop_queue(slot)
        self.routing.slot_reset(slot)
        self.fleet.leave(slot)

    def _worker_changed(self, event: ev.WorkerChanged, out: list[Command]) -> None:
        fleet, worker = self.fleet, self._worker(event.worker)
        slot = worker.slot
        if event.limits is not None:
            fleet.set_limits(slot, event.limits)
            worker.resize()
        if event.engine_running is not None or event.engine_waiting is not None:
            fleet.engine_running[slot] = event.engine_running or 0
            fleet.engine_waiting[slot] = event.engine_waiting or 0
            fleet.reported_us[slot] = self.now
        self._pump(worker, out)

    def _worker(self, name: WorkerId) -> Worker:
        return self.workers[self.fleet.slots[name]]

    def _count_kv(self, slot: int) -> tuple[int, int, int]:
        return self.workers[slot].count_kv()

    def _cache_stored(self, event: ev.CacheStored, out: list[Command]) -> None:
        worker = self._worker(event.worker)
        self.index.stored(worker.slot, event.keys, event.parent)
        self.fleet.kv_stale.add(worker.slot)
        self._pump(worker, out)

    def _cache_evicted(self, event: ev.CacheEvicted, out: list[Command]) -> None:
        slot = self.fleet.slots[event.worker]
        self.index.evicted(slot, event.keys)
        self.fleet.kv_stale.add(slot)

    def _cache_cleared(self, event: ev.CacheCleared, out: list[Command]) -> None:
        worker = self._worker(event.worker)
        self.index.clear(worker.slot, event.precise)
        worker.precise = event.precise
        self.fleet.kv_stale.add(worker.slot)

    def _on_stored(self, slot: int, keys: Iterable[BlockKey]) -> None:
        if self._tracked and self.fleet.queued[slot]:
            self.workers[slot].queue.cache_stored(keys)

    def _on_evicted(self, slot: int, keys: Iterable[BlockKey]) -> None:
        if self._tracked and self.fleet.queued[slot]:
            self.workers[slot].queue.cache_evicted(keys)

    # ------------------------------------------------------------------ time

    def _tick(self, event: ev.Tick, out: list[Command]) -> None:
        self._time_out(out)
        fleet = self.fleet
        if fleet.held:
            self._release_held(out)
        if abs(self._block_tokens - fleet.block_tokens) > 0.05 * fleet.block_tokens:
            fleet.block_tokens = self._block_tokens
            for slot in fleet.slots.values():
                self.workers[slot].resize()
                self._pump(self.workers[slot], out)
        for slot in fleet.slots.values():
            self._guess_computed(self.workers[slot], out)
            if self._stealing is not None and fleet.waiting:
                self._pump(self.workers[slot], out)
        self.ordering.tick(self.now)
        self.routing.tick(self.now)
        if self.now >= self._next_forget:
            self._next_forget = self.now + _FORGET_EVERY_US
            self.ledger.forget_idle(self.now - HOUR_US, self.settings.max_clients)

    def _time_out(self, out: list[Command]) -> None:
        """Reject what has waited for too long."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= self.now:
            _, rid = deadlines.popleft()
            job = self.jobs.get(rid)
            if job is not None and job.state is State.QUEUED:
                self._end_waiting(job, "reject", out)
                self._reject_late(job, out)
        if len(deadlines) > 2 * self.shares.total + 1000:
            waiting = ((at, rid) for at, rid in deadlines if rid in self.jobs)
            self._deadlines = deque(entry for entry in waiting if self.jobs[entry[1]].state is State.QUEUED)

    def _reject_late(self, job: Job, out: list[Command]) -> None:
        seconds = self.settings.queue_timeout_us / 1e6
        out.append(Reject(job.rid, "queue_timeout", f"no worker had room within {seconds:g} s"))

    def _release_held(self, out: list[Command]) -> None:
        """Send to workers again that were held for long enough; what waits for others may go to them."""
        released = self._holding.release(self.now)
        for job in self._holding.stranded():
            self._leave_queue(job)
            job.slot = -1
            self._place(job, out)
        for worker in released:
            self._pump(worker, out)

    def _guess_computed(self, worker: Worker, out: list[Command]) -> None:
        """Count requests that say nothing before they end as computed when they should be."""
        prefilling = worker.prefilling
        while (rid := prefilling.due(self.now)) is not None:
            job = self.jobs.get(rid)
            if (
                job is not None
                and job.slot == worker.slot
                and job.state is State.RUNNING
                and job.pending_prefill_tokens
            ):
                prefilling.gone(job.pending_prefill_tokens)
                worker.computed(job)
                if self.fleet.waiting:
                    self._pump(worker, out)

    # ------------------------------------------------------------------ for tests and people

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken. Costs time in proportion to all state."""
        invariants.check(self)

    def __repr__(self) -> str:
        workers = " ".join(repr(self.workers[slot]) for slot in sorted(self.fleet.slots.values()))
        ends = " ".join(f"{state}={count}" for state, count in self.ended.items())
        return f"<Dispatcher queued={self.queued} running={self.running} {ends} | {workers}>"
