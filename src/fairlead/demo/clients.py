"""Sends the planned requests as real HTTP and measures what a client sees."""

import asyncio
from collections import deque

import msgspec

from fairlead.demo.figures import COSTS, Seen
from fairlead.demo.workload import CLIENTS, Planned
from fairlead.http.client import Call, ClientTimeouts, Pool, UpstreamError
from fairlead.http.messages import Headers

MODEL = "demo"


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: dict[str, int] | None = None


class _Chunk(msgspec.Struct):
    usage: _Usage | None = None


class _Stream:
    """One streamed completion: a sink of the HTTP client."""

    def __init__(self, traffic: "Traffic", planned: Planned) -> None:
        self.traffic = traffic
        self.planned = planned
        self.scheduled = traffic.started + planned.at
        self.first: float | None = None
        self.status = 0
        self.tail = b""
        self.call: Call | None = None

    def head(self, status: int, _headers: Headers) -> None:
        """Note the status."""
        self.status = status

    def data(self, body: bytes) -> None:
        """Note the first token, and keep the end of the stream for its usage."""
        if self.first is None and self.status == 200 and b'"text":"' in body:
            self.first = self.traffic.loop.time()
            seen = self.traffic.seen[self.planned.client.name]
            seen.ttft_ms.append((self.first - self.scheduled) * 1000)
        self.tail = (self.tail + body)[-2048:]

    def end(self) -> None:
        """Count the request as completed, or as failed if it was refused."""
        seen = self.traffic.seen[self.planned.client.name]
        usage = _usage(self.tail)
        if self.status == 200 and usage is not None:
            cached = (usage.prompt_tokens_details or {}).get("cached_tokens", 0)
            seen.completed += 1
            seen.prompt_tokens += usage.prompt_tokens
            seen.cached_tokens += cached
            seen.output_tokens += usage.completion_tokens
        else:
            seen.failed += 1
            seen.last_error = f"status {self.status}: {self.tail[:200].decode(errors='replace')}"
        self.traffic.ended(self)

    def error(self, error: UpstreamError) -> None:
        """Count the request as failed."""
        seen = self.traffic.seen[self.planned.client.name]
        seen.failed += 1
        seen.last_error = str(error)
        self.traffic.ended(self)


def _usage(tail: bytes) -> _Usage | None:
    for event in reversed(tail.split(b"\n\n")):
        if event.startswith(b"data: {") and b'"usage":{' in event:
            return msgspec.json.decode(event[6:], type=_Chunk).usage
    return None


class Traffic:
    """All clients of one phase, open loop up to each client's limit of open requests."""

    def __init__(self, url: str, plan: list[Planned], keys: dict[str, str]) -> None:
        self.loop = asyncio.get_running_loop()
        self.pool = Pool(url, ClientTimeouts(first_byte=120))
        self.plan = plan
        self.keys = keys
        self.seen = {client.name: Seen() for client in CLIENTS}
        self.open: dict[str, set[_Stream]] = {client.name: set() for client in CLIENTS}
        self.waiting: dict[str, deque[Planned]] = {client.name: deque() for client in CLIENTS}
        self.started = self.loop.time()

    async def run(self, seconds: float) -> float:
        """Send for ``seconds``, then cut off what is still open. Returns the seconds measured."""
        self.started = self.loop.time()
        for planned in self.plan:
            delay = self.started + planned.at - self.loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            seen = self.seen[planned.client.name]
            seen.sent += 1
            if len(self.open[planned.client.name]) < planned.client.outstanding:
                self._send(planned)
            else:
                self.waiting[planned.client.name].append(planned)
        await asyncio.sleep(max(0.0, self.started + seconds - self.loop.time()))
        elapsed = self.loop.time() - self.started
        self._cut_off()
        await self.pool.close()
        return elapsed

    def ended(self, stream: _Stream) -> None:
        """Send the client's next request, if one waits."""
        name = stream.planned.client.name
        self.open[name].discard(stream)
        if self.waiting[name]:
            self._send(self.waiting[name].popleft())

    def _send(self, planned: Planned) -> None:
        body = msgspec.json.encode(
            {
                "model": MODEL,
                "prompt": planned.prompt,
                "max_tokens": planned.max_tokens,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"authorization", b"Bearer " + self.keys[planned.client.name].encode()),
        ]
        request = self.pool.request_bytes(b"POST", b"/v1/completions", headers, body)
        stream = _Stream(self, planned)
        self.open[planned.client.name].add(stream)
        stream.call = self.pool.send(request, stream)

    def _cut_off(self) -> None:
        """Close what is open; a request without a token counts the time that it has waited."""
        now = self.loop.time()
        for client in CLIENTS:
            name, seen = client.name, self.seen[client.name]
            for stream in self.open[name]:
                if stream.first is None:
                    seen.ttft_ms.append((now - stream.scheduled) * 1000)
                if stream.call is not None:
                    stream.call.cancel()
            late = [now - self.started - planned.at for planned in self.waiting[name]]
            seen.ttft_ms.extend(1000 * wait for wait in late)
            missed = len(self.open[name]) + len(self.waiting[name])
            self.open[name].clear()
            self.waiting[name].clear()
            prompts = client.shared_tokens + client.own_tokens
            share = seen.cached_tokens / seen.prompt_tokens if seen.prompt_tokens else 0.0
            each = prompts * (1 - share) * COSTS.extend + client.output_tokens * COSTS.output
            seen.demanded = seen.service + round(missed * each)
