"""The engine model as an OpenAI-compatible server, paced by the wall clock."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from fairlead.core.keys import seed_key, token_keys
from fairlead.core.model import Request, RequestId
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.core.registry import parse_spec
from fairlead.engine import tokens as tokenizer
from fairlead.engine.answers import SERVER, Reply, Stream
from fairlead.engine.extras import Extras
from fairlead.engine.kv_events import KVEventPublisher
from fairlead.engine.metrics import EngineMetrics
from fairlead.engine.model import Engine
from fairlead.engine.pace import Pacer
from fairlead.engine.profiles import DEFAULT_PROFILE, Profile, load_profile
from fairlead.engine.step import StepResult
from fairlead.engine.text import Answer, compose
from fairlead.engine.wire import (
    BadRequestError,
    Generation,
    parse_chat,
    parse_completion,
)
from fairlead.http.messages import Response, error_response
from fairlead.http.server import Exchange, HttpLimits, Router, Server

CLIENT_HEADERS = (b"x-fairlead-client", b"x-smg-routing-key")
"""Who a request is for, when the body's ``vllm_xargs.client_id`` does not say."""
DEFAULT_CLIENT = "default"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything an ``EngineServer`` can be told. None takes the profile's value."""

    profile: str = DEFAULT_PROFILE
    speed: float = 1.0
    """How much faster than the modelled hardware."""
    order: str = "fcfs"
    """Ordering policy of the waiting queue, as ``name`` or ``name:key=value,...``."""
    model_name: str | None = None
    """Name that clients use; the profile's model when None."""
    block_size: int = 16
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    async_scheduling: bool = True
    """Schedule a step while the one before it runs, as vLLM does by default on GPUs."""
    seed: int = 0
    """Changes texts and lengths of all answers."""
    kv_events: str | None = None
    """ZMQ endpoint to publish KV-cache events on, such as ``tcp://127.0.0.1:5557``."""
    kv_replay: str | None = None
    kv_topic: str = ""
    legacy_events: bool = False


def build_engine(config: EngineConfig, profile: Profile) -> Engine:
    """Return the engine that ``config`` describes; ValueError for what contradicts itself."""
    name, given = parse_spec(config.order)
    return Engine(
        profile,
        make_ordering(name, given, OrderingContext()),
        block_tokens=config.block_size,
        kv_blocks=config.kv_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        async_scheduling=config.async_scheduling,
    )


class EngineServer:
    """One engine behind HTTP. Start and stop it on an event loop; all of it runs on that thread.

    Raises ValueError (``PolicyError`` for the ordering) when the configuration contradicts itself.
    """

    def __init__(self, config: EngineConfig | None = None, limits: HttpLimits | None = None) -> None:
        self.config = config or EngineConfig()
        if self.config.kv_replay is not None and self.config.kv_events is None:
            raise ValueError("kv_replay needs kv_events: there is nothing to replay")
        profile = load_profile(self.config.profile)
        self.model_name = self.config.model_name or profile.model
        self.engine = build_engine(self.config, profile)
        self.pacer = Pacer(self.engine, self.config.speed, self._began, self._ended)
        self.metrics = EngineMetrics(self.engine, self.pacer, self.model_name)
        self.host = ""
        self.port = 0
        self.events: KVEventPublisher | None = None
        if self.config.kv_events is not None:
            self.events = KVEventPublisher(
                self.config.kv_events,
                self.config.kv_replay,
                topic=self.config.kv_topic,
                legacy=self.config.legacy_events,
                clock=time.time,
            )
        self._replies: dict[RequestId, Reply] = {}
        self._streams: dict[RequestId, Stream] = {}
        self._numbers = itertools.count(1)
        self._seed = seed_key(self.model_name)
        """Of block keys, for requests without a cache salt."""
        self._router = self._routes()
        self._http = Server(self._handle, limits)

    # Life

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; return the port. Raises OSError when an address cannot be bound."""
        if self.events is not None:
            self.events.start()
        try:
            self.port = await self._http.listen(host, port)
            self.host = host
        except OSError:
            if self.events is not None:
                await self.events.close()
            raise
        return self.port

    @property
    def url(self) -> str:
        """Where it listens; a wildcard address is shown as localhost."""
        host = "127.0.0.1" if self.host in {"", "0.0.0.0", "::"} else self.host  # noqa: S104 - compared only
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no new connections, let answers end for up to ``grace_s`` seconds, and close."""
        if grace_s:
            await self._http.drain(grace_s)
        self.pacer.stop()
        await self._http.close()
        if self.events is not None:
            await self.events.close()

    def abort(self, rid: RequestId) -> None:
        """Drop a request whose client is gone."""
        if self._replies.pop(rid, None) is not None:
            self._streams.pop(rid, None)
            self.engine.cancel(rid)
            self.metrics.ended["abort"] += 1

    # Steps

    def _began(self, result: StepResult) -> None:
        """Collect KV events while the tokens of every request of the step are still here."""
        for admission in result.admitted:
            if not admission.resumed:
                reply = self._replies[admission.rid]
                reply.cached_tokens = admission.cached_tokens
                self.metrics.prompt_tokens += reply.prompt_tokens
        events = self.events
        if events is None:
            return
        if result.evicted:
            events.removed(result.evicted)
        size = self.engine.block_tokens
        for stored in result.stored:
            tokens = self._replies[stored.rid].tokens
            end = stored.start + len(stored.keys)
            events.stored(stored.keys, stored.parent, tokens[stored.start * size : end * size], size)

    def _ended(self, result: StepResult) -> None:
        """Pass a step's tokens on."""
        now = asyncio.get_running_loop().time()
        if self.events is not None:
            self.events.publish()
        self.metrics.generation_tokens += len(result.tokens)
        for rid in result.first:
            reply = self._replies.get(rid)
            if reply is not None:
                reply.first_s = now
        streams = self._streams
        for rid in result.tokens:
            stream = streams.get(rid)
            if stream is not None:
                stream.token()
        for rid in result.finished:
            done = self._replies.pop(rid, None)
            if done is not None:
                streams.pop(rid, None)
                done.finish()
                answer = done.answer
                waited = done.first_s - done.arrived_s
                self.metrics.observe(answer.finish_reason, answer.tokens, waited, now - done.arrived_s)

    # Requests

    def _routes(self) -> Router:
        router = Router()
        for method, path, handler in (
            ("POST", "/v1/chat/completions", self._chat),
            ("POST", "/v1/completions", self._completion),
            *Extras(self).routes(),
        ):
            router.add(method, path, _guarded(handler))
        return router

    def _handle(self, exchange: Exchange) -> Response | None:
        response = self._router(exchange)
        if response is None:
            return None
        assert isinstance(response, Response), "no handler here is a coroutine"
        return response._replace(headers=(*response.headers, SERVER))

    def _chat(self, exchange: Exchange) -> None:
        self._generate(exchange, parse_chat(exchange.body))

    def _completion(self, exchange: Exchange) -> None:
        self._generate(exchange, parse_completion(exchange.body))

    def _generate(self, exchange: Exchange, asked: Generation) -> None:
        """Queue a request; it is answered as the engine's steps end."""
        self.check_model(asked.model)
        room = self._room(asked)
        prompt = len(asked.prompt)
        digest = xxhash.xxh3_64_intdigest(
            asked.prompt.tobytes(), asked.seed % 2**64 ^ self.config.seed % 2**64
        )
        answer = compose(digest, asked.wish._replace(max_tokens=room))
        tokens = self._all_tokens(asked, answer)
        size = self.engine.block_tokens
        seed = seed_key(self.model_name, salt=asked.salt) if asked.salt else self._seed
        keys = token_keys(tokens, size, seed, xxhash.xxh3_64_intdigest)
        rid = next(self._numbers)
        kind = Stream if asked.stream else Reply
        reply = kind(
            exchange,
            self.abort,
            rid,
            f"{self.port:04x}{rid:08x}",
            self.model_name,
            tokens,
            prompt,
            answer,
            chat=asked.chat,
            include_usage=asked.include_usage,
            created=int(time.time()),
            arrived_s=asyncio.get_running_loop().time(),
        )
        request = Request(
            rid,
            asked.client or self._client_of(exchange),
            prompt,
            keys[: prompt // size],
            size,
            asked.max_tokens,
            arrived_us=self.pacer.now_us,
        )
        self.engine.submit(request, answer.tokens, self.pacer.now_us, keys[prompt // size :])
        self._replies[rid] = reply
        if isinstance(reply, Stream):
            self._streams[rid] = reply
        exchange.listener = reply
        self.pacer.wake()

    def _room(self, asked: Generation) -> int:
        """Return the most output tokens that the context leaves; errors in vLLM's words."""
        longest, prompt = self.engine.max_model_len, len(asked.prompt)
        limit = f"This model's maximum context length is {longest} tokens. However, "
        if not prompt:
            raise BadRequestError("the prompt must not be empty", "prompt")
        if prompt >= longest:
            raise BadRequestError(
                f"{limit}your prompt contains {prompt} input tokens, which leaves no room for output."
                " Please reduce the length of the input prompt.",
                "messages" if asked.chat else "prompt",
                "context_length_exceeded",
            )
        if asked.max_tokens is not None and prompt + asked.max_tokens > longest:
            raise BadRequestError(
                f"{limit}you requested {asked.max_tokens} output tokens and your prompt contains {prompt}"
                " input tokens. Please reduce the length of the input prompt or of the output.",
                "max_tokens",
                "context_length_exceeded",
            )
        return longest - prompt if asked.max_tokens is None else asked.max_tokens

    def _all_tokens(self, asked: Generation, answer: Answer) -> tokenizer.Tokens:
        tokens = asked.prompt + tokenizer.encode(answer.text.decode())
        if answer.ends:
            tokens.append(tokenizer.END)
        return tokens

    def _client_of(self, exchange: Exchange) -> str:
        for name in CLIENT_HEADERS:
            value = exchange.header(name)
            if value:
                return value.decode("latin-1")
        return DEFAULT_CLIENT

    def check_model(self, name: str | None) -> None:
        """Raise ``BadRequestError`` (404) if ``name`` is given and not what is served."""
        if name is not None and name != self.model_name:
            raise BadRequestError(f"The model `{name}` does not exist.", "model", "model_not_found", 404)


def _guarded(
    handler: Callable[[Exchange], Response | None],
) -> Callable[[Exchange], Response | None]:
    """Turn a bad request into its error answer."""

    def guarded(exchange: Exchange) -> Response | None:
        try:
            return handler(exchange)
        except BadRequestError as error:
            return error_response(error.status, str(error), error.code, error.param)

    return guarded
