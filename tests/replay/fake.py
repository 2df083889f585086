"""A server that answers as a test says, and remembers what it was asked."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import uvloop


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: Any


MODELS = {"object": "list", "data": [{"id": "m", "max_model_len": 4096}]}


def answer(status: int, body: Any, kind: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def events(*parts: Any) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (part if isinstance(part, bytes) else json.dumps(part).encode()) for part in parts
    )


def usage(prompt: int, output: int, cached: int | None = None) -> dict[str, Any]:
    counted: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output}
    if cached is not None:
        counted["prompt_tokens_details"] = {"cached_tokens": cached}
    return counted


def good(asked: Asked, cached: int = 0) -> bytes:
    """Answer a completion as a fast engine would."""
    prompt, output = asked.body["prompt"], asked.body["max_tokens"]
    size = len(prompt) if isinstance(prompt, list) else len(prompt.split())
    counted = usage(size, output, cached)
    if not asked.body.get("stream"):
        return answer(200, {"choices": [{"text": "x"}], "usage": counted})
    chunks = [{"choices": [{"text": "x"}]} for _ in range(output)]
    return answer(
        200, events(*chunks, {"choices": [], "usage": counted}, b"[DONE]"), kind="text/event-stream"
    )


class Fake:
    """Returns bytes for a request; ``None`` closes the connection, an awaitable may take its time."""

    def __init__(self, completion: Callable[[Asked], Any] = good, models: Any = MODELS) -> None:
        self.completion = completion
        self.models = models
        self.asked: list[Asked] = []
        """Streamed completions only: what the replay itself sends."""
        self.url = ""
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (found := await self._one(reader)) is not None:
                writer.write(found)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader) -> bytes | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(method, path, headers, json.loads(body) if body else None)
        if path == "/v1/models":
            return self.models if isinstance(self.models, bytes) else answer(200, self.models)
        if asked.body.get("stream"):
            self.asked.append(asked)
        found = self.completion(asked)
        return await found if isinstance(found, Awaitable) else found


def with_fake(fake: Fake, test: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await fake.start()
        try:
            await test()
        finally:
            await fake.stop()

    uvloop.run(body())
