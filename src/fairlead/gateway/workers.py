"""The engines behind the gateway: health, circuit breaker, limits, load, KV-cache events.

Each worker has one task that checks it now and then, and tells the dispatcher what changed. None of
this changes the counts of running requests: those are the dispatcher's own.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from fairlead.config import Config
from fairlead.core import events as ev
from fairlead.core.model import ClientId, Limits, RequestId
from fairlead.gateway import engines
from fairlead.gateway.breaker import Failure, FailureRow
from fairlead.gateway.retry_after import pause, retry_after
from fairlead.http.client import ClientTimeouts, Pool, UpstreamError
from fairlead.http.messages import Headers

if TYPE_CHECKING:
    from fairlead.gateway.kv_events import KvEvents

log = logging.getLogger("fairlead.workers")

Emit = Callable[[ev.Event], None]

_EXPLORE_S = 0.1
"""Time between readings of an engine's load while it is not known how many requests it runs."""
_DEFAULT_KV_TOKENS = Limits().kv_tokens


class Worker:
    """One engine: its address, connections, and what is known of it."""

    def __init__(self, url: str, config: Config) -> None:
        self.id = url.rstrip("/")
        timeouts = ClientTimeouts(
            config.connect_timeout_secs, config.request_timeout_secs, config.stream_timeout_secs
        )
        self.pool = Pool(url, timeouts)
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        """Fields that every request to it carries: the engine's own key."""
        if config.worker_authorization:
            self.headers = ((b"authorization", config.worker_authorization),)
        self.up = False
        self.failed_checks = 0
        self.failures = FailureRow(config.cb_failure_threshold)
        """Requests that failed since its last good answer, as far as that may be its fault."""
        self.failed = 0
        """Failed requests in all."""
        self.refused = 0
        """Requests in all that it had no room for."""
        self.refused_in_a_row = 0
        """Pauses for that reason since its last good answer."""
        self.held_until = 0.0
        """It gets no requests until then, in the loop's seconds."""
        self.closed_until = 0.0
        """The circuit breaker keeps it out until then, in the loop's seconds."""
        self.look = asyncio.Event()
        """Set to have it checked at once."""
        self.capacity = engines.Capacity(engines.UNKNOWN)
        most = config.worker_max_num_seqs or engines.MOST_SEQUENCES
        self.sequences = engines.SequenceCapacity(most, known=True)
        self.limits = Limits(most, config.worker_kv_tokens or _DEFAULT_KV_TOKENS)
        self.models: list[engines.Model] = []
        self.kv: KvEvents | None = None
        self.kv_task: asyncio.Task[None] | None = None
        self.reported_prompt_tokens = 0.0
        self.reported_cached_tokens = 0.0
        """Of recent requests, by the engines' usage; older ones fade."""
        self.ignored: dict[str, int] = {}
        """Figures that it said and that cannot be true, by name: how often."""

    def __repr__(self) -> str:
        return f"<Worker {self.id} {'up' if self.up else 'down'}>"

    @property
    def precise(self) -> bool:
        """Whether its cache is known by events."""
        return self.kv is not None and self.kv.precise

    def ignore(self, figure: str, said: object) -> None:
        """Count a figure that it said and that cannot be true; the first of each name is logged."""
        before = self.ignored.get(figure, 0)
        self.ignored[figure] = before + 1
        if not before:
            log.warning(
                "worker %s reports a figure that cannot be true, which is ignored: %s %.80r",
                self.id,
                figure,
                said,
            )

    def succeeded(self) -> None:
        """Note a good answer: failures and refusals are counted anew."""
        self.failures.clear()
        self.refused_in_a_row = 0

    def count_hit(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Note what the engine reported of one prompt."""
        self.reported_prompt_tokens = self.reported_prompt_tokens * 0.98 + prompt_tokens
        self.reported_cached_tokens = self.reported_cached_tokens * 0.98 + cached_tokens


class Workers:
    """All engines. ``emit`` takes events to the dispatcher; ``now_us`` is the clock of events.

    ``running`` tells how many requests a worker has by our books, and ``serves_others`` whether one of
    them is of another client than the one named. ``follow`` makes the KV-event follower of a worker, or
    None where its events cannot be used.
    """

    def __init__(
        self,
        config: Config,
        emit: Emit,
        now_us: Callable[[], int],
        running: Callable[[str], int],
        serves_others: Callable[[str, ClientId], bool],
        follow: "Callable[[Worker, bytes], KvEvents | None] | None" = None,
    ) -> None:
        self._config = config
        self._emit = emit
        self._now_us = now_us
        self._running = running
        self._serves_others = serves_others
        self._follow = follow
        self.by_id: dict[str, Worker] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._warned = False
        self.served: frozenset[str] = frozenset()
        """Names of the models that workers serve; empty until they said."""
        self.adapters: dict[str, str] = {}
        """LoRA adapters that workers serve, and their base models."""
        for url in config.worker_urls:
            worker = Worker(url, config)
            self.by_id[worker.id] = worker

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.by_id.values())

    def __getitem__(self, worker_id: str) -> Worker:
        return self.by_id[worker_id]

    @property
    def ready(self) -> int:
        """How many take requests."""
        return sum(worker.up for worker in self)

    def models(self) -> dict[str, engines.Model]:
        """Return the models of all workers by name."""
        return {model.id: model for worker in self for model in worker.models}

    async def start(self) -> None:
        """Begin to look. Return when each was checked once; not later for one that dribbles its answers."""
        checked = [asyncio.Event() for _ in self]
        for worker, event in zip(self, checked, strict=True):
            self._tasks.append(asyncio.create_task(self._watch(worker, event)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.health_timeout_secs):
                await asyncio.gather(*(event.wait() for event in checked))

    async def close(self) -> None:
        """Stop looking and close all connections."""
        tasks = [*self._tasks, *(w.kv_task for w in self if w.kv_task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self:
            await worker.pool.close()

    def failed(
        self, worker: Worker, kind: str, rid: RequestId, client: ClientId, before: Worker | None
    ) -> bool:
        """A request failed on the worker. Return whether another worker may be tried.

        ``kind`` is that of an ``UpstreamError``, or ``answer`` for an answer that says so; ``before`` the
        worker that the request failed on already.
        """
        worker.failed += 1
        if kind in {"connect", "closed"}:
            worker.look.set()
        if kind != "connect" and before is not None and before is not worker:
            before.failures.withdraw(rid)
            self._reconsider(before)
            return False
        worker.failures.add(rid, Failure(client, silent=kind in {"connect", "closed", "timeout"}))
        if worker.up and self._at_fault(worker):
            worker.closed_until = asyncio.get_running_loop().time() + self._config.cb_timeout_secs
            self._take_down(worker, f"{len(worker.failures)} failures in a row", forget_cache=False)
        return True

    def _at_fault(self, worker: Worker) -> bool:
        """Say whether the circuit of a worker is to open: whether its failures are its own."""
        row, enough = worker.failures, self._config.cb_failure_threshold
        if len(row) < enough:
            return False
        client = row.only_client
        if client is not None and self._serves_others(worker.id, client):
            return False  # other clients' requests there will show
        others = [other for other in self if other.up and other is not worker]
        if others:
            return any(not other.failures for other in others)
        return row.silent >= enough

    def _reconsider(self, worker: Worker) -> None:
        """Close the circuit again if what opened it was the fault of requests."""
        open_now = worker.closed_until > asyncio.get_running_loop().time()
        if open_now and len(worker.failures) < self._config.cb_failure_threshold:
            worker.closed_until = 0.0
            worker.look.set()

    def refused(self, worker: Worker, rid: RequestId, status: int, headers: Headers) -> None:
        """The worker said that it has no room for a request: leave it alone for a while, then send less."""
        now = asyncio.get_running_loop().time()
        worker.refused += 1
        if now >= worker.held_until:
            worker.refused_in_a_row += 1
        wait = retry_after(headers, time.time()) or pause(worker.refused_in_a_row)
        worker.held_until = max(worker.held_until, now + wait)
        reason = f"the worker answered {status}"
        self._emit(ev.Refused(self._now_us(), rid, int(wait * 1e6), reason))
        if not self._config.engine_ordering:  # else the engine itself decides how much it takes
            self._set_sequences(worker, worker.sequences.refused(self._running(worker.id)))

    def _set_sequences(self, worker: Worker, sequences: int) -> None:
        if sequences != worker.limits.max_num_seqs:
            worker.limits = worker.limits._replace(max_num_seqs=sequences)
            self._emit(ev.WorkerChanged(self._now_us(), worker.id, worker.limits))

    def _take_down(self, worker: Worker, reason: str, *, forget_cache: bool) -> None:
        worker.up = False
        log.warning("worker %s is out: %s", worker.id, reason)
        self._emit(ev.WorkerDown(self._now_us(), worker.id, reason, forget_cache))

    async def _watch(self, worker: Worker, checked: asyncio.Event) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        await self._look(worker, self._check)
        checked.set()
        next_check = loop.time() + config.health_interval_secs
        next_load = loop.time() + config.load_interval_secs
        while True:
            with contextlib.suppress(TimeoutError):
                soon = next_load - loop.time()
                if worker.up and worker.sequences.exploring:
                    soon = min(soon, _EXPLORE_S)
                async with asyncio.timeout(soon):
                    await worker.look.wait()
            if not (worker.look.is_set() or loop.time() >= next_load or self._can_explore(worker)):
                continue
            next_load = loop.time() + config.load_interval_secs
            if worker.look.is_set() or loop.time() >= next_check:
                worker.look.clear()
                await self._look(worker, self._check)
                next_check = loop.time() + config.health_interval_secs
            if worker.up:
                await self._look(worker, self._read_load)

    def _can_explore(self, worker: Worker) -> bool:
        """Say whether a reading now can tell how many requests the engine runs: it has all it may get."""
        return worker.up and worker.sequences.exploring and self._running(worker.id) >= worker.sequences.now

    @staticmethod
    async def _look(worker: Worker, how: Callable[[Worker], Awaitable[None]]) -> None:
        try:
            await how(worker)
        except Exception:  # one odd answer must end neither the checks nor the start
            log.exception("checking worker %s failed", worker.id)

    async def _check(self, worker: Worker) -> None:
        """Ask for the worker's health and act on a change."""
        config = self._config
        reason, gone = "", False
        try:
            healthy = await engines.healthy(worker.pool, worker.headers, config.health_timeout_secs)
            reason = "" if healthy else "its health check failed"
        except UpstreamError as error:
            reason, gone = str(error), error.kind == "connect"
        if not reason:
            worker.failed_checks = 0
            if not worker.up and asyncio.get_running_loop().time() >= worker.closed_until:
                await self._bring_up(worker)
            return
        worker.failed_checks += 1
        if worker.up and (gone or worker.failed_checks >= config.health_failures):
            self._take_down(worker, reason, forget_cache=True)
        elif worker.failed_checks == 1 and not worker.up:
            log.warning("worker %s is not ready: %s", worker.id, reason)

    async def _bring_up(self, worker: Worker) -> None:
        timeout = self._config.health_timeout_secs
        worker.capacity = await engines.capacity(worker.pool, worker.headers, timeout, worker.ignore)
        models = await engines.models(worker.pool, worker.headers, timeout, worker.ignore)
        worker.models = models or worker.models
        worker.limits = self._limits(worker)
        worker.failures.trust_again()
        worker.up = True
        log.info(
            "worker %s is up: %s, %d sequences, %d KV tokens, models %s",
            worker.id,
            worker.capacity.kind,
            worker.sequences.ceiling,
            worker.limits.kv_tokens,
            ", ".join(model.id for model in worker.models) or "unknown",
        )
        if self._config.engine_ordering and worker.capacity.kind not in engines.TOLD_CLIENTS:
            log.warning(
                "worker %s (%s) cannot be told the client of a request: all clients share its queue",
                worker.id,
                worker.capacity.kind,
            )
        self._emit(ev.WorkerUp(self._now_us(), worker.id, worker.limits))
        self._compare_models()
        if worker.kv is not None:
            worker.kv.resync()
        elif self._follow is not None:
            await self._follow_kv(worker)

    def _limits(self, worker: Worker) -> Limits:
        config, capacity = self._config, worker.capacity
        most = config.worker_max_num_seqs or capacity.sequences or engines.MOST_SEQUENCES
        ceiling = min(most, capacity.sequences or most)
        said = config.worker_max_num_seqs or capacity.sequences
        # With the queue in the engine it gets all there is; without figures of its load only refusals tell.
        known = bool(said) or config.engine_ordering or capacity.kind == engines.UNKNOWN
        worker.sequences = engines.SequenceCapacity(ceiling, known=known)
        kv_tokens = config.worker_kv_tokens or capacity.kv_tokens or _DEFAULT_KV_TOKENS
        return Limits(worker.sequences.now, kv_tokens, config.worker_queue)

    def _compare_models(self) -> None:
        self.served = frozenset(self.models()) if all(w.models for w in self if w.up) else frozenset()
        self.adapters.clear()  # the dictionary itself is shared
        self.adapters.update({m.id: m.parent for m in self.models().values() if m.parent})
        lists = {tuple(sorted(m.id for m in worker.models)) for worker in self if worker.models}
        if len(lists) > 1 and not self._warned:
            self._warned = True
            log.warning(
                "workers serve different models, but requests are routed as if each served all of them"
            )

    async def _read_load(self, worker: Worker) -> None:
        load = await engines.load(
            worker.capacity.kind,
            worker.pool,
            worker.headers,
            self._config.health_timeout_secs,
            worker.ignore,
        )
        if not worker.up:
            return
        if load is None:  # then only refusals tell
            self._set_sequences(worker, worker.sequences.read(engines.Load(0, 0), self._running(worker.id)))
            return
        sequences = worker.limits.max_num_seqs
        if not self._config.engine_ordering:  # else that requests wait in it is as it should be
            sequences = worker.sequences.read(load, self._running(worker.id))
        changed = sequences != worker.limits.max_num_seqs
        if changed:
            worker.limits = worker.limits._replace(max_num_seqs=sequences)
        self._emit(
            ev.WorkerChanged(
                self._now_us(), worker.id, worker.limits if changed else None, load.running, load.waiting
            )
        )

    async def _follow_kv(self, worker: Worker) -> None:
        """Subscribe to the worker's KV-cache events; without them its cache stays a guess."""
        try:
            status, _, body = await worker.pool.fetch(
                b"GET",
                b"/kv_event_sources",
                worker.headers,
                timeout=self._config.health_timeout_secs,
                most=engines.MOST_BYTES,
            )
        except UpstreamError as error:
            status, body = 0, str(error).encode()
        if status != 200 or self._follow is None:
            log.warning(
                "worker %s offers no KV-cache events; its cache is approximated from what was sent", worker.id
            )
            return
        worker.kv = self._follow(worker, body)
        if worker.kv is not None:
            worker.kv_task = asyncio.create_task(worker.kv.run())
