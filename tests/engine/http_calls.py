"""A plain HTTP client for tests: one request a connection, over a real socket."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import uvloop

from fairlead.engine.server import EngineConfig, EngineServer


class Got(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON of each server-sent event but the last, which must be the end mark."""
        frames = self.body.decode().split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


async def open_call(port: int, method: str, path: str, body: object = None, headers: str = ""):
    """Send a request; return the connection's reader and writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{headers}"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return reader, writer


async def call(port: int, method: str, path: str, body: object = None, headers: str = "") -> Got:
    """Send a request and read the whole answer."""
    reader, writer = await open_call(port, method, path, body, headers)
    raw = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()
    head, _, rest = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if fields.get("transfer-encoding") == "chunked":
        rest = dechunk(rest)
    return Got(int(status.split()[1]), fields, rest)


def dechunk(data: bytes) -> bytes:
    """Undo chunked transfer coding; the last chunk must be there."""
    parts = []
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert data == b"\r\n"
            return b"".join(parts)
        parts.append(data[:length])
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]


def serve(test: Callable[[EngineServer], Awaitable[None]], **config: Any) -> None:
    """Run ``test`` against a started server, by default much faster than real hardware."""

    async def body() -> None:
        server = EngineServer(EngineConfig(**({"speed": 1000.0, "model_name": "m"} | config)))
        await server.start()
        try:
            await test(server)
        finally:
            await server.stop()
        server.engine.check()

    uvloop.run(body())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for ``condition``, which must come true soon."""
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")
