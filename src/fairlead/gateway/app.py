"""The gateway over HTTP: its routes and endpoints, who is asking, and what of a request is read.

What is decided about a request, and when, is the scheduler's.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from time import monotonic_ns, perf_counter

import msgspec

from fairlead.config import Config
from fairlead.core.model import Request
from fairlead.gateway.flow import Flow
from fairlead.gateway.identity import Client, Identity, Unauthorized
from fairlead.gateway.metrics import Exposition, Metrics
from fairlead.gateway.prompt import Prompt
from fairlead.gateway.readers import LARGE_BYTES, LargeBody, ReaderError, Readers
from fairlead.gateway.reading import Ask, Setup
from fairlead.gateway.scheduler import Scheduler
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
    hides_usage,
    wants_continuous_usage,
    with_usage,
)
from fairlead.http.bodies import Body
from fairlead.http.server import Exchange, HttpLimits, Response, Router, Server, error_response, json_response

log = logging.getLogger("fairlead.gateway")

SAMPLED = 8
"""The stages of one request in so many are timed."""


class Gateway:
    """Everything of ``fairlead serve`` but the process around it.

    Raises what ``Scheduler`` does.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics(config.metrics_clients)
        self.scheduler = Scheduler(config, self.metrics)
        # The scheduler's own, under shorter names.
        self.dispatcher = self.scheduler.dispatcher
        self.workers = self.scheduler.workers
        self.prompts = self.scheduler.prompts
        self.flows = self.scheduler.flows
        self.identity = Identity(config)
        self.senders = Senders(config, self.identity)
        self.draining = False
        self._numbers = 0
        self._arriving: set[asyncio.Task[None]] = set()
        """Requests whose prompt a thread turns into keys."""
        self.readers = Readers(Setup(config.tokenizer, config.block_tokens, bytes(self.scheduler.key_secret)))
        self.server = Server(
            self._routes(),
            HttpLimits(
                body_bytes=config.max_body_bytes,
                bodies_total_bytes=config.bodies_total_bytes,
                answer_buffer_bytes=config.answer_buffer_bytes,
                answer_buffer_total_bytes=config.answer_buffer_total_bytes,
            ),
        )
        self.port = 0
        self._exposition = Exposition(self.metrics, self.dispatcher, self.workers, self.server)

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> int:
        """Look at the workers and listen; return the port. Raises OSError if that is taken."""
        self.port = await self.server.listen(self.config.host, self.config.port)
        await self.scheduler.start()
        return self.port

    async def drain(self) -> bool:
        """Take no new connections; let what was accepted end. Return whether all did in time."""
        self.draining = True
        deadline = time.monotonic() + self.config.drain_timeout_secs
        self.server.stop_listening()
        if not await self.scheduler.drain(max(0.0, deadline - time.monotonic())):
            return False
        return await self.server.drain(max(0.0, deadline - time.monotonic()))

    async def close(self) -> None:
        """End at once."""
        await self.server.close()
        for task in list(self._arriving):
            task.cancel()
        await asyncio.gather(*self._arriving, return_exceptions=True)
        await self.readers.close()
        await self.scheduler.close()

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

    def _handler(self, kind: str) -> Callable[[Exchange], Response | Awaitable[Response | None] | None]:
        def generate(exchange: Exchange) -> Response | Awaitable[Response | None] | None:
            try:
                sampled = not self._numbers % SAMPLED
                began = perf_counter() if sampled else 0.0
                sender = self.senders.of(exchange)
                if sampled:
                    self.metrics.stages["identify"].observe(perf_counter() - began)
                if exchange.body_size > LARGE_BYTES:
                    return self._generate_large(kind, exchange, sender)
                self._generate(kind, exchange, sender, sampled)
                return None
            except BadRequest as error:
                return self._bad_request(error)
            except Unauthorized as error:
                return self._unauthorized(error)

        return generate

    def _generate(self, kind: str, exchange: Exchange, sender: Sender, sampled: bool) -> None:
        """Take in one request: what is asked for, which blocks; then let the dispatcher decide."""
        began = perf_counter() if sampled else 0.0
        asked = decode(kind, exchange.body)
        self._check_model(asked)
        parsed = perf_counter() if sampled else 0.0
        name = self._client(sender, asked).name
        prompt = self.prompts.keys_now(name, kind, asked)
        if prompt is None:
            later = asyncio.ensure_future(self._arrive_later(kind, exchange, sender, asked))
            self._arriving.add(later)
            later.add_done_callback(self._arriving.discard)
            return
        keyed = perf_counter() if sampled else 0.0
        self._arrive(exchange, sender, asked, prompt)
        if sampled:
            ended = perf_counter()
            stages = self.metrics.stages
            stages["parse"].observe(parsed - began)
            stages["keys"].observe(keyed - parsed)
            stages["decide"].observe(ended - keyed)

    async def _arrive_later(self, kind: str, exchange: Exchange, sender: Sender, asked: Asked) -> None:
        """Have a thread make a long prompt's keys; the client may be gone by then."""
        began = perf_counter()
        try:
            name = self._client(sender, asked).name
            prompt = await asyncio.to_thread(self.prompts.keys, name, kind, asked)
            self.metrics.stages["keys"].observe(perf_counter() - began)
            if not exchange.gone:
                self._arrive(exchange, sender, asked, prompt)
        except Exception:
            log.exception("a request with a long prompt could not be taken in")
            exchange.fail()

    async def _generate_large(self, kind: str, exchange: Exchange, sender: Sender) -> Response | None:
        """Take in a request whose body is read by a process beside this one; the client may be gone then."""
        config = self.config
        taken = exchange.take_body()
        body = Body(self.server.bodies, taken) if isinstance(taken, bytes) else taken
        ask = Ask(
            kind,
            body.size,
            config.ask_usage,
            sender.client.name if config.engine_ordering else None,
            config.use_body_user and not sender.named,
            self.workers.adapters,
        )
        try:
            read = await self.readers.read(sender.client.name, ask, body)
            self._check_model(read.asked)
        except BadRequest as error:
            return self._bad_request(error)
        except ReaderError as error:
            return self._bad_request(BadRequest(str(error), code="body_too_large", status=413))
        if not exchange.gone:
            prompt = self.prompts.prompt(self._client(sender, read.asked).name, read.asked, read.chain)
            self._arrive(exchange, sender, read.asked, prompt, read.body)
        return None

    def _check_model(self, asked: Asked) -> None:
        served = self.workers.served
        if served and asked.model not in served:
            raise BadRequest(f"the model '{asked.model}' does not exist", "model", "model_not_found", 404)

    def _client(self, sender: Sender, asked: Asked) -> Client:
        """Return whom a request is charged to."""
        return self.identity.by_user(asked.user) if not sender.named and asked.user else sender.client

    def _arrive(
        self, exchange: Exchange, sender: Sender, asked: Asked, prompt: Prompt, large: LargeBody | None = None
    ) -> None:
        client = self._client(sender, asked)
        fields = sender.fields if client is sender.client else sender.passed + client.fields
        rid = self._numbers = self._numbers + 1
        now = monotonic_ns() // 1000
        streamed = asked.stream is True
        most = asked.most
        request = Request(
            rid,
            client.name,
            prompt.prompt_tokens,
            prompt.keys,
            prompt.block_tokens,
            most.limit,
            sender.session,
            now,
            streamed,
            most.sequences,
            asked.reads_cache,
        )
        hide = hides_usage(asked, self.config.ask_usage)
        continuous = hide and wants_continuous_usage(asked)
        body: Body | LargeBody | bytes
        if large is None:
            body = exchange.take_body()
            if hide:
                counted = isinstance(body, Body)
                new = with_usage(body.whole() if isinstance(body, Body) else body, asked)
                body = Body(self.server.bodies, new) if counted else new
        else:
            body = large
        tap = Tap(hide) if streamed else None
        xargs = None
        if self.config.engine_ordering and isinstance(asked, ChatAsked | CompletionAsked):
            xargs = bool(asked.vllm_xargs)
        figures = self.metrics.client(client.name)
        flow = Flow(
            self.scheduler,
            exchange,
            client,
            figures,
            request,
            asked.model,
            prompt,
            fields,
            body,
            tap,
            xargs,
            most,
            continuous,
        )
        exchange.listener = flow
        self.scheduler.arrive(flow)

    # --- the other endpoints -------------------------------------------------------------------

    def _bad_request(self, error: BadRequest) -> Response:
        self.metrics.refuse(error.code or "bad_request")
        return error_response(error.status, error.message, error.code, error.param)

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
