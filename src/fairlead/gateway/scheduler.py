"""The gateway's scheduler: events into the dispatcher, its commands to the flows they are for.

All of it runs on one event loop's thread. A decision is one synchronous ``step`` of the dispatcher;
the sockets are touched after it. HTTP is elsewhere: in ``app`` towards clients, in ``flow`` for one
request, in ``workers`` towards engines.
"""

import asyncio
import logging
from time import monotonic_ns

from fairlead.config import Config
from fairlead.core import events as ev
from fairlead.core.commands import Dispatch, Fail, Reject
from fairlead.core.lifecycle import LifecycleError
from fairlead.core.model import ClientId
from fairlead.gateway.assembly import configured_dispatcher, key_secret, kv_follower, make_prompts
from fairlead.gateway.decision_log import open_decision_log
from fairlead.gateway.flow import Flow
from fairlead.gateway.metrics import Metrics
from fairlead.gateway.prompt import PromptKeys
from fairlead.gateway.workers import Workers
from fairlead.trace.decision_files import Step, recording

log = logging.getLogger("fairlead.gateway")

FLUSH_S = 0.01
"""Progress of streams is told to the dispatcher this often: a token's charge may be this late."""
TICK_S = 0.1


class Scheduler:
    """The dispatcher, the requests under way and the workers, tied together by events and commands.

    Raises ``PolicyError`` for an unknown policy or parameter, ``TokenizerError`` when a configured
    tokenizer cannot be loaded, OSError when the decision log cannot be opened.
    """

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self.config = config
        self.metrics = metrics
        self.dispatcher = configured_dispatcher(config)
        self.key_secret = secret = key_secret(config)
        self.workers = Workers(
            config,
            self.step,
            self.now_us,
            self._running_on,
            self._serves_others,
            (lambda worker, sources: kv_follower(config, worker, sources, self.step, self.now_us, secret))
            if config.tokenizer and config.kv_events
            else None,
        )
        self.prompts: PromptKeys = make_prompts(config, self.workers.adapters, secret)
        self.retry_statuses = frozenset(int(status) for status in config.retry_statuses)
        self.flows: dict[int, Flow] = {}
        """Requests under way, by number."""
        self._progressed: list[Flow] = []
        self._flush_due = False
        self._ticker: asyncio.Task[None] | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._decide: Step = self.dispatcher.step
        self._log = open_decision_log(config, self.dispatcher, self.now_us())
        if self._log is not None:
            self._decide = recording(self.dispatcher.step, self._log)

    @staticmethod
    def now_us() -> int:
        """The clock of all events: monotonic, microseconds."""
        return monotonic_ns() // 1000

    @property
    def decided_us(self) -> int:
        """The time of the latest decision, by the clock of all events."""
        return self.dispatcher.now

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look at the workers once, and go on looking."""
        self._ticker = asyncio.create_task(self._ticking())
        await self.workers.start()

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - an answer in time or False, not an error
        """Wait until no request is under way; return whether that came within ``timeout`` seconds."""
        self._draining = True
        if not self.flows:
            return True
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End at once."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self.workers.close()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    # --- events and commands -------------------------------------------------------------------

    def arrive(self, flow: Flow) -> None:
        """Take in a request, and let the dispatcher decide."""
        request = flow.request
        flow.live = True
        self.flows[request.rid] = flow
        try:
            self.step(ev.Arrived(request.arrived_us, request))
        except Exception as error:  # noqa: BLE001 - it is logged where the flow ends
            flow.broke(error)

    def step(self, event: ev.Event) -> None:
        """Let the dispatcher decide, and do what it says."""
        for command in self._decide(event):
            flow = self.flows.get(command.rid)
            if flow is None:
                continue  # the flow ended itself and needs no telling
            if type(command) is Dispatch:
                flow.dispatch(command)
            elif type(command) is Reject:
                flow.reject(command)
            elif type(command) is Fail:
                flow.fail(command)
            else:
                flow.stop()

    def forget(self, flow: Flow) -> None:
        """Called by a flow at its end."""
        self.flows.pop(flow.request.rid, None)
        if self._draining and not self.flows:
            self._idle.set()

    def give_up(self, flow: Flow, reason: str) -> None:
        """Called by a flow that broke: forget it, and settle what the dispatcher still has of it.

        Raises nothing: where even that fails, it is logged.
        """
        self.forget(flow)
        rid = flow.request.rid
        for event in (
            ev.Failed(self.now_us(), rid, retryable=False, reason=reason),
            ev.Cancelled(self.now_us(), rid),
        ):
            if rid not in self.dispatcher.requests:
                return
            try:
                self.step(event)
            except LifecycleError:
                continue  # it waits: it cannot fail on a worker, but it can be withdrawn
            except Exception:
                log.exception("the books of request %d could not be settled", rid)

    def made_progress(self, flow: Flow) -> None:
        """Called by a flow that has tokens to report: soon, with those of others."""
        self._progressed.append(flow)
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def report_progress(self, flow: Flow) -> None:
        """Tell the dispatcher of a flow's tokens now."""
        tokens = flow.take_progress()
        if tokens:
            self.step(ev.Progressed(self.now_us(), flow.request.rid, tokens))

    def _flush(self) -> None:
        self._flush_due = False
        flows, self._progressed = self._progressed, []
        for flow in flows:
            if flow.live:
                try:
                    self.report_progress(flow)
                except Exception as error:  # noqa: BLE001 - it is logged where the flow ends
                    flow.broke(error)

    async def _ticking(self) -> None:
        """Send ``Tick`` events, and measure how late the event loop is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.metrics.loop_delay.observe(max(0.0, loop.time() - due))
            try:
                self.step(ev.Tick(self.now_us()))
                if self._log is not None:
                    self._log.flush()
            except Exception:
                log.exception("a tick failed; the next ones go on")

    def _running_on(self, worker_id: str) -> int:
        fleet = self.dispatcher.fleet
        return fleet.running[fleet.slots[worker_id]]

    def _serves_others(self, worker_id: str, client: ClientId) -> bool:
        """Say whether a request of another client is under way on the worker."""
        return any(
            flow.call is not None
            and flow.worker is not None
            and flow.worker.id == worker_id
            and flow.request.client != client
            for flow in self.flows.values()
        )
