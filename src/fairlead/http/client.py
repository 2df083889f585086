"""An HTTP/1.1 client for one upstream: pooled connections, bodies handed on as they come.

``Pool.send`` writes a request and returns a ``Call``; a ``Sink`` hears the head, the parts of the
body, and the end. Nothing is buffered but what the sink holds back with ``Call.pause``.

A kept-alive connection may be closed by the upstream at the very moment a request is written to
it. If it ends before a byte of an answer, and it had been used before, the request goes out once
more on a new connection; in every other case the sink decides.
"""

import asyncio
import ssl
from collections.abc import Iterable, Sequence

from fairlead.http.address import parse_address
from fairlead.http.client_connection import Buffer, ClientConnection, ClientTimeouts, Sink, UpstreamError
from fairlead.http.messages import Headers

__all__ = ["Buffer", "Call", "ClientTimeouts", "Pool", "Sink", "UpstreamError"]


class Call:
    """One request under way."""

    __slots__ = ("connection", "request", "rest", "sink", "task")

    def __init__(self, request: bytes, sink: Sink, rest: Sequence[Buffer]) -> None:
        self.request = request
        self.rest = rest
        """Pieces of the request's body that come after ``request``."""
        self.sink = sink
        self.connection: ClientConnection | None = None
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Close the connection at once, which is how HTTP/1.1 tells the upstream to stop."""
        connection, self.connection = self.connection, None
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
        if connection is not None:
            connection.drop()

    def pause(self) -> None:
        """Read no more for now."""
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self.connection is not None:
            self.connection.resume()


class Pool:
    """Connections to one upstream, ``http://host:port`` or ``https://...``. Latest used, first reused."""

    def __init__(
        self, url: str, timeouts: ClientTimeouts | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        address = parse_address(url)
        self.url = url
        self.timeouts = timeouts or ClientTimeouts()
        self.host = address.host
        self.port = address.port
        self.authority = address.authority
        self.prefix = address.prefix
        self._tls = (tls or ssl.create_default_context()) if address.tls else None
        self._idle: list[ClientConnection] = []
        self._open_connections: set[ClientConnection] = set()
        """All of them, idle ones too: a set of busy ones would cost two changes a request."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self.stale_retries = 0
        """Requests sent again because a kept connection turned out to be closed."""

    def __repr__(self) -> str:
        return (
            f"<Pool {self.url} busy={len(self._open_connections) - len(self._idle)} idle={len(self._idle)}>"
        )

    def request_bytes(
        self, method: bytes, path: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> bytes:
        """Return a request ready for ``send``: adds Host and, to a body, Content-Length.

        The caller leaves out hop-by-hop fields and vouches for the fields' syntax.
        """
        fields = b"".join([b"%b: %b\r\n" % field for field in headers])
        length = b"content-length: %d\r\n" % len(body) if body or method == b"POST" else b""
        return b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n%b" % (
            method,
            self.prefix,
            path,
            self.authority,
            fields,
            length,
            body,
        )

    def send(self, request: bytes, sink: Sink, rest: Sequence[Buffer] = ()) -> Call:
        """Send ``request`` on a kept connection, or on a new one; never calls ``sink`` before returning.

        ``rest`` are pieces of a large body, which are sent one after the other as the worker takes them.
        """
        call = Call(request, sink, rest)
        while self._idle:
            if self._idle.pop().start(call, sink, request):
                return call
        self._open(call)
        return call

    async def fetch(
        self,
        method: bytes,
        path: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        timeout: float = 5.0,  # noqa: ASYNC109 - the whole exchange, reported as an UpstreamError
        most: int = 64 * 2**20,
    ) -> tuple[int, Headers, bytes]:
        """Return status, headers and body (at most ``most`` bytes) of one exchange. Raises UpstreamError."""
        sink = _Collect(asyncio.get_running_loop().create_future(), most)
        call = self.send(self.request_bytes(method, path, headers, body), sink)
        try:
            async with asyncio.timeout(timeout):
                return await sink.result
        except TimeoutError:
            raise UpstreamError(
                "timeout", f"no complete answer within {timeout:g} s", bool(sink.status)
            ) from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close every connection; calls under way get no further word."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._open_connections):
            connection.drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def adopt(self, connection: ClientConnection) -> None:
        """Take over a connection that somebody else opened."""
        if self._sweeper is None:
            self._sweep()
        self._open_connections.add(connection)
        self._idle.append(connection)

    # --- inside --------------------------------------------------------------------------------

    def _open(self, call: Call) -> None:
        if self._sweeper is None:
            self._sweep()
        task = asyncio.get_running_loop().create_task(self._connect(call))
        call.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, call: Call) -> None:
        connection = ClientConnection(self)
        try:
            async with asyncio.timeout(self.timeouts.connect):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, self.host, self.port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            call.task = None
            reason = str(error) or "timed out"
            call.sink.error(
                UpstreamError("connect", f"cannot connect to {self.host}:{self.port}: {reason}", False)
            )
            return
        except asyncio.CancelledError:
            connection.drop()  # it may have come up in the very round of the cancellation
            raise
        call.task = None
        self._open_connections.add(connection)
        if not connection.start(call, call.sink, call.request):
            connection.drop()
            call.sink.error(UpstreamError("closed", "the worker closed the new connection at once", False))

    def ended(self, connection: ClientConnection, reusable: bool) -> None:
        """The exchange on ``connection`` is over."""
        if reusable and self._sweeper is not None:
            self._idle.append(connection)
        else:
            connection.drop()

    def lost(self, connection: ClientConnection) -> None:
        """Forget a connection that is gone."""
        self._open_connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def again(self, call: Call) -> None:
        """Send a request that met a stale connection on a new one."""
        self.stale_retries += 1
        call.connection = None
        self._open(call)

    def _sweep(self) -> None:
        """Time out what is quiet for too long. One timer for all: cheaper than one a request."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._open_connections):
            if connection.busy:
                connection.check(now, self.timeouts)
            elif not connection.usable() or connection.idle_for(now) > self.timeouts.idle:
                connection.drop()
        shortest = min(self.timeouts.first_byte, self.timeouts.quiet, self.timeouts.idle, 4.0)
        self._sweeper = loop.call_later(max(0.01, shortest / 4), self._sweep)


class _Collect:
    """A sink that gathers a whole answer."""

    __slots__ = ("headers", "left", "parts", "result", "status")

    def __init__(self, result: "asyncio.Future[tuple[int, Headers, bytes]]", most: int) -> None:
        self.result = result
        self.left = most
        self.status = 0
        self.headers: Headers = []
        self.parts: list[bytes] = []

    def head(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers

    def data(self, body: bytes) -> None:
        self.left -= len(body)
        if self.left >= 0:
            self.parts.append(body)
        else:
            self.parts.clear()
            self.error(UpstreamError("protocol", "the answer is larger than is read", True))

    def end(self) -> None:
        if not self.result.done():
            self.result.set_result((self.status, self.headers, b"".join(self.parts)))

    def error(self, error: UpstreamError) -> None:
        if not self.result.done():
            self.result.set_exception(error)
