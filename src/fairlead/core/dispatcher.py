"""The scheduler: events in, commands out.

``Dispatcher.step`` routes each request to a worker, keeps a queue for each worker, orders it, and
sends within the worker's capacity. Everything is decided and reserved inside the call; the caller does
the I/O afterwards and reports what came of it as further events.

In this file: events, and what becomes of requests and workers. Beside it:

- ``placement.py``: a request is routed, queued and sent;
- ``worker.py``: the books and the capacity of one worker;
- ``matching.py``: how much of a prompt each worker caches;
- ``stealing.py``: which request a worker takes from another's queue;
- ``holding.py``: workers that said they have no room;
- ``deadlines.py``: until when requests may wait;
- ``invariants.py``: what is always true.
"""

from collections.abc import Callable, Iterable, Mapping

from fairlead.core import events as ev
from fairlead.core import invariants
from fairlead.core.commands import Cancel, Command, Fail, Reject
from fairlead.core.fleet import FleetState
from fairlead.core.holding import Holding
from fairlead.core.ledger import Ledger
from fairlead.core.lifecycle import ENDS, LifecycleError, State
from fairlead.core.model import BlockKey, ClientId, Request, RequestId, WorkerId
from fairlead.core.ordering.base import Ordering
from fairlead.core.outputs import OutputLengths
from fairlead.core.placement import Placement
from fairlead.core.prefix import PrefixIndex
from fairlead.core.retries import RetryBudget
from fairlead.core.routing.base import Routing
from fairlead.core.settings import Settings
from fairlead.core.tracked import TrackedRequest
from fairlead.core.worker import Worker

__all__ = ["Dispatcher", "Settings"]

HOUR_US = 3_600_000_000
_FORGET_EVERY_US = 60_000_000


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
        self.outputs = OutputLengths(self.settings.max_clients)
        self.workers: list[Worker] = []
        """By slot; a free slot still has the worker that had it last."""
        self.fleet = FleetState(self._count_kv, self.outputs)
        self.fleet.in_turns = ordering.in_turns
        self.index = PrefixIndex(self._on_stored, self._on_evicted)
        self.requests: dict[RequestId, TrackedRequest] = {}
        """Requests that have not ended."""
        self.placement = Placement(
            routing,
            ordering,
            self.settings.queue_timeout_us,
            self.ledger,
            self.fleet,
            self.index,
            self.workers,
        )
        self.shares = self.placement.shares
        """How many requests of each client wait."""
        self.ended = dict.fromkeys(ENDS, 0)
        self.arrived = 0
        self.retries = 0
        self.now = 0
        self._holding = Holding(self.fleet, self.workers)
        self._uses_match = ordering.uses_match
        """Whether queues keep ``QueuedRequest.matched`` current."""
        self._seq = 0
        given = self.settings
        self._retry_budget = RetryBudget(
            given.retry_ratio, given.retry_burst, given.retry_share, given.max_clients
        )
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
        if self.placement.parked and self.fleet.candidates:
            self.placement.unpark(self.now, out)
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
        return len(self.requests) - self.shares.total

    # ------------------------------------------------------------------ requests

    def _arrived(self, event: ev.Arrived, out: list[Command]) -> None:
        self._arrive(event.request, out)

    def _arrive(self, request: Request, out: list[Command]) -> None:
        if request.rid in self.requests:
            raise LifecycleError(f"request {request.rid} arrived twice")
        self.arrived += 1
        self._seq += 1
        self._retry_budget.earn(request.client)
        expected = int(self.outputs.expected(request.client))
        if request.max_tokens is not None and request.max_tokens < expected:
            expected = request.max_tokens
        tracked = TrackedRequest(request, self._seq, expected * request.sequences)
        if not self.fleet.slots:
            self._refuse_new(tracked, out, "no_worker", "no worker is known")
            return
        if self._full() and not self._shed_for(request.client, out):
            self._refuse_new(tracked, out, "queue_full", f"{self.shares.total} requests are waiting already")
            return
        self.requests[request.rid] = tracked
        self.placement.place(tracked, self.now, out)

    def _refuse_new(self, tracked: TrackedRequest, out: list[Command], code: str, message: str) -> None:
        tracked.move("reject")
        self.ended[State.REJECTED] += 1
        out.append(Reject(tracked.request.rid, code, message))

    def _full(self) -> bool:
        fleet = self.fleet
        return self.shares.total >= self.settings.max_queued or (not fleet.candidates and any(fleet.up))

    def _shed_for(self, client: ClientId, out: list[Command]) -> bool:
        """Make room for ``client`` by dropping the newest of one with more waiting."""
        victim = self.shares.victim()
        if victim is None or self.shares.count(victim[0]) <= self.shares.count(client) + 1:
            return False
        self._end_waiting(self.requests[victim[1]], "reject", out)
        out.append(Reject(victim[1], "queue_full", "the queue is full and this client has most waiting"))
        return not self._full()

    def _first_token(self, event: ev.FirstToken, out: list[Command]) -> None:
        self._begin_answer(event.rid, out)

    def _begin_answer(self, rid: RequestId, out: list[Command]) -> None:
        tracked = self._find(rid)
        tracked.move("first_token")
        if tracked.pending_prefill_tokens:
            worker = self.workers[tracked.slot]
            worker.prefilling.computed(tracked.pending_prefill_tokens, self.now)
            worker.computed(tracked)
            if self.fleet.waiting:  # there may be capacity for more prefill now
                self.placement.send_waiting(worker, self.now, out)
        else:
            self.workers[tracked.slot].prefilling.began_late(rid, self.now)

    def _progressed(self, event: ev.Progressed, out: list[Command]) -> None:
        self._progress(event.rid, event.tokens)

    def _progress(self, rid: RequestId, tokens: int) -> None:
        tracked = self._find(rid)
        if tracked.state is not State.DECODING:  # the usual case, which changes nothing
            tracked.move("progress")
        self._charge_output(tracked, tokens)

    def _charge_output(self, tracked: TrackedRequest, tokens: int) -> None:
        self._decoded(tracked, tokens)
        self.ordering.decoded(tracked.slot, tracked.client, tokens)
        self.routing.decoded(tracked.client, tracked.slot, tokens)

    def _decoded(self, tracked: TrackedRequest, tokens: int) -> None:
        """Count output tokens in the dispatcher's own books."""
        before = tracked.decoded
        tracked.decoded = after = before + tokens
        self.ledger.decoded(tracked.account, tokens)
        expected = tracked.expected
        if after > expected or before > expected:
            over = max(after - expected, 0) - max(before - expected, 0)
            self.workers[tracked.slot].outgrown(tracked, over)

    def _finished(self, event: ev.Finished, out: list[Command]) -> None:
        _, rid, prompt, cached, output = event
        self._finish(rid, prompt, cached, output, out)

    def _finish(
        self, rid: RequestId, prompt: int | None, cached: int | None, output: int | None, out: list[Command]
    ) -> None:
        tracked = self._find(rid)
        tracked.move("finish")
        slot, expected_prompt = tracked.slot, tracked.request.prompt_tokens
        if prompt is None:
            prompt = expected_prompt
        if cached is not None:
            extend = prompt - cached
        elif prompt == expected_prompt:
            extend = tracked.extend
        else:
            extend = max(prompt - tracked.cached_prompt_tokens, 1)
        more = 0 if output is None else output - tracked.decoded
        if more:
            self._decoded(tracked, more)
        self.ledger.settle(tracked.account, tracked.extend, extend)
        prompt_change, change = prompt - expected_prompt, extend - tracked.extend
        if more or change or prompt_change:
            self.ordering.settled(slot, tracked.client, prompt_change, change, more)
            self.routing.settled(tracked.client, slot, prompt_change, change, more)
        self.ordering.ended(slot, tracked, extend, tracked.decoded)
        fleet = self.fleet
        self.outputs.learn(tracked.client, tracked.decoded / tracked.sequences)
        tracked.account.requests += 1
        worker = self.workers[slot]
        worker.release(tracked, computed=True)
        self.ordering.released(slot, tracked.client)
        self.ended[State.DONE] += 1
        del self.requests[rid]
        if fleet.waiting:
            self.placement.send_waiting(worker, self.now, out)
        if worker.leaving:
            self._free_if_empty(worker)

    def _failed(self, event: ev.Failed, out: list[Command]) -> None:
        tracked = self._find(event.rid)
        if tracked.state is State.QUEUED:
            raise LifecycleError(f"request {event.rid} is queued: it cannot fail on a worker")
        worker = self.workers[tracked.slot]
        if tracked.state is State.DECODING:
            self._end_running(tracked, "fail")
            out.append(Fail(event.rid, event.reason))
        else:
            self._refund(tracked)
            tried = tracked.attempts - tracked.refusals
            more = event.retryable and tried < self.settings.max_attempts
            if more and self._retry_budget.take(tracked.client):
                self._retry(tracked, out)
            else:
                self._end(tracked, "fail")
                out.append(Fail(event.rid, event.reason))
        self.placement.send_waiting(worker, self.now, out)

    def _retry(self, tracked: TrackedRequest, out: list[Command]) -> None:
        """Queue a request again, on another worker if there is one; it keeps its place by arrival."""
        self.retries += 1
        tracked.move("retry")
        tracked.tried = (*tracked.tried, tracked.slot)
        tracked.slot = -1
        self.placement.place(tracked, self.now, out)

    def _refused(self, event: ev.Refused, out: list[Command]) -> None:
        """Hold the worker, and queue the request again: it keeps its place by arrival."""
        tracked = self._find(event.rid)
        tracked.move("refuse")
        worker = self.workers[tracked.slot]
        self._refund(tracked)
        tracked.refusals += 1
        self._holding.hold(worker, self.now + max(1, event.wait_us))
        tracked.slot = -1
        if worker.leaving:
            self._free_if_empty(worker)
        if tracked.deadline and tracked.deadline <= self.now:
            self._end(tracked, "reject")
            self._reject_late(tracked, out)
            return
        self.placement.place(tracked, self.now, out)
        if tracked.state is State.QUEUED:
            self.placement.deadlines.keep(tracked)

    def _refund(self, tracked: TrackedRequest) -> None:
        """Take back everything that an attempt was charged, since the worker did no work for it."""
        request, slot = tracked.request, tracked.slot
        self.ledger.refund(tracked.account, tracked.extend)
        self.ordering.corrected(slot, request.client, -request.prompt_tokens, -tracked.extend)
        self.routing.unassigned(request, slot, tracked.extend, self.now)
        self.workers[slot].release(tracked, computed=False)
        self.ordering.released(slot, request.client)

    def _cancelled(self, event: ev.Cancelled, out: list[Command]) -> None:
        tracked = self._find(event.rid)
        if tracked.state is State.QUEUED:
            self._end_waiting(tracked, "cancel", out)
        else:
            worker = self.workers[tracked.slot]
            name = self.fleet.ids[tracked.slot]
            # What was admitted stays charged: else hanging up before the first token would be free.
            self._end_running(tracked, "cancel")
            out.append(Cancel(event.rid, name))
            self.placement.send_waiting(worker, self.now, out)

    def _end_running(self, tracked: TrackedRequest, what: str) -> None:
        """End a request on its worker, with its reservation taken as the work that was done."""
        self.ledger.settle(tracked.account, tracked.extend, tracked.extend)
        self.ordering.ended(tracked.slot, tracked, tracked.extend, tracked.decoded)
        self.workers[tracked.slot].release(tracked, computed=tracked.state is State.DECODING)
        self.ordering.released(tracked.slot, tracked.client)
        self._end(tracked, what)

    def _end_waiting(self, tracked: TrackedRequest, what: str, out: list[Command]) -> None:
        """End a request that waits; another of its queue may fit now."""
        self.placement.leave_queue(tracked, self.now)
        self._end(tracked, what)
        if tracked.slot >= 0:
            self.placement.send_waiting(self.workers[tracked.slot], self.now, out)

    def _end(self, tracked: TrackedRequest, what: str) -> None:
        tracked.move(what)
        self.ended[tracked.state] += 1
        del self.requests[tracked.request.rid]
        if tracked.slot >= 0 and self.workers[tracked.slot].leaving:
            self._free_if_empty(self.workers[tracked.slot])

    def _find(self, rid: RequestId) -> TrackedRequest:
        tracked = self.requests.get(rid)
        if tracked is None:
            raise LifecycleError(f"request {rid} is unknown or has ended")
        return tracked

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
        self.placement.send_waiting(worker, self.now, out)

    def _worker_down(self, event: ev.WorkerDown, out: list[Command]) -> None:
        self._take_down(self._worker(event.worker), event.forget_cache, out)

    def _take_down(self, worker: Worker, forget_cache: bool, out: list[Command]) -> None:
        """Send nothing more to a worker, and route again what waits for it."""
        slot = worker.slot
        self.fleet.set_up(slot, up=False)
        moved = sorted((self.requests[item.rid] for item in worker.queue), key=lambda tracked: tracked.seq)
        for tracked in moved:
            self.placement.leave_queue(tracked, self.now)
        if forget_cache:
            self.index.clear(slot, worker.precise)
            self.fleet.kv_stale.add(slot)
        for tracked in moved:
            tracked.slot = -1
            self.placement.place(tracked, self.now, out)

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
        self.placement.send_waiting(worker, self.now, out)

    def _worker(self, name: WorkerId) -> Worker:
        return self.workers[self.fleet.slots[name]]

    def _count_kv(self, slot: int) -> tuple[int, int, int]:
        return self.workers[slot].count_kv()

    def _cache_stored(self, event: ev.CacheStored, out: list[Command]) -> None:
        worker = self._worker(event.worker)
        self.index.stored(worker.slot, event.keys, event.parent)
        self.fleet.kv_stale.add(worker.slot)
        self.placement.send_waiting(worker, self.now, out)

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
        if self._uses_match and self.fleet.queued[slot]:
            self.workers[slot].queue.cache_stored(keys)

    def _on_evicted(self, slot: int, keys: Iterable[BlockKey]) -> None:
        if self._uses_match and self.fleet.queued[slot]:
            self.workers[slot].queue.cache_evicted(keys)

    # ------------------------------------------------------------------ time

    def _tick(self, event: ev.Tick, out: list[Command]) -> None:
        self._time_out(out)
        fleet = self.fleet
        if fleet.held:
            self._release_held(out)
        block_tokens = self.placement.block_sizes.median
        if abs(block_tokens - fleet.block_tokens) > 0.05 * fleet.block_tokens:
            fleet.block_tokens = block_tokens
            for slot in fleet.slots.values():
                self.workers[slot].resize()
                self.placement.send_waiting(self.workers[slot], self.now, out)
        for slot in fleet.slots.values():
            self._guess_computed(self.workers[slot], out)
            if self.ordering.steals and fleet.waiting:
                self.placement.send_waiting(self.workers[slot], self.now, out)
        self.ordering.tick(self.now)
        self.routing.tick(self.now)
        if self.now >= self._next_forget:
            self._next_forget = self.now + _FORGET_EVERY_US
            self.ledger.forget_idle(self.now - HOUR_US, self.settings.max_clients)

    def _time_out(self, out: list[Command]) -> None:
        """Reject what has waited for too long."""
        deadlines = self.placement.deadlines
        while (rid := deadlines.passed(self.now)) is not None:
            tracked = self.requests.get(rid)
            if tracked is not None and tracked.state is State.QUEUED:
                self._end_waiting(tracked, "reject", out)
                self._reject_late(tracked, out)
        deadlines.tidy(self.requests, self.shares.total)

    def _reject_late(self, tracked: TrackedRequest, out: list[Command]) -> None:
        seconds = self.settings.queue_timeout_us / 1e6
        out.append(Reject(tracked.rid, "queue_timeout", f"no worker had room within {seconds:g} s"))

    def _release_held(self, out: list[Command]) -> None:
        """Send to workers again that were held for long enough; what waits for others may go to them."""
        released = self._holding.release(self.now)
        for tracked in self._holding.stranded():
            self.placement.place_again(tracked, self.now, out)
        for worker in released:
            self.placement.send_waiting(worker, self.now, out)

    def _guess_computed(self, worker: Worker, out: list[Command]) -> None:
        """Count requests as computed when they should be, but do not say so."""
        prefilling = worker.prefilling
        while (rid := prefilling.due(self.now)) is not None:
            tracked = self.requests.get(rid)
            if (
                tracked is not None
                and tracked.slot == worker.slot
                and tracked.state is State.RUNNING
                and tracked.pending_prefill_tokens
            ):
                prefilling.gone(tracked.pending_prefill_tokens)
                worker.computed(tracked)
                if self.fleet.waiting:
                    self.placement.send_waiting(worker, self.now, out)
            else:
                prefilling.forget(rid)

    # ------------------------------------------------------------------ for tests and people

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken. Costs time in proportion to all state."""
        invariants.check(self)

    def __repr__(self) -> str:
        workers = " ".join(repr(self.workers[slot]) for slot in sorted(self.fleet.slots.values()))
        ends = " ".join(f"{state}={count}" for state, count in self.ended.items())
        return f"<Dispatcher queued={self.queued} running={self.running} {ends} | {workers}>"
