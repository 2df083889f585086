"""The simulated world: clients, the production dispatcher, and engine models, in virtual time.

The way of a request: a session's turn arrives -> ``Arrived`` -> ``Dispatch`` -> a hop later the engine has
it -> the engine's steps end -> a hop later the client and the dispatcher hear of tokens and ends ->
the answer releases the session's next turns, or a closed loop's next session.

True output lengths are given to the engines and nobody else. One heap of events; those of the same
microsecond come in a fixed order: everything else before the ends of engine steps.
"""

from collections.abc import Callable
from heapq import heappop
from typing import Any, Final

from fairlead.core import events as ev
from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reject
from fairlead.core.model import ClientId
from fairlead.engine.model import TooLongError
from fairlead.engine.step import StepResult
from fairlead.report.run import CANCELLED, FAILED, REJECTED, Fairness, Run
from fairlead.simulate.settings import NEVER_US, Fault, Settings
from fairlead.simulate.world.clients import ActiveRequest, ActiveSession, Clients
from fairlead.simulate.world.enginerun import EngineRun
from fairlead.simulate.world.heap import (
    CACHE_NEWS,
    CANCEL,
    CLIENT_NEWS,
    DIES,
    DISPATCHER_NEWS,
    HANG_UP,
    LOOP,
    NOTICED,
    PROGRESS,
    RETURNS,
    SAMPLE,
    SUBMIT,
    TICK,
    TURN,
    WAKE,
    Heap,
)
from fairlead.simulate.world.meter import Meter
from fairlead.simulate.world.recorder import new_series
from fairlead.simulate.world.workers import Workers
from fairlead.trace.loops import without_loops
from fairlead.trace.model import Session, Trace

_TICK_US: Final = 500_000


class World:
    """One simulation. Make it, ``run`` it once, and read the ``Run`` that it returns.

    It is the network between clients, dispatcher and workers, none of which knows of the others.
    """

    def __init__(self, trace: Trace, settings: Settings) -> None:
        settings.check()
        self.trace = trace
        self.settings = settings
        weights = [trace.clients[client] for client in trace.clients]
        self.heap = Heap()
        self.meter = Meter({client: i for i, client in enumerate(trace.clients)}, weights, settings.costs)
        self.clients = Clients(trace, settings, self.heap, self.meter)
        self.workers = Workers(settings, self.heap, self.clients, self.meter)
        self.dispatcher = settings.dispatcher(dict(trace.clients))
        self.series = new_series(settings.interval_us, len(weights), settings.workers)
        self._handlers: dict[int, Callable[[int, Any], None]] = {
            DISPATCHER_NEWS: self._dispatcher_news,
            TURN: self._turn,
            LOOP: self._loop_goes_on,
            CACHE_NEWS: self._cache_news,
            CANCEL: self._cancel,
            HANG_UP: self._hang_up,
            SAMPLE: self._sample,
            TICK: self._tick,
            DIES: self._dies,
            NOTICED: self._noticed,
            RETURNS: self._returns,
        }
        """Handlers of the rare kinds of events, by kind."""
        self._more = True
        """Whether sessions are still to start."""
        self._hop_us, self._back_us = settings.hop_us, settings.hop_us + settings.stale_us
        self._stale, self._exact_cache = settings.stale_us > 0, settings.exact_cache
        self._fickle = bool(settings.client_timeout_us or settings.cancel_share)

    # ------------------------------------------------------------------ the loop

    def run(self, progress: Callable[[int, int], None] | None = None) -> Run:
        """Simulate everything. ``progress`` is called now and then with requests ended, and the time."""
        settings, heap = self.settings, self.heap
        for slot in range(settings.workers):
            self._returns(0, slot)
        for fault in settings.faults:
            heap.add(fault.at_us, DIES, fault)
        heap.add(_TICK_US, TICK, None)
        heap.add(settings.interval_us, SAMPLE, None)
        self._loop(progress)
        return self._result()

    def _loop(self, progress: Callable[[int, int], None] | None) -> None:
        entries, clients = self.heap.entries, self.clients
        sessions = without_loops(self.trace)
        until = (self.settings.until_us or NEVER_US) << 1
        coming = next(sessions, None)
        coming_key = NEVER_US if coming is None else coming.at << 1
        self._more = coming is not None
        clients.loops.begin(self._more)
        rounds = 0
        while True:
            if entries and entries[0][0] < coming_key:
                key, _, _, kind, what = heappop(entries)
                if key > until:
                    break
                if kind == WAKE:
                    self._wake(key >> 1, what)
                elif kind == PROGRESS:
                    self._progress(key >> 1, what)
                elif kind == CLIENT_NEWS:
                    self._client_news(key >> 1, what)
                elif kind == SUBMIT:
                    self._submit(key >> 1, what)
                else:
                    self._handlers[kind](key >> 1, what)
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
                progress(clients.rows.count - len(clients.active), entries[0][0] >> 1 if entries else 0)

    @property
    def _over(self) -> bool:
        """Nothing is under way and nothing will come, or what waits, waits for ever.

        That is when no event is left but the next tick and sample: all workers are gone. Ticks end waiting
        only where it has a limit.
        """
        clients = self.clients
        if not (self._more or clients.active or clients.coming_turns or clients.loops.thinking):
            return True
        return not self._more and len(self.heap.entries) < 2 and not self.settings.queue_timeout_us

    # ------------------------------------------------------------------ clients

    def _session(self, session: Session) -> None:
        turns = session.turns
        if len(turns) == 1 and not turns[0].delay_us:
            self._arrive(session.at, session, None, 0)
        else:
            self.clients.begin(session)

    def _loop_goes_on(self, now: int, client: ClientId) -> None:
        if self.clients.loops.goes_on(client, self._more):
            self.clients.begin_next(now, client)

    def _turn(self, now: int, what: tuple[ActiveSession, int]) -> None:
        active, index = what
        self.clients.coming_turns -= 1
        self._arrive(now, active.session, active, index)

    def _arrive(self, now: int, session: Session, active: ActiveSession | None, index: int) -> None:
        request = self.clients.arrive(now, session, active, index)
        self._obey(now, self.dispatcher.arrive(now, request))
        if self._fickle:
            self.clients.may_hang_up(now, request.rid)

    def _hang_up(self, now: int, row: int) -> None:
        active = self.clients.active.get(row)
        if active is not None:
            self._obey(now, self.dispatcher.step(ev.Cancelled(now, row)))
            self._end(now, active, CANCELLED)

    def _end(self, now: int, active: ActiveRequest, outcome: int) -> None:
        self.workers.forget(active)
        self.clients.end(now, active, outcome)

    # ------------------------------------------------------------------ the dispatcher's commands

    def _obey(self, now: int, commands: list[Command]) -> None:
        for command in commands:
            if type(command) is Dispatch:
                self.workers.send(now, int(command.worker), self.clients.active[command.rid])
            elif type(command) is Reject:
                self._end(now, self.clients.active[command.rid], REJECTED)
            elif type(command) is Fail:
                self._end(now, self.clients.active[command.rid], FAILED)
            elif type(command) is Cancel:
                self.heap.add(now + self._hop_us, CANCEL, (int(command.worker), command.rid))

    def _submit(self, now: int, active: ActiveRequest) -> None:
        """A request reaches its engine."""
        if active.due != now or self.clients.active.get(active.row) is not active:
            return  # its worker died and it was sent again, or its client has hung up
        active.due = -1
        try:
            if not self.workers.submit(now, active):
                self._fails(now, active, "connection refused")
        except TooLongError as error:
            self._obey(now, self.dispatcher.step(ev.Failed(now, active.row, False, str(error))))

    def _fails(self, now: int, active: ActiveRequest, reason: str) -> None:
        """An engine breaks a request off; it may be tried elsewhere if its client saw nothing yet."""
        self.workers.forget(active)
        active.due = -1
        retryable = self.clients.rows.first[active.row] < 0
        if retryable:
            self.clients.waits_again(active)
        self._obey(now, self.dispatcher.step(ev.Failed(now, active.row, retryable, reason)))

    def _cancel(self, now: int, what: tuple[int, int]) -> None:
        slot, row = what
        self.workers.cancel(now, slot, row)

    # ------------------------------------------------------------------ what engines did

    def _wake(self, now: int, slot: int) -> None:
        """Steps of an engine end: pass on what came of them."""
        result = self.workers.wake(now, slot)
        if result is None:
            return
        run, heap = self.workers.runs[slot], self.heap
        assert run is not None
        if self._exact_cache and (result.stored or result.evicted):
            heap.add(now + self._back_us, CACHE_NEWS, (slot, run, result))
        if result.first or result.finished:
            heap.add(now + self._hop_us, CLIENT_NEWS, (slot, run, result))
            if self._stale:
                heap.add(now + self._back_us, DISPATCHER_NEWS, (slot, run, result))
        if run.progress:
            heap.add(now + self._back_us, PROGRESS, run.progress)
        self.clients.service_gap.look(now)

    def _client_news(self, now: int, what: tuple[int, EngineRun, StepResult]) -> None:
        """Clients see first tokens and ends; so does the dispatcher, unless what it hears is stale."""
        slot, run, result = what
        if self.workers.runs[slot] is not run:
            return  # it died with the answer on its way
        clients = self.clients
        for row in result.first:
            active = clients.active.get(row)
            if active is not None and active.slot == slot:
                clients.rows.first[row] = now
        if not self._stale:
            self._dispatcher_news(now, what)
        for row in result.finished:
            active = clients.active.get(row)
            if active is not None and active.slot == slot:
                self.workers.forget(active)
                clients.answered(now, active)

    def _dispatcher_news(self, now: int, what: tuple[int, EngineRun, StepResult]) -> None:
        """Tell the dispatcher of first tokens and ends, as the gateway does."""
        slot, _, result = what
        dispatcher, clients = self.dispatcher, self.clients
        jobs, rows = dispatcher.requests, clients.rows
        commands: list[Command] = []
        for row in result.first:
            if row in jobs and rows.worker[row] == slot:
                commands += dispatcher.first_token(now, row)
                active = clients.active.get(row)
                if active is not None:
                    active.reported = 1
                commands += dispatcher.progress(now, row, 1)
        for row in result.finished:
            if row in jobs and rows.worker[row] == slot:
                prompt, cached, output = rows.prompt[row], rows.cached[row], clients.output_of(row)
                commands += dispatcher.finish(now, row, prompt, cached, output)
        if commands:
            self._obey(now, commands)

    def _progress(self, now: int, tokens: list[tuple[int, int]]) -> None:
        """Tell the dispatcher how much was answered meanwhile."""
        dispatcher, requests = self.dispatcher, self.clients.active
        for row, output in tokens:
            active = requests.get(row)
            if active is not None and output > active.reported > 0:
                more, active.reported = output - active.reported, output
                commands = dispatcher.progress(now, row, more)
                if commands:
                    self._obey(now, commands)

    def _cache_news(self, now: int, what: tuple[int, EngineRun, StepResult]) -> None:
        """Tell the dispatcher what an engine cached and let go of, as its KV events would."""
        slot, run, result = what
        if self.workers.runs[slot] is not run:
            return
        worker, step = str(slot), self.dispatcher.step
        if result.evicted:
            self._obey(now, step(ev.CacheEvicted(now, worker, result.evicted)))
        for stored in result.stored:
            self._obey(now, step(ev.CacheStored(now, worker, stored.keys, stored.parent)))

    # ------------------------------------------------------------------ workers come and go

    def _dies(self, now: int, fault: Fault) -> None:
        for row in self.workers.dies(now, fault):
            active = self.clients.active.get(row)
            if active is not None and active.slot == fault.worker:
                self._fails(now, active, "the worker died")

    def _noticed(self, now: int, slot: int) -> None:
        if self.workers.runs[slot] is None:
            self._obey(now, self.dispatcher.step(ev.WorkerDown(now, str(slot), "died")))

    def _returns(self, now: int, slot: int) -> None:
        self._obey(now, self.dispatcher.step(self.workers.up(now, slot)))

    # ------------------------------------------------------------------ time

    def _tick(self, now: int, _: None) -> None:
        self._obey(now, self.dispatcher.step(ev.Tick(now)))
        if not self._over:
            self.heap.add(now + _TICK_US, TICK, None)

    def _sample(self, now: int, _: None) -> None:
        series, clients, fleet = self.series, self.clients, self.dispatcher.fleet
        queued = [fleet.queued[fleet.slots[str(slot)]] for slot in range(self.settings.workers)]
        under_way = self.workers.sample(now, series, queued)
        for client, service in enumerate(self.meter.service):
            series.service[client].append(service + under_way[client])
            series.demand[client].append(clients.demand[client])
            series.queued[client].append(clients.service_gap.waiting(client))
        if not self._over:
            self.heap.add(now + self.settings.interval_us, SAMPLE, None)

    # ------------------------------------------------------------------ the end

    def _result(self) -> Run:
        settings, trace, clients, workers = self.settings, self.trace, self.clients, self.workers
        fairness = Fairness(clients.service_gap.worst)
        one, other = clients.service_gap.pair
        if one >= 0:
            fairness.pair = (clients.names[one], clients.names[other])
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
            clients=clients.names,
            weights=self.meter.weights,
            misbehaving=sorted(trace.misbehaving),
            labels=list(trace.labels),
            requests=clients.rows.close(),
            series=self.series,
            fairness=fairness,
            duration_us=clients.last_end,
            loops=clients.loops.told(clients.names, settings.workers * workers.max_num_seqs),
            itl=workers.itl.close(),
            steps=workers.steps,
            preemptions=workers.preemptions,
            computed_tokens=sum(workers.prefilled),
            settings=settings.as_dict() | {"abandoned_turns": clients.abandoned},
        )
