"""Mock workers: small real servers that answer like an engine, or misbehave on purpose."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from fairlead.config import resolve
from fairlead.gateway.app import Gateway
from fairlead.http.client import Pool

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 4},
}


class Ask:
    """One request as a mock worker received it."""

    def __init__(self, line: bytes, head: bytes, body: bytes) -> None:
        self.line = line.decode()
        self.headers = {
            name.lower().decode(): value.decode()
            for name, value in re.findall(rb"\r\n([^:\r\n]+): ?([^\r\n]*)", b"\r\n" + head)
        }
        self.raw = body
        self.body: Any = json.loads(body) if body else None


Behaviour = Callable[[Ask, asyncio.StreamWriter], Awaitable[None]]


class MockWorker:
    """A scripted engine. ``behave`` answers every POST; GETs are answered like vLLM's."""

    def __init__(self, behave: Behaviour | None = None, models: tuple[str, ...] = ("tiny",)) -> None:
        self.behave = behave or answer()
        self.models = models
        self.healthy = True
        self.waiting = 0
        self.running = 0
        self.asked: list[Ask] = []
        self.gone = asyncio.Event()
        """Set when a client closed its connection."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection, as a killed process does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while True:
                line = await reader.readuntil(b"\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                ask = Ask(line, head, body)
                if ask.line.startswith("POST"):
                    self.asked.append(ask)
                    work = asyncio.ensure_future(self.behave(ask, writer))
                    watch = asyncio.ensure_future(_closed(reader))
                    await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        self.gone.set()
                    watch.cancel()
                    work.cancel()
                    await asyncio.gather(work, watch, return_exceptions=True)
                    if writer.is_closing():
                        return
                else:
                    writer.write(self._get(ask))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the other side left, or the test is over
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    def _get(self, ask: Ask) -> bytes:
        path = ask.line.split()[1]
        if path == "/health":
            return plain(b"", 200 if self.healthy else 503)
        if path == "/v1/models":
            return plain(json.dumps({"object": "list", "data": [{"id": m} for m in self.models]}).encode())
        if path == "/metrics":
            text = (
                f'vllm:num_requests_running{{model_name="tiny"}} {self.running}.0\n'
                f'vllm:num_requests_waiting{{model_name="tiny"}} {self.waiting}.0\n'
                'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0\n'
            )
            return plain(text.encode(), kind=b"text/plain")
        return plain(b"{}", 404)


async def _closed(reader: asyncio.StreamReader) -> None:
    """Return when the other side closed; nothing is pipelined here, so no bytes are lost."""
    await reader.read(1)


def plain(body: bytes, status: int = 200, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        kind,
        len(body),
        body,
    )


EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def token(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
USAGE_EVENT = event({"choices": [], "usage": USAGE})
DONE = event(b"[DONE]")


def answer(text: str = "hi", delay: float = 0.0, status: int = 200) -> Behaviour:
    """Answer whole, or as a stream when asked to, with usage when asked for."""

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay)
        if status != 200:
            writer.write(plain(json.dumps({"error": {"message": f"mock {status}"}}).encode(), status))
        elif ask.body.get("stream"):
            writer.write(EVENT_STREAM + chunk(ROLE))
            for piece in text.split():
                writer.write(chunk(token(piece)))
                await asyncio.sleep(0)
            if (ask.body.get("stream_options") or {}).get("include_usage"):
                writer.write(chunk(USAGE_EVENT))
            writer.write(chunk(DONE) + b"0\r\n\r\n")
        else:
            body = {"choices": [{"message": {"content": text}}], "usage": USAGE}
            writer.write(plain(json.dumps(body).encode()))

    return behave


def raw(*parts: bytes, close: bool = False, then: float = 0.0) -> Behaviour:
    """Send these bytes, each in a packet of its own, and perhaps close."""

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.003)
        await asyncio.sleep(then)
        if close:
            writer.close()

    return behave


def closes_kept_connections() -> Behaviour:
    """Answer the first request of each connection, and close it as the next one arrives."""
    seen: list[int] = []

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        number = writer.get_extra_info("peername")[1]
        if number in seen:
            writer.close()
            return
        seen.append(number)
        await answer()(ask, writer)

    return behave


def chat(model: str = "tiny", content: str = "hello", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **fields}).encode()


JSON = [(b"content-type", b"application/json")]


class Served:
    """A gateway under test and a client for it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.pool = Pool(f"http://127.0.0.1:{gateway.port}")

    async def post(
        self,
        body: bytes,
        path: bytes = b"/v1/chat/completions",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        status, fields, got = await self.pool.fetch(
            b"POST", path, [*JSON, *(headers or [])], body, timeout=10
        )
        return status, dict(fields), got

    async def get(self, path: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[int, bytes]:
        status, _, got = await self.pool.fetch(b"GET", path, headers or [], timeout=10)
        return status, got

    async def settled(self) -> None:
        """Wait until nothing is under way, then check every invariant of the books."""
        for _ in range(400):
            if not self.gateway.flows:
                break
            await asyncio.sleep(0.005)
        assert not self.gateway.flows
        self.gateway.dispatcher.check()
        assert sum(self.gateway.dispatcher.fleet.running) == 0


@contextlib.asynccontextmanager
async def serving(*workers: MockWorker, file: dict[str, Any] | None = None, **options: Any):
    """Serve with ``options`` as configuration in front of ``workers``."""
    for worker in workers:
        await worker.start()
    table = {
        "port": 0,
        "worker_urls": [w.url for w in workers],
        "policy": "round_robin",
        "worker_max_num_seqs": 256,
        "health_interval_secs": 0.05,
        "load_interval_secs": 0.05,
        **options,
        **(file or {}),
    }
    gateway = Gateway(resolve(table))
    await gateway.start()
    served = Served(gateway)
    try:
        yield served
        await served.settled()
    finally:
        await served.pool.close()
        await gateway.close()
        for worker in workers:
            await worker.stop()


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run on a fresh uvloop loop; what hangs fails after 20 seconds."""

    async def bounded() -> None:
        await asyncio.wait_for(main(), 20)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
