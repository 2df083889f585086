"""The gateway: clients' requests in, the dispatcher's decisions, workers' answers out.

All of it runs on one event loop's thread. A decision is one synchronous ``step`` of the dispatcher;
the sockets are touched after it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from time import monotonic_ns, perf_counter
from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead.config import Config
from fairlead.core import events as ev
from fairlead.core.commands import Dispatch, Fail, Reject
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.model import Costs, Request
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.core.registry import parse_spec
from fairlead.core.routing import make_routing
from fairlead.core.routing.base import RoutingContext
from fairlead.gateway.decision_log import open_decision_log
from fairlead.gateway.flow import Flow
from fairlead.gateway.identity import Identity, Unauthorized
from fairlead.gateway.metrics import Exposition, Metrics
from fairlead.gateway.prompt import BytePrompts, Prompt, PromptKeys
from fairlead.gateway.senders import Sender, Senders
from fairlead.gateway.sse import Tap
from fairlead.gateway.wire import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    Asked,
    BadRequest,
    ChatAsked,
    CompletionAsked,
    decode,
    with_usage,
)
from fairlead.gateway.workers import Worker, Workers
from fairlead.http.server import Exchange, HttpLimits, Response, Router, Server, error_response, json_response
from fairlead.trace.decision_files import Step, recording

if TYPE_CHECKING:
    from fairlead.gateway.kv_events import KvEvents

log = logging.getLogger("fairlead.gateway")

FLUSH_S = 0.01
"""Progress of streams is told to the dispatcher this often: a token's charge may be this late."""
TICK_S = 0.1
SAMPLED = 8
"""The stages of every so-manieth request are timed."""


class Gateway:
    """Everything of ``fairlead serve`` but the process around it.

    ``costs`` and all else comes from ``config``. Raises ``PolicyError`` for an unknown policy or
    parameter, ``TokenizerError`` when a configured tokenizer cannot be loaded, OSError when the
    decision log cannot be opened.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.dispatcher = make_dispatcher(config)
        self.metrics = Metrics(config.metrics_clients)
        self.identity = Identity(config)
        self.senders = Senders(config, self.identity)
        self.workers = Workers(
            config,
            self.step,
            self.now_us,
            self._running_on,
            self._follow if config.tokenizer and config.kv_events else None,
        )
        self.prompts: PromptKeys = self._prompt_keys()
        self.retry_statuses = frozenset(int(status) for status in config.retry_statuses)
        self.flows: dict[int, Flow] = {}
        self.draining = False
        self._numbers = 0
        self._progressed: list[Flow] = []
        self._flush_due = False
        self._tasks: set[asyncio.Future[None]] = set()
        self._exposition = Exposition(self)
        self._idle = asyncio.Event()
        self.server = Server(self._routes(), HttpLimits(body_bytes=config.max_body_bytes))
        self.port = 0
        self._decide: Step = self.dispatcher.step
        self._log = open_decision_log(config, self.dispatcher, self.now_us())
        if self._log is not None:
            self._decide = recording(self.dispatcher.step, self._log)

    @staticmethod
    def now_us() -> int:
        """The clock of all events: monotonic, microseconds."""
        return monotonic_ns() // 1000

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> int:
        """Look at the workers and listen; return the port. Raises OSError if that is taken."""
        self.port = await self.server.listen(self.config.host, self.config.port)
        self._keep(self._ticking())
        await self.workers.start()
        return self.port

    async def drain(self) -> bool:
        """Take no new connections; let what was accepted end. Return whether all did in time."""
        self.draining = True
        deadline = time.monotonic() + self.config.drain_timeout_secs
        self.server.stop_listening()
        if self.flows:
            self._idle.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._idle.wait()
            except TimeoutError:
                return False
        return await self.server.drain(max(0.0, deadline - time.monotonic()))

    async def close(self) -> None:
        """End at once."""
        await self.server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.workers.close()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    # --- events and commands -------------------------------------------------------------------

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
        del self.flows[flow.request.rid]
        if self.draining and not self.flows:
            self._idle.set()

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
                self.report_progress(flow)

    async def _ticking(self) -> None:
        """Give the dispatcher its time, and measure how late we are."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self.metrics.loop_delay.observe(max(0.0, loop.time() - due))
            self.step(ev.Tick(self.now_us()))
            if self._log is not None:
                self._log.flush()

    def _keep(self, work: Awaitable[None]) -> "asyncio.Future[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _running_on(self, worker_id: str) -> int:
        fleet = self.dispatcher.fleet
        return fleet.running[fleet.slots[worker_id]]

    # --- requests ------------------------------------------------------------------------------

    def _routes(self) -> Router:
        router = Router()
        for path, kind in (
            ("/v1/chat/completions", CHAT),
            ("/v1/completions", COMPLETION),
            ("/v1/embeddings", EMBEDDING),
        ):
            router.add("POST", path, self._handler(kind))
        router.add("GET", "/v1/models", self._models)
        router.add("GET", "/health", lambda _: json_response({"status": "ok"}))
        router.add("GET", "/ready", self._ready)
        router.add("GET", "/metrics", self._metrics)
        return router

    def _handler(self, kind: str) -> Callable[[Exchange], Response | None]:
        def generate(exchange: Exchange) -> Response | None:
            try:
                self._generate(kind, exchange)
                return None
            except BadRequest as error:
                self.metrics.refuse(error.code or "bad_request")
                return error_response(error.status, error.message, error.code, error.param)
            except Unauthorized as error:
                return self._unauthorized(error)

        return generate

    def _generate(self, kind: str, exchange: Exchange) -> None:
        """Take in one request: who asks, what for, which blocks; then let the dispatcher decide."""
        sampled = not self._numbers % SAMPLED
        began = perf_counter() if sampled else 0.0
        sender = self.senders.of(exchange)
        identified = perf_counter() if sampled else 0.0
        asked = decode(kind, exchange.body)
        served = self.workers.served
        if served and asked.model not in served:
            raise BadRequest(f"the model '{asked.model}' does not exist", "model", "model_not_found", 404)
        parsed = perf_counter() if sampled else 0.0
        prompt = self.prompts.keys_now(kind, asked)
        if prompt is None:
            self._keep(self._arrive_later(kind, exchange, sender, asked))
            return
        keyed = perf_counter() if sampled else 0.0
        self._arrive(exchange, sender, asked, prompt)
        if sampled:
            ended = perf_counter()
            stages = self.metrics.stages
            stages["identify"].observe(identified - began)
            stages["parse"].observe(parsed - identified)
            stages["keys"].observe(keyed - parsed)
            stages["decide"].observe(ended - keyed)

    async def _arrive_later(self, kind: str, exchange: Exchange, sender: Sender, asked: Asked) -> None:
        """Have a thread make a long prompt's keys; the client may be gone by then."""
        began = perf_counter()
        try:
            prompt = await asyncio.to_thread(self.prompts.keys, kind, asked)
        except Exception:
            log.exception("a prompt could not be turned into keys")
            exchange.fail()
            return
        self.metrics.stages["keys"].observe(perf_counter() - began)
        if not exchange.gone:
            self._arrive(exchange, sender, asked, prompt)

    def _arrive(self, exchange: Exchange, sender: Sender, asked: Asked, prompt: Prompt) -> None:
        client, fields = sender.client, sender.fields
        if not sender.named and asked.user:
            client = self.identity.by_user(asked.user)
            fields = sender.passed + client.fields
        rid = self._numbers = self._numbers + 1
        now = monotonic_ns() // 1000
        streamed = asked.stream is True
        request = Request(
            rid,
            client.name,
            prompt.prompt_tokens,
            prompt.keys,
            prompt.block_tokens,
            asked.limit,
            sender.session,
            now,
            streamed,
        )
        body = exchange.body
        exchange.body = b""
        tap = None
        if streamed:
            options = asked.stream_options
            hide = self.config.ask_usage and not (options is not None and options.include_usage)
            if hide:
                body = with_usage(body, asked)
            tap = Tap(hide)
        xargs = None
        if self.config.engine_ordering and isinstance(asked, ChatAsked | CompletionAsked):
            xargs = bool(asked.vllm_xargs)
        figures = self.metrics.client(client.name)
        flow = Flow(self, exchange, client, figures, request, asked.model, prompt, fields, body, tap, xargs)
        exchange.listener = flow
        flow.live = True
        self.flows[rid] = flow
        try:
            self.step(ev.Arrived(now, request))
        except BaseException:
            flow.live = False
            self.flows.pop(rid, None)
            raise

    # --- the other endpoints -------------------------------------------------------------------

    def _unauthorized(self, error: Unauthorized) -> Response:
        self.metrics.refuse("unauthorized")
        response = error_response(401, str(error), "invalid_api_key")
        return response._replace(headers=((b"www-authenticate", b"Bearer"),))

    def _models(self, exchange: Exchange) -> Response:
        try:
            self.identity.identify(dict(exchange.headers), exchange.peer)
        except Unauthorized as error:
            return self._unauthorized(error)
        entries = [model.raw for model in self.workers.models().values()]
        return Response(200, msgspec.json.encode({"object": "list", "data": entries}))

    def _ready(self, _: Exchange) -> Response:
        ready = self.workers.ready
        body = {"ready": bool(ready) and not self.draining, "workers_up": ready, "draining": self.draining}
        return json_response(body, 200 if body["ready"] else 503)

    def _metrics(self, _: Exchange) -> Response:
        return Response(200, self._exposition.render(), b"text/plain; version=0.0.4; charset=utf-8")

    # --- making --------------------------------------------------------------------------------

    def _prompt_keys(self) -> PromptKeys:
        config = self.config
        if not config.tokenizer:
            return BytePrompts(config.block_tokens)
        from fairlead.gateway.tokenizing import load_prompts  # noqa: PLC0415 - an optional extra

        tokens = load_prompts(Path(config.tokenizer), block_tokens=config.block_tokens)
        # The same dictionary, so that adapters are known as soon as a worker lists them.
        tokens.adapters = self.workers.adapters
        return tokens

    def _follow(self, worker: Worker, body: bytes) -> "KvEvents | None":
        """Make the follower of a worker's KV-cache events, or say why its cache stays a guess."""
        # Only who follows events pays for ZMQ.
        from fairlead.gateway.kv_events import KeySettings, KvEvents, SourceError, source_from  # noqa: PLC0415

        try:
            source = source_from(body, worker.id)
        except SourceError as error:
            log.warning("KV-cache events of %s cannot be followed: %s", worker.id, error)
            return None
        model = next((m.id for m in worker.models if not m.parent), "")
        return KvEvents(
            worker.id,
            source,
            KeySettings(model, self.config.block_tokens, xxh3_64_intdigest),
            emit=self.step,
            now=self.now_us,
            on_state=lambda state: log.info("KV cache of %s: %s (%s)", worker.id, state.phase, state.reason),
        )


def make_dispatcher(config: Config) -> Dispatcher:
    """Make the core with the configured policies. Raises ``PolicyError``."""
    policy, policy_params = parse_spec(config.policy)
    order, order_params = parse_spec(config.queue_order)
    costs = Costs()
    return Dispatcher(
        make_routing(policy, policy_params, RoutingContext(Random(config.seed), costs)),
        make_ordering(order, order_params, OrderingContext(costs)),
        Settings(
            costs=costs,
            max_attempts=config.max_attempts,
            retry_ratio=config.retry_ratio,
            max_queued=config.queue_size,
            queue_timeout_us=int(config.queue_timeout_secs * 1e6),
            forward=config.engine_ordering,
        ),
        {name: client.weight for name, client in config.clients.items()},
    )
