"""The simulated world: clients, the production dispatcher, and engine models, in virtual time.

What passes through: a session's turn arrives -> ``Arrived`` -> ``Dispatch`` -> a hop later the engine has
it -> the engine's steps end -> a hop later the client and the dispatcher hear of tokens and ends ->
the answer releases the session's next turns.

True output lengths are given to the engines and nobody else. One heap of events; those of the same
microsecond come in a fixed order: everything else before the ends of engine steps.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from random import Random
from typing import Any, Final

from fairlead.core import events as ev
from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reject
from fairlead.core.model import Limits, Request
from fairlead.core.ordering import make_ordering
from fairlead.core.ordering.base import OrderingContext
from fairlead.engine.model import Engine, StepResult, TooLongError
from fairlead.report.run import CANCELLED, DONE, FAILED, REJECTED, Fairness, Run
from fairlead.simulate.enginerun import IDLE, EngineRun
from fairlead.simulate.gaps import GapTracker
from fairlead.simulate.meter import Meter, metered
from fairlead.simulate.recorder import Gaps, Rows, new_series
from fairlead.simulate.settings import ENGINE, NEVER_US, Settings
from fairlead.trace.model import Session, Trace, Turn

_TICK_US = 500_000
_FORGET_US = 10_000_000  # within which a fickle client hangs up

# What is in the heap: who handles it.
_WAKE: Final = 0
_SUBMIT: Final = 1
_CLIENT_NEWS: Final = 2
_DISPATCHER_NEWS: Final = 3
_PROGRESS: Final = 4
_TURN: Final = 5
_CACHE_NEWS: Final = 6
_CANCEL: Final = 7
_HANG_UP: Final = 8
_SAMPLE: Final = 9
_TICK: Final = 10
_DIES: Final = 11
_NOTICED: Final = 12
_RETURNS: Final = 13


class _Chain:
    """A session under way."""

    __slots__ = ("children", "client", "left", "session")

    def __init__(self, session: Session, client: int) -> None:
        self.session = session
        self.client = client
        self.left = len(session.turns)
        self.children: dict[int, list[int]] = {}
        for i, turn in enumerate(session.turns):
            self.children.setdefault(turn.after, []).append(i)


class _Flight:
    """A request under way."""

    __slots__ = ("chain", "client", "due", "index", "queued", "reported", "request", "row", "slot", "turn")

    def __init__(
        self, row: int, client: int, turn: Turn, chain: _Chain | None, index: int, request: Request
    ) -> None:
        self.row = row
        self.request = request
        self.client = client
        self.turn = turn
        self.chain = chain
        self.index = index
        self.slot = -1
        self.due = -1
        """When it reaches its engine; -1 if it is not on its way."""
        self.reported = 0
        """Output tokens that the dispatcher knows of."""
        self.queued = True
        """It has not been admitted to a batch yet."""


class World:
    """One simulation. Make it, ``run`` it once, and read the ``Run`` that it returns."""

    def __init__(self, trace: Trace, settings: Settings) -> None:
        settings.check()
        self.trace = trace
        self.settings = settings
        self.clients = list(trace.clients)
        self._index = {client: i for i, client in enumerate(self.clients)}
        weights = [trace.clients[client] for client in self.clients]
        self.meter = Meter(self._index, weights, settings.costs)
        self.gaps = GapTracker(self.meter.weighted)
        self.rows = Rows()
        self.series = new_series(settings.interval_us, len(weights), settings.workers)
        self.token_gaps = Gaps()
        self.dispatcher = settings.dispatcher(dict(trace.clients))
        self._forward = settings.topology == ENGINE
        self._profile = settings.profile()
        self._heap: list[tuple[int, int, int, int, Any]] = []
        """(time and class, order within, count, what, with what)"""
        self._handlers: dict[int, Callable[[int, Any], None]] = {
            _DISPATCHER_NEWS: self._dispatcher_news,
            _TURN: self._turn,
            _CACHE_NEWS: self._cache_news,
            _CANCEL: self._cancel,
            _HANG_UP: self._hang_up,
            _SAMPLE: self._sample,
            _TICK: self._tick,
            _DIES: self._dies,
            _NOTICED: self._noticed,
            _RETURNS: self._returns,
        }
        """Of what comes rarely."""
        self._count = 0
        self._engines: list[EngineRun | None] = []
        self.max_num_seqs = self.kv_tokens = 0
        """Limits of each engine; known once they run."""
        self._wakes: list[int] = []
        """The time of each engine's current wake; others in the heap are out of date."""
        self._flights: dict[int, _Flight] = {}
        self._on_worker: list[dict[int, None]] = []
        """Requests at each engine, as its caller sees it: sent and not ended."""
        self._demand = [0.0] * len(weights)
        self._prefilled = [0] * settings.workers
        self._steps = 0
        self._preemptions = 0
        self._waiting_turns = 0
        """Turns that will come: released, with their delay still running."""
        self._more = True
        """Sessions are still to start."""
        self._abandoned = 0
        self._last_end = 0
        self._random = Random(f"{settings.seed}/cancel")
        self._hop_us, self._back_us = settings.hop_us, settings.hop_us + settings.stale_us
        self._stale, self._exact_cache = settings.stale_us > 0, settings.exact_cache
        self._fickle = bool(settings.client_timeout_us or settings.cancel_share)
        self._extend, self._output = settings.costs.extend, settings.costs.output
        self.ends: list[tuple[int, int]] | None = None
        """Set to a list, it gets each request's session start, and how long after that it ended."""

    # ------------------------------------------------------------------ the loop

    def run(self, progress: Callable[[int, int], None] | None = None) -> Run:
        """Simulate everything. ``progress`` is called now and then with requests ended, and the time."""
        settings = self.settings
        for number in range(settings.workers):
            self._engines.append(None)
            self._wakes.append(IDLE)
            self._on_worker.append({})
            self._worker_up(0, number)
        for fault in settings.faults:
            self._at(fault.at_us, _DIES, fault)
        self._at(_TICK_US, _TICK, None)
        self._at(settings.interval_us, _SAMPLE, None)
        self._loop(progress)
        return self._result()

    def _loop(self, progress: Callable[[int, int], None] | None) -> None:
        heap = self._heap
        sessions = self.trace.sessions()
        until = (self.settings.until_us or NEVER_US) << 1
        coming = next(sessions, None)
        coming_key = NEVER_US if coming is None else coming.at << 1
        self._more = coming is not None
        rounds = 0
        while True:
            if heap and heap[0][0] < coming_key:
                key, _, _, what, argument = heappop(heap)
                if key > until:
                    break
                if what == _WAKE:
                    self._wake(key >> 1, argument)
                elif what == _PROGRESS:
                    self._progress(key >> 1, argument)
                elif what == _CLIENT_NEWS:
                    self._client_news(key >> 1, argument)
                elif what == _SUBMIT:
                    self._submit(key >> 1, argument)
                else:
                    self._handlers[what](key >> 1, argument)
            elif coming is not None:
                if coming_key > until:
                    break
                self._session(coming)
                coming = next(sessions, None)
                coming_key = NEVER_US if coming is None else coming.at << 1
                self._more = coming is not None
            else:
                break
            rounds += 1
            if progress is not None and not rounds & 16383:
                progress(self.rows.count - len(self._flights), heap[0][0] >> 1 if heap else 0)

    def _at(self, at: int, what: int, argument: object) -> None:
        self._count += 1
        heappush(self._heap, (at << 1, self._count, 0, what, argument))

    @property
    def unserved(self) -> int:
        """Turns that never came, since one that they followed had no answer."""
        return self._abandoned

    @property
    def _over(self) -> bool:
        """Nothing is under way and nothing will come, or what waits, waits for ever.

        That is when no event is left but the next tick and sample: all workers are gone. Ticks end waiting
        only where it has a limit.
        """
        if not (self._more or self._flights or self._waiting_turns):
            return True
        return not self._more and len(self._heap) < 2 and not self.settings.queue_timeout_us

    # ------------------------------------------------------------------ clients

    def _session(self, session: Session) -> None:
        client = self._index[session.client]
        turns = session.turns
        if len(turns) == 1 and not turns[0].delay_us:
            self._arrive(session.at, (client, turns[0], None, 0, session.name))
            return
        chain = _Chain(session, client)
        self._release(session.at, chain, -1)

    def _release(self, now: int, chain: _Chain, after: int) -> None:
        """Let the turns come that waited for this one's answer."""
        for index in chain.children.get(after, ()):
            turn = chain.session.turns[index]
            self._waiting_turns += 1
            self._at(now + turn.delay_us, _TURN, (chain.client, turn, chain, index, chain.session.name))

    def _turn(self, now: int, what: tuple[int, Turn, _Chain, int, str]) -> None:
        self._waiting_turns -= 1
        self._arrive(now, what)

    def _arrive(self, now: int, what: tuple[int, Turn, _Chain | None, int, str]) -> None:
        client, turn, chain, index, session = what
        row = self.rows.new(client, now, turn.prompt_tokens)
        self._demand[client] += self._extend * turn.prompt_tokens
        self.gaps.waits(client)
        request = Request(
            row, self.clients[client], turn.prompt_tokens, turn.keys, self.trace.block_tokens,
            turn.max_tokens, session, now, True,
        )  # fmt: skip
        self._flights[row] = _Flight(row, client, turn, chain, index, request)
        self._obey(now, self.dispatcher.arrive(now, request))
        if self._fickle:
            self._may_hang_up(now, row)

    def _may_hang_up(self, now: int, row: int) -> None:
        settings = self.settings
        if settings.client_timeout_us:
            self._at(now + settings.client_timeout_us, _HANG_UP, row)
        if settings.cancel_share and self._random.random() < settings.cancel_share:
            self._at(now + int(self._random.random() * _FORGET_US), _HANG_UP, row)

    def _hang_up(self, now: int, row: int) -> None:
        flight = self._flights.get(row)
        if flight is not None:
            self._obey(now, self.dispatcher.step(ev.Cancelled(now, row)))
            self._end(now, flight, CANCELLED)

    def _end(self, now: int, flight: _Flight, outcome: int) -> None:
        """Close a request's row; a session goes on only after an answer."""
        row, rows = flight.row, self.rows
        rows.ended[row] = now
        rows.outcome[row] = outcome
        if flight.queued:
            flight.queued = False
            self.gaps.goes(flight.client)
        if flight.slot >= 0:
            self._on_worker[flight.slot].pop(row, None)
        del self._flights[row]
        self._last_end = now
        chain = flight.chain
        if self.ends is not None:
            start = rows.arrived[row] if chain is None else chain.session.at
            self.ends.append((start, now - start))
        if chain is None:
            return
        chain.left -= 1
        if outcome == DONE:
            self._release(now, chain, flight.index)
        else:
            self._abandoned += _descendants(chain, flight.index)

    # ------------------------------------------------------------------ the dispatcher's commands

    def _obey(self, now: int, commands: list[Command]) -> None:
        for command in commands:
            if type(command) is Dispatch:
                row = command.rid
                flight = self._flights[row]
                flight.slot = slot = int(command.worker)
                self.rows.sent[row] = now
                self.rows.worker[row] = slot
                self._on_worker[slot][row] = None
                flight.due = now + self._hop_us
                self._at(flight.due, _SUBMIT, flight)
            elif type(command) is Reject:
                self._end(now, self._flights[command.rid], REJECTED)
            elif type(command) is Fail:
                self._end(now, self._flights[command.rid], FAILED)
            elif type(command) is Cancel:
                self._at(now + self._hop_us, _CANCEL, (int(command.worker), command.rid))

    def _submit(self, now: int, flight: _Flight) -> None:
        """A request reaches its engine."""
        if flight.due != now or self._flights.get(flight.row) is not flight:
            return  # its worker died and it was sent again, or its client has hung up
        flight.due = -1
        run, turn = self._engines[flight.slot], flight.turn
        if run is None:
            self._fails(now, flight, "connection refused")
            return
        if run.receive(now):
            self._note_wake(flight.slot)
        try:
            run.engine.submit(flight.request, turn.output_tokens, now, turn.output_keys)
        except TooLongError as error:
            self._obey(now, self.dispatcher.step(ev.Failed(now, flight.row, False, str(error))))
            return
        if run.wake_us == IDLE:
            run.start(now)
            self._note_wake(flight.slot)

    def _fails(self, now: int, flight: _Flight, reason: str) -> None:
        """An engine breaks a request off; it may be tried elsewhere if its client saw nothing yet."""
        self._on_worker[flight.slot].pop(flight.row, None)
        flight.due = -1
        retryable = self.rows.first[flight.row] < 0
        if not flight.queued and retryable:
            flight.queued = True
            self.gaps.waits(flight.client)
        self._obey(now, self.dispatcher.step(ev.Failed(now, flight.row, retryable, reason)))

    def _cancel(self, now: int, what: tuple[int, int]) -> None:
        slot, row = what
        run = self._engines[slot]
        if run is not None:
            self._touch(slot, now)
            run.engine.cancel(row)

    # ------------------------------------------------------------------ engines

    def _touch(self, slot: int, now: int) -> None:
        run = self._engines[slot]
        if run is not None and run.touch(now):
            self._note_wake(slot)

    def _note_wake(self, slot: int) -> None:
        run = self._engines[slot]
        assert run is not None
        self._wakes[slot] = wake = run.wake_us
        if wake != IDLE:
            self._count += 1
            heappush(self._heap, (wake << 1 | 1, slot, self._count, _WAKE, slot))

    def _wake(self, now: int, slot: int) -> None:
        """Steps of an engine end: pass on what came of them."""
        if self._wakes[slot] != now:
            return  # replaced by an earlier or later one, or its engine died
        run = self._engines[slot]
        assert run is not None
        result = run.wake(now)
        self._note_wake(slot)
        self._account(slot, result)
        if self._exact_cache and (result.stored or result.evicted):
            self._at(now + self._back_us, _CACHE_NEWS, (slot, run, result))
        if result.first or result.finished:
            self._at(now + self._hop_us, _CLIENT_NEWS, (slot, run, result))
            if self._stale:
                self._at(now + self._back_us, _DISPATCHER_NEWS, (slot, run, result))
        if run.progress:
            self._at(now + self._back_us, _PROGRESS, run.progress)
        self.gaps.look(now)

    def _account(self, slot: int, result: StepResult) -> None:
        """Write down what steps did."""
        self._steps += result.steps
        seqs, steps = result.decode_seqs, result.steps
        if seqs:
            self.token_gaps.add(result.duration_us // steps, seqs * steps)
        self._prefilled[slot] += result.prefilled
        self._preemptions += len(result.preempted)
        if result.admitted:
            cached = self.rows.cached
            for admission in result.admitted:
                flight = self._flights.get(admission.rid)
                if flight is not None and not admission.resumed:
                    cached[flight.row] = admission.cached_tokens
                    if flight.queued:
                        flight.queued = False
                        self.gaps.goes(flight.client)

    def _client_news(self, now: int, what: tuple[int, EngineRun, StepResult]) -> None:
        """Clients see first tokens and ends; so does the dispatcher, unless what it hears is stale."""
        slot, run, result = what
        if self._engines[slot] is not run:
            return  # it died with the answer on its way
        flights, rows = self._flights, self.rows
        for row in result.first:
            flight = flights.get(row)
            if flight is not None and flight.slot == slot:
                rows.first[row] = now
        if not self._stale:
            self._dispatcher_news(now, what)
        for row in result.finished:
            flight = flights.get(row)
            if flight is not None and flight.slot == slot:
                output = flight.turn.output_tokens
                rows.output[row] = output
                self._demand[flight.client] += self._output * output
                self._end(now, flight, DONE)

    def _dispatcher_news(self, now: int, what: tuple[int, EngineRun, StepResult]) -> None:
        """Tell the dispatcher of first tokens and ends, as the gateway does."""
        slot, _, result = what
        dispatcher, rows, flights = self.dispatcher, self.rows, self._flights
        jobs = dispatcher.jobs
        commands: list[Command] = []
        for row in result.first:
            if row in jobs and rows.worker[row] == slot:
                commands += dispatcher.first_token(now, row)
                flight = flights.get(row)
                if flight is not None:
                    flight.reported = 1
                commands += dispatcher.progress(now, row, 1)
        for row in result.finished:
            if row in jobs and rows.worker[row] == slot:
                prompt, cached, output = rows.prompt[row], rows.cached[row], self._outputs(row)
                commands += dispatcher.finish(now, row, prompt, cached, output)
        if commands:
            self._obey(now, commands)

    def _outputs(self, row: int) -> int:
        flight = self._flights.get(row)
        return flight.turn.output_tokens if flight is not None else self.rows.output[row]

    def _progress(self, now: int, tokens: list[tuple[int, int]]) -> None:
        """Tell the dispatcher how much was answered meanwhile."""
        dispatcher, flights = self.dispatcher, self._flights
        for row, output in tokens:
            flight = flights.get(row)
            if flight is not None and output > flight.reported > 0:
                more, flight.reported = output - flight.reported, output
                commands = dispatcher.progress(now, row, more)
                if commands:
                    self._obey(now, commands)

    def _cache_news(self, now: int, what: tuple[int, EngineRun, StepResult]) -> None:
        """Tell the dispatcher what an engine cached and let go of, as its KV events would."""
        slot, run, result = what
        if self._engines[slot] is not run:
            return
        worker, step = str(slot), self.dispatcher.step
        if result.evicted:
            self._obey(now, step(ev.CacheEvicted(now, worker, result.evicted)))
        for stored in result.stored:
            self._obey(now, step(ev.CacheStored(now, worker, stored.keys, stored.parent)))

    # ------------------------------------------------------------------ workers come and go

    def _worker_up(self, now: int, slot: int) -> None:
        settings = self.settings
        ordering = (
            settings.ordering()
            if self._forward
            else make_ordering("fcfs", {}, OrderingContext(settings.costs))
        )
        if self._forward:
            for client, weight in self.trace.clients.items():
                ordering.set_weight(client, weight)
        engine = Engine(
            self._profile,
            metered(ordering, self.meter),
            block_tokens=self.trace.block_tokens,
            kv_blocks=settings.kv_tokens // self.trace.block_tokens or None,
            max_num_seqs=settings.max_num_seqs or None,
            max_num_batched_tokens=settings.max_num_batched_tokens or None,
            max_model_len=settings.max_model_len or None,
            list_tokens=False,
            list_blocks=settings.exact_cache,
            async_scheduling=settings.async_scheduling,
        )
        self.max_num_seqs, self.kv_tokens = engine.max_num_seqs, engine.pool.blocks * engine.block_tokens
        report = settings.report_tokens
        in_order = not self._forward and not settings.exact_cache
        self._engines[slot] = EngineRun(engine, coast=settings.coast, report_steps=report, in_order=in_order)
        limits = Limits(engine.max_num_seqs, self.kv_tokens, NEVER_US)
        event = ev.WorkerUp(now, str(slot), limits, settings.exact_cache)
        self._obey(now, self.dispatcher.step(event))

    def _dies(self, now: int, fault: Any) -> None:
        slot = fault.worker
        run = self._engines[slot]
        if run is None:
            return
        self._touch(slot, now)
        self._steps += run.ended_steps
        self._engines[slot] = None
        self._wakes[slot] = IDLE
        heap = self._heap  # what is left in it tells whether all is over
        heap[:] = [entry for entry in heap if entry[3] != _WAKE or entry[4] != slot]
        heapify(heap)
        for row in list(self._on_worker[slot]):
            flight = self._flights.get(row)
            if flight is not None and flight.slot == slot:
                self._fails(now, flight, "the worker died")
        self._at(now + self.settings.detect_us, _NOTICED, slot)
        if fault.for_us:
            self._at(now + fault.for_us, _RETURNS, slot)

    def _noticed(self, now: int, slot: int) -> None:
        if self._engines[slot] is None:
            self._obey(now, self.dispatcher.step(ev.WorkerDown(now, str(slot), "died")))

    def _returns(self, now: int, slot: int) -> None:
        self._worker_up(now, slot)

    # ------------------------------------------------------------------ time

    def _tick(self, now: int, _: None) -> None:
        self._obey(now, self.dispatcher.step(ev.Tick(now)))
        if not self._over:
            self._at(now + _TICK_US, _TICK, None)

    def _sample(self, now: int, _: None) -> None:
        series, queued = self.series, self.dispatcher.fleet.queued
        under_way = [0] * len(self.clients)
        for slot, run in enumerate(self._engines):
            load, inside = None, 0
            if run is not None:
                load, steps = run.look(now)
                inside = load.waiting
                if steps:
                    for name, count in run.engine.decoding_clients.items():
                        under_way[self._index[name]] += self._output * count * steps
            series.running[slot].append(load.running if load else 0)
            series.waiting[slot].append(inside + queued[self.dispatcher.fleet.slots[str(slot)]])
            series.kv_used[slot].append(load.kv_usage if load else 0.0)
            series.prefilled[slot].append(self._prefilled[slot])
        for client, service in enumerate(self.meter.service):
            series.service[client].append(service + under_way[client])
            series.demand[client].append(self._demand[client])
            series.queued[client].append(self.gaps.waiting(client))
        if not self._over:
            self._at(now + self.settings.interval_us, _SAMPLE, None)

    # ------------------------------------------------------------------ the end

    def _result(self) -> Run:
        settings, trace = self.settings, self.trace
        pair = self.gaps.pair
        fairness = Fairness(self.gaps.worst)
        if pair[0] >= 0:
            fairness.pair = (self.clients[pair[0]], self.clients[pair[1]])
        return Run(
            kind="simulate",
            workload=trace.name,
            policy=settings.policy,
            order=settings.order,
            engine=settings.engine,
            workers=settings.workers,
            topology=settings.topology,
            seed=settings.seed,
            load=0.0,
            clients=self.clients,
            weights=self.meter.weights,
            misbehaving=sorted(trace.misbehaving),
            labels=list(trace.labels),
            requests=self.rows.close(),
            series=self.series,
            fairness=fairness,
            duration_us=self._last_end,
            gaps=self.token_gaps.close(),
            steps=self._steps,
            preemptions=self._preemptions,
            computed_tokens=sum(self._prefilled),
            settings=settings.as_dict() | {"abandoned_turns": self._abandoned},
        )


def _descendants(chain: _Chain, index: int) -> int:
    """Return how many turns would have come after this one."""
    return sum(1 + _descendants(chain, child) for child in chain.children.get(index, ()))
