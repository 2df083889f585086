"""Sends the planned requests as real HTTP and measures what a client sees."""

import asyncio
from collections import deque

import msgspec

from fairlead.demo.figures import COSTS, Seen
from fairlead.demo.workload import CLIENTS, Client, Planned, turns
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
        self.ended: asyncio.Future[None] = traffic.loop.create_future()

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
            seen.held_s += self.traffic.loop.time() - (self.first or self.scheduled)
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
    """All clients of one phase: open loops up to each one's limit of open requests, and closed loops."""

    def __init__(self, url: str, plan: list[Planned], keys: dict[str, str], seed: int = 1) -> None:
        self.loop = asyncio.get_running_loop()
        self.pool = Pool(url, ClientTimeouts(first_byte=120))
        self.plan = plan
        self.keys = keys
        self.seed = seed
        self.seen = {client.name: Seen() for client in CLIENTS}
        self.open: dict[str, set[_Stream]] = {client.name: set() for client in CLIENTS}
        self.waiting: dict[str, deque[Planned]] = {client.name: deque() for client in CLIENTS}
        self.started = self.loop.time()

    async def run(self, seconds: float) -> float:
        """Send for ``seconds``, then cut off what is still open. Returns the seconds measured."""
        self.started = self.loop.time()
        tasks = [
            (client, task) for client in CLIENTS if not client.rate for task in range(client.outstanding)
        ]
        loops = [asyncio.create_task(self._loop(client, task)) for client, task in tasks]
        try:
            await self._by_the_clock(seconds)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        elapsed = self.loop.time() - self.started
        self._cut_off()
        await self.pool.close()
        return elapsed

    async def _by_the_clock(self, seconds: float) -> None:
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

    async def _loop(self, client: Client, task: int) -> None:
        """Send one request after the other, each when the last was answered and a pause is over."""
        seen = self.seen[client.name]
        for turn in turns(client, task, self.seed):
            await asyncio.sleep(turn.pause_s)
            seen.sent += 1
            now = self.loop.time() - self.started
            await self._send(Planned(now, client, turn.prompt, turn.max_tokens)).ended

    def ended(self, stream: _Stream) -> None:
        """Send the client's next request, if one waits."""
        name = stream.planned.client.name
        self.open[name].discard(stream)
        if not stream.ended.done():
            stream.ended.set_result(None)
        if self.waiting[name]:
            self._send(self.waiting[name].popleft())

    def _send(self, planned: Planned) -> _Stream:
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
        return stream

    def demands(self) -> dict[str, float]:
        """Return the service that each client wanted until now, at the hit rate that it got.

        By the clock: what was sent, or waits to be. A closed loop: what its tasks would have used with the
        shortest TTFT that they saw; pauses, and the time from first token to last, as they were.
        """
        found = {}
        for client in CLIENTS:
            name, seen = client.name, self.seen[client.name]
            each = _each(client, seen)
            if client.rate:
                found[name] = seen.service + each * (len(self.open[name]) + len(self.waiting[name]))
            else:
                elapsed = self.loop.time() - self.started
                cycle = client.think_s + min(seen.ttft_ms, default=0.0) / 1000
                cycle += seen.held_s / seen.completed if seen.completed else 0.0
                found[name] = max(float(seen.service), each * client.outstanding * elapsed / cycle)
        return found

    def _cut_off(self) -> None:
        """Close what is open; a request without a token counts the time that it has waited."""
        now = self.loop.time()
        for name, demanded in self.demands().items():
            self.seen[name].demanded = round(demanded)
        for client in CLIENTS:
            name, seen = client.name, self.seen[client.name]
            for stream in self.open[name]:
                if stream.first is None:
                    seen.ttft_ms.append((now - stream.scheduled) * 1000)
                if stream.call is not None:
                    stream.call.cancel()
            late = [now - self.started - planned.at for planned in self.waiting[name]]
            seen.ttft_ms.extend(1000 * wait for wait in late)
            self.open[name].clear()
            self.waiting[name].clear()


def _each(client: Client, seen: Seen) -> float:
    """Return the service of one of a client's requests, by what ended, else by what is planned."""
    if seen.completed:
        return seen.service / seen.completed
    prompt = client.shared_tokens + client.own_tokens
    return prompt * COSTS.extend + client.output_tokens * COSTS.output
