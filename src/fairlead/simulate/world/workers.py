"""The workers of a simulated world: engines, their steps and requests, and their deaths and returns."""

from fairlead.core.events import WorkerUp
from fairlead.core.model import Limits
from fairlead.core.ordering import make_ordering
from fairlead.core.ordering.base import OrderingContext
from fairlead.engine.model import Engine
from fairlead.engine.step import StepResult
from fairlead.report.itl import InterTokenTimes
from fairlead.report.run import Series
from fairlead.simulate.settings import ENGINE, NEVER_US, Fault, Settings
from fairlead.simulate.world.clients import ActiveRequest, Clients
from fairlead.simulate.world.enginerun import IDLE, EngineRun
from fairlead.simulate.world.heap import NOTICED, RETURNS, SUBMIT, Heap
from fairlead.simulate.world.meter import Meter, metered


class Workers:
    """The engines by slot, and what they did. It does not know the dispatcher."""

    def __init__(self, settings: Settings, heap: Heap, clients: Clients, meter: Meter) -> None:
        self.runs: list[EngineRun | None] = [None] * settings.workers
        """None: it is dead, or not up yet."""
        self.requests: list[dict[int, None]] = [{} for _ in range(settings.workers)]
        """Rows of the requests at each engine, as its caller sees it: sent and not ended."""
        self.max_num_seqs = self.kv_tokens = 0
        """Limits of each engine; known once they run."""
        self.prefilled = [0] * settings.workers
        self.steps = 0
        self.preemptions = 0
        self.itl = InterTokenTimes()
        self._wakes = [IDLE] * settings.workers
        """The time of each engine's current wake; others in the heap are out of date."""
        self._settings = settings
        self._profile = settings.profile()
        self._forward = settings.topology == ENGINE
        self._output = settings.costs.output
        self._heap = heap
        self._clients = clients
        self._meter = meter

    # ------------------------------------------------------------------ they come and go

    def up(self, now: int, slot: int) -> WorkerUp:
        """Start the engine in ``slot``, with an empty cache."""
        settings, trace = self._settings, self._clients.trace
        if self._forward:
            ordering = settings.ordering()
            for client, weight in trace.clients.items():
                ordering.set_weight(client, weight)
        else:
            ordering = make_ordering("fcfs", {}, OrderingContext(settings.costs))
        engine = Engine(
            self._profile,
            metered(ordering, self._meter),
            block_tokens=trace.block_tokens,
            kv_blocks=settings.kv_tokens // trace.block_tokens or None,
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
        self.runs[slot] = EngineRun(
            engine, fast_forward=settings.fast_forward, report_steps=report, in_order=in_order
        )
        limits = Limits(engine.max_num_seqs, self.kv_tokens, NEVER_US)
        return WorkerUp(now, str(slot), limits, settings.exact_cache)

    def dies(self, now: int, fault: Fault) -> list[int]:
        """Let an engine die; return the rows of the requests that its caller had there."""
        slot = fault.worker
        run = self.runs[slot]
        if run is None:
            return []
        self._touch(slot, run, now)
        self.steps += run.ended_steps
        self.runs[slot] = None
        self._wakes[slot] = IDLE
        self._heap.drop_wakes(slot)
        self._heap.add(now + self._settings.detect_us, NOTICED, slot)
        if fault.for_us:
            self._heap.add(now + fault.for_us, RETURNS, slot)
        return list(self.requests[slot])

    # ------------------------------------------------------------------ requests

    def send(self, now: int, slot: int, active: ActiveRequest) -> None:
        """Send a request to the worker in ``slot``; it is there a hop later."""
        active.slot = slot
        rows = self._clients.rows
        rows.sent[active.row] = now
        rows.worker[active.row] = slot
        self.requests[slot][active.row] = None
        active.due = now + self._settings.hop_us
        self._heap.add(active.due, SUBMIT, active)

    def submit(self, now: int, active: ActiveRequest) -> bool:
        """Give a request that was sent to its engine; return False if that one is dead.

        Raises ``TooLongError`` if it can never run there.
        """
        slot, turn = active.slot, active.turn
        run = self.runs[slot]
        if run is None:
            return False
        if run.receive(now):
            self._note_wake(slot, run)
        run.engine.submit(active.request, turn.output_tokens, now, turn.output_keys)
        if run.wake_us == IDLE:
            run.start(now)
            self._note_wake(slot, run)
        return True

    def cancel(self, now: int, slot: int, row: int) -> None:
        """Let the engine in ``slot`` drop a request."""
        run = self.runs[slot]
        if run is not None:
            self._touch(slot, run, now)
            run.engine.cancel(row)

    def forget(self, active: ActiveRequest) -> None:
        """A request is no longer at its worker, as its caller sees it."""
        if active.slot >= 0:
            self.requests[active.slot].pop(active.row, None)

    # ------------------------------------------------------------------ steps

    def wake(self, now: int, slot: int) -> StepResult | None:
        """End steps of an engine and write down what they did; None if the wake is out of date."""
        if self._wakes[slot] != now:
            return None  # replaced by an earlier or later one, or its engine died
        run = self.runs[slot]
        assert run is not None
        result = run.wake(now)
        self._note_wake(slot, run)
        steps, seqs = result.steps, result.decode_seqs
        self.steps += steps
        if seqs:
            self.itl.add(result.duration_us // steps, seqs * steps)
        self.prefilled[slot] += result.prefilled
        self.preemptions += len(result.preempted)
        for admission in result.admitted:
            if not admission.resumed:
                self._clients.admitted(admission.rid, admission.cached_tokens)
        return result

    def _touch(self, slot: int, run: EngineRun, now: int) -> None:
        if run.touch(now):
            self._note_wake(slot, run)

    def _note_wake(self, slot: int, run: EngineRun) -> None:
        self._wakes[slot] = wake = run.wake_us
        if wake != IDLE:
            self._heap.add_wake(wake, slot)

    # ------------------------------------------------------------------ what is seen of them

    def sample(self, now: int, series: Series, queued: list[int]) -> list[float]:
        """Add a point to the series of each worker, with ``queued`` requests held for it.

        Returns the service of each client in steps under way, which no wake has told yet.
        """
        index = self._clients.index
        under_way = [0.0] * len(index)
        for slot, run in enumerate(self.runs):
            load, inside = None, 0
            if run is not None:
                load, steps = run.look(now)
                inside = load.waiting
                if steps:
                    for name, count in run.engine.decoding_clients.items():
                        under_way[index[name]] += self._output * count * steps
            series.running[slot].append(load.running if load else 0)
            series.waiting[slot].append(inside + queued[slot])
            series.kv_used[slot].append(load.kv_usage if load else 0.0)
            series.prefilled[slot].append(self.prefilled[slot])
        return under_way
