"""Closed loops: clients that keep a number of streams open on a gateway or an engine, and what they saw."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import msgspec

from fairlead.http.client import Call, ClientTimeouts, Pool, UpstreamError
from fairlead.http.messages import Headers


class Size(NamedTuple):
    """How large requests are. The output is drawn evenly from a range, both ends included."""

    prompt_words: int = 400
    least_output: int = 100
    most_output: int = 100


class Loop(NamedTuple):
    """One client: so many requests open, a pause after each."""

    name: str
    open: int
    think_s: float = 0.0
    """Mean of the exponential pause between an answer and the next request; 0 for none."""


@dataclass(slots=True)
class Seen:
    """What one client saw since ``Clients.begin_window``. Times in seconds."""

    ttft_s: list[float] = field(default_factory=list)
    """Of requests sent in the window. One without a token at its end counts the time that it has waited."""
    held_s: list[float] = field(default_factory=list)
    """First token to last, of the same."""
    ended: int = 0
    failed: int = 0
    last_error: str = ""


class _Stream:
    """One request: a sink of the HTTP client."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.sent = loop.time()
        self.first: float | None = None
        self.status = 0
        self.tail = b""
        self.done: asyncio.Future[str] = loop.create_future()
        """What went wrong, or nothing."""
        self.call: Call | None = None

    def head(self, status: int, _headers: Headers) -> None:
        """Note the status."""
        self.status = status

    def data(self, body: bytes) -> None:
        """Note the first token, and keep the end."""
        if self.first is None and b'"content":"' in body and self.status == 200:
            self.first = self._loop.time()
        self.tail = (self.tail + body)[-300:]

    def end(self) -> None:
        """The answer is complete."""
        good = self.status == 200 and self.first is not None and b"data: [DONE]" in self.tail
        self._settle("" if good else f"status {self.status}: {self.tail.decode(errors='replace')}")

    def error(self, error: UpstreamError) -> None:
        """There will be no answer."""
        self._settle(str(error))

    def _settle(self, trouble: str) -> None:
        if not self.done.done():
            self.done.set_result(trouble)


class Clients:
    """All clients of one run. An async context: they send while it is open."""

    def __init__(
        self,
        url: str,
        model: str,
        loops: list[Loop],
        keys: dict[str, str] | None = None,
        seed: int = 1,
        size: Size = Size(),  # noqa: B008 - it does not change
    ) -> None:
        """``keys``: API keys by client. Without them each request names its client in ``vllm_xargs``."""
        self._pool = Pool(url, ClientTimeouts(first_byte=600))
        self._model = model
        self._loops = loops
        self._keys = keys
        self._seed = seed
        self._size = size
        self._clock = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._open: dict[str, set[_Stream]] = {loop.name: set() for loop in loops}
        self._since = 0.0
        self.seen = {loop.name: Seen() for loop in loops}

    async def __aenter__(self) -> Self:
        """Begin to send."""
        lanes = [(loop, lane) for loop in self._loops for lane in range(loop.open)]
        self._tasks = [asyncio.create_task(self._lane(loop, lane)) for loop, lane in lanes]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up on what is open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()

    def begin_window(self) -> None:
        """Count only what is sent from now on."""
        self._since = self._clock.time()
        self.seen = {loop.name: Seen() for loop in self._loops}

    def end_window(self) -> dict[str, Seen]:
        """Return what was seen; requests that still wait for a token count with their wait so far."""
        now = self._clock.time()
        for name, streams in self._open.items():
            waits = [now - s.sent for s in streams if s.first is None and s.sent >= self._since]
            self.seen[name].ttft_s += waits
        return self.seen

    async def _lane(self, loop: Loop, lane: int) -> None:
        """Send one request after the other, each with a prompt that shares nothing."""
        rng = random.Random(f"{self._seed} {loop.name} {lane}")
        number = 0
        while True:
            if loop.think_s:
                await asyncio.sleep(rng.expovariate(1 / loop.think_s))
            number += 1
            output = rng.randint(self._size.least_output, self._size.most_output)
            await self._ask(loop.name, f"{loop.name} {lane} {number} ", output)

    async def _ask(self, name: str, start: str, output: int) -> None:
        text = start + "word " * self._size.prompt_words
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": output,
            "ignore_eos": True,
            "stream": True,
        }
        headers = [(b"content-type", b"application/json")]
        if self._keys is None:
            body["vllm_xargs"] = {"client_id": name}
        else:
            headers.append((b"authorization", b"Bearer " + self._keys[name].encode()))
        request = self._pool.request_bytes(
            b"POST", b"/v1/chat/completions", headers, msgspec.json.encode(body)
        )
        stream = _Stream(self._clock)
        self._open[name].add(stream)
        stream.call = self._pool.send(request, stream)
        try:
            trouble = await stream.done
        except asyncio.CancelledError:
            stream.call.cancel()
            raise
        finally:
            self._open[name].discard(stream)
        self._note(name, stream, trouble)
        if trouble:
            await asyncio.sleep(0.5)  # a gateway that refuses is not asked as fast as it answers

    def _note(self, name: str, stream: _Stream, trouble: str) -> None:
        seen = self.seen[name]
        if trouble:
            seen.failed += 1
            seen.last_error = trouble
        elif stream.sent >= self._since and stream.first is not None:
            seen.ended += 1
            seen.ttft_s.append(stream.first - stream.sent)
            seen.held_s.append(self._clock.time() - stream.first)
