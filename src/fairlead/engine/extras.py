"""The endpoints of the engine's server that need no step of the engine: models, tokens, metrics, health."""

import base64
import math
import struct
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import xxhash

from fairlead import __version__
from fairlead.engine import tokens as tokenizer
from fairlead.engine.wire import (
    BadRequestError,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
    parse_json,
    read_ids,
    read_inputs,
    read_messages,
)
from fairlead.http.messages import Response, json_response
from fairlead.http.server import Exchange

if TYPE_CHECKING:
    from fairlead.engine.server import EngineServer

Route = tuple[str, str, Callable[[Exchange], Response]]


class Extras:
    """Handlers around one ``EngineServer``."""

    def __init__(self, server: "EngineServer") -> None:
        self._server = server

    def routes(self) -> list[Route]:
        """Return (method, path, handler) of each endpoint."""
        return [
            ("POST", "/v1/embeddings", self._embeddings),
            ("GET", "/v1/models", self._models),
            ("GET", "/health", self._health),
            ("GET", "/ping", self._health),
            ("GET", "/version", self._version),
            ("GET", "/load", self._load),
            ("GET", "/metrics", self._metrics),
            ("GET", "/kv_event_sources", self._kv_event_sources),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/detokenize", self._detokenize),
            ("POST", "/reset_prefix_cache", self._reset_prefix_cache),
        ]

    def _embeddings(self, exchange: Exchange) -> Response:
        """Unit vectors that depend on the input alone. They take no time of the engine."""
        body = parse_json(exchange.body, EmbeddingBody)
        self._server.check_model(body.model)
        inputs = read_inputs(body.input, "input")
        data = []
        for index, tokens in enumerate(inputs):
            vector = _unit_vector(xxhash.xxh3_64_intdigest(tokens.tobytes()), body.dimensions)
            value: object = vector
            if body.encoding_format == "base64":
                value = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": value})
        count = sum(map(len, inputs))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json_response(
            {"object": "list", "model": self._server.model_name, "data": data, "usage": usage}
        )

    def _models(self, _exchange: Exchange) -> Response:
        card = {
            "id": self._server.model_name,
            "object": "model",
            "created": 0,
            "owned_by": "fairlead-engine",
            "root": self._server.engine.profile.model,
            "parent": None,
            "max_model_len": self._server.engine.max_model_len,
        }
        return json_response({"object": "list", "data": [card]})

    def _health(self, _exchange: Exchange) -> Response:
        return Response(200, b"")

    def _version(self, _exchange: Exchange) -> Response:
        what = "a model of an LLM engine: its timing and cache are imitated, its text is filler"
        return json_response(
            {
                "version": __version__,
                "engine": "fairlead-engine",
                "note": what,
                "profile": self._server.config.profile,
            }
        )

    def _load(self, _exchange: Exchange) -> Response:
        load = self._server.engine.load
        return json_response({"server_load": load.running + load.waiting})

    def _metrics(self, _exchange: Exchange) -> Response:
        return Response(200, self._server.metrics.render(), b"text/plain; version=1.0.0; charset=utf-8")

    def _kv_event_sources(self, _exchange: Exchange) -> Response:
        events = self._server.events
        if events is None:
            return json_response({})
        source = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": events.endpoint,
            "replay_endpoint": events.replay_endpoint,
            "topic": events.topic,
        }
        return json_response({"0": source})

    def _tokenize(self, exchange: Exchange) -> Response:
        body = parse_json(exchange.body, TokenizeBody)
        self._server.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequestError("give either prompt or messages", "prompt")
        if body.messages is not None:
            tokens = tokenizer.render_chat(read_messages(body.messages))
        else:
            tokens = tokenizer.encode(body.prompt or "")
        texts = None
        if body.return_token_strs:
            texts = [tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
        return json_response(
            {
                "count": len(tokens),
                "max_model_len": self._server.engine.max_model_len,
                "tokens": list(tokens),
                "token_strs": texts,
            }
        )

    def _detokenize(self, exchange: Exchange) -> Response:
        body = parse_json(exchange.body, DetokenizeBody)
        self._server.check_model(body.model)
        return json_response({"prompt": tokenizer.decode(read_ids(body.tokens, "tokens"))})

    def _reset_prefix_cache(self, _exchange: Exchange) -> Response:
        evicted = self._server.engine.reset_cache()
        if self._server.events is not None and evicted:
            if self._server.engine.pool.cached:
                self._server.events.removed(evicted)
            else:
                self._server.events.cleared()
            self._server.events.publish()
        return Response(200, b"")


def _unit_vector(seed: int, dimensions: int) -> list[float]:
    random = Random(seed)
    vector = [random.gauss(0, 1) for _ in range(dimensions)]
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]
