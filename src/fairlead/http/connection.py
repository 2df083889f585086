"""The server's side of one connection: bytes to exchanges, in order, within limits."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools

from fairlead.http.backlog import BEHIND, STALLED, Backlog
from fairlead.http.bodies import COUNTED_BYTES, Body
from fairlead.http.exchange import Exchange
from fairlead.http.heads import KnownHead, RequestHead, remember
from fairlead.http.messages import FULL_READ, Headers, Response, error_body

if TYPE_CHECKING:
    from fairlead.http.server import Server

HELD_BYTES = 262_144
"""Bytes kept for later while an answer is under way; beyond them the socket is not read."""
MOST_PARTS = 8192
"""Chunks of a body in one read: each costs a call, however small it is."""
UNSENT_BYTES = 131_072
"""Bytes that the kernel may hold unsent for a client: what a slow reader leaves waits where it is counted."""
LINGER_S = 2.0
"""How long a refused client may go on sending before it is cut off. Closing at once would reset the
connection and could destroy the error on its way to the client."""

_CHECKED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
"""Header fields that decide how a request is read."""

NEW, IDLE, HEAD, BODY = range(4)
"""What a deadline is for: the first byte ever, the next request, its headers, its body."""


def _nowhere(data: bytes) -> None:
    """Drop what is written to a connection that is gone."""


class _RefusedError(Exception):
    """A request that breaks a limit or a rule that llhttp does not check."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


def _no_room() -> "_RefusedError":
    return _RefusedError(503, "too many large request bodies are held here; try again later", "bodies_full")


class ServerConnection(asyncio.Protocol):
    """One client connection. Its states: reading a request, answering, lingering after a refusal."""

    __slots__ = (
        "_backlog",
        "_body",
        "_body_size",
        "_close_after",
        "_closing",
        "_exchange",
        "_expects",
        "_head_done",
        "_head_size",
        "_headers",
        "_held",
        "_held_size",
        "_http11",
        "_in_message",
        "_known",
        "_large",
        "_lingering",
        "_loop",
        "_method",
        "_parser",
        "_parts_in_read",
        "_phase",
        "_reading_paused",
        "_ready",
        "_refusal",
        "_replayed",
        "_running",
        "_target",
        "_transport",
        "_upgrade",
        "_waiters",
        "deadline",
        "paused",
        "peer",
        "server",
        "write",
    )

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.peer = ""
        self.deadline = 0.0
        """When ``timed_out`` is due, in the loop's seconds; 0 for never."""
        self.paused = False
        """Whether the transport takes no more: the client does not keep up."""
        self._backlog: Backlog | None = None
        """What waits for the transport; made when it first blocks."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[bytes], None] = _nowhere
        """Queues bytes for the client: the transport's own method, to spare a call for each chunk."""
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._known: KnownHead[RequestHead] | None = None
        self._ready: deque[Exchange] = deque()
        self._held: list[bytes] = []
        self._held_size = 0
        self._refusal: _RefusedError | None = None
        self._in_message = False
        self._head_done = False
        self._lingering = False
        self._reading_paused = False
        self._running = False
        self._close_after = False
        self._closing = False
        """Whether to close once the backlog is sent."""
        self._replayed = False
        self._waiters: list[asyncio.Future[None]] = []
        self._parts_in_read = 0
        self._phase = NEW
        self._reset()

    def _reset(self) -> None:
        self._method = b""
        self._target = b""
        self._headers: Headers = []
        self._head_size = 0
        self._head_done = False
        self._body: list[bytes] = []
        self._large: Body | None = None
        """The body once it is too large to go uncounted, in place of ``_body``."""
        self._body_size = 0
        self._http11 = True
        self._expects = False
        self._upgrade = False

    # --- the transport -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; the first request has ``header_timeout`` to come."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self.write = self._transport.write
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) else ""
        self.server.connections.add(self)
        self.deadline = self._loop.time() + self.server.limits.header_timeout

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell whoever is answering."""
        self._transport = None
        self.write = _nowhere
        self.deadline = 0.0
        self.server.forget(self)
        self._ready.clear()
        self._held.clear()
        self._body.clear()
        self._large = None
        if self._backlog is not None:
            self._backlog.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lose()
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Parse; or keep for later what comes while an answer is under way or waits for its reader."""
        if self._exchange is not None or self.paused or self._ready or self._refusal is not None:
            self._hold(data)
            return
        if self._lingering or self._closing:
            return
        if len(data) >= FULL_READ and not self._reading_paused and self._transport is not None:
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)
        known = self._known
        if known is None or self._in_message or not self._take_known(known, data):
            self._feed_new(data)
        if self._ready:
            self.deadline = 0.0
            self._phase = NEW
            self._next()
        else:
            self._settle()

    def _read_on(self) -> None:
        """Read on after everybody else had a turn."""
        transport = self._transport
        if not self._reading_paused and transport is not None and not transport.is_closing():
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Treat the end of the client's sending as its leaving: generation is too dear to guess.

        A client that only half-closed and did not see its answer begin is told why.
        """
        exchange = self._exchange
        if exchange is not None and exchange.begun:
            self.abort()
        elif exchange is not None:
            self._exchange = None
            exchange.lose()
            self._say(
                _RefusedError(400, "the connection was closed for sending before the answer; keep it open")
            )
        elif self._in_message and not self._lingering:
            self._say(_RefusedError(400, "the connection ended in the middle of the request"))
        elif self._backlog:
            self._close()  # once the backlog is sent
        return self._closing

    def pause_writing(self) -> None:
        """The transport is full: what follows waits in the backlog."""
        transport = self._transport
        assert transport is not None
        self.paused = True
        self.deadline = self._loop.time() + self.server.limits.write_timeout
        if self._backlog is None:
            self._backlog = Backlog(self, self.server.backlogs)
        self._backlog.block(transport.get_write_buffer_size())
        self.write = self._backlog.add

    def resume_writing(self) -> None:
        """The transport takes more: move the backlog on, and go on if that is all."""
        transport, backlog = self._transport, self._backlog
        if transport is None or backlog is None:
            return
        self.paused = False
        self.write = transport.write
        backlog.move(transport.write)  # may pause again
        exchange = self._exchange
        if backlog.held_back and backlog.size <= self.server.backlogs.each // 2:
            backlog.held_back = False
            if exchange is not None and exchange.listener is not None:
                exchange.listener.resume()
        if self.paused:
            return
        self.deadline = 0.0
        self._wake()
        if self._closing:
            self._close()
        elif self._exchange is None:
            self._phase = NEW
            self._loop.call_soon(self._next)

    # --- what exchanges and the server call ----------------------------------------------------

    def done(self, exchange: Exchange) -> None:
        """The answer of ``exchange`` is complete: go on with what the client sent meanwhile."""
        self._exchange = None
        if not exchange.keep_alive or self._close_after:
            self._close()
            return
        if not self._running:
            if self._ready or self._held or self._refusal is not None:
                # Not from here: the caller may still be inside its own handling of the answer's end.
                self._loop.call_soon(self._next)
            elif not self.paused:
                self._phase = IDLE
                self.deadline = self._loop.time() + self.server.limits.idle_timeout

    async def drained(self) -> None:
        """Wait until the client caught up, or is gone."""
        while self.paused and self._transport is not None:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def close_if_idle(self) -> None:
        """Close when no request is under way; otherwise after the present answer."""
        if self._exchange is None and not self._ready and not self._in_message:
            self._close()
        else:
            self._close_after = True

    def abort(self) -> None:
        """Drop the connection without sending what is queued."""
        exchange, self._exchange = self._exchange, None
        if self._transport is not None:
            self._transport.abort()
        if exchange is not None:
            exchange.lose()

    @property
    def incoming(self) -> int:
        """Bytes of a body that is still coming, if they are counted."""
        return 0 if self._large is None else self._large.size

    def refuse_body(self) -> None:
        """Drop the body that is coming: others need the memory."""
        self._large = None
        if self._exchange is None and not self._ready:
            self._say(_no_room())
        else:
            self._refuse(_no_room())

    @property
    def backlog_size(self) -> int:
        """Bytes that wait for a client which does not keep up."""
        return 0 if self._backlog is None else self._backlog.size

    def fell_behind(self) -> None:
        """More waits than may: have the answer held back, or cut the connection."""
        exchange, backlog = self._exchange, self._backlog
        if backlog is None or backlog.held_back:
            return
        if exchange is not None and exchange.listener is not None and exchange.listener.pause():
            backlog.held_back = True
        else:
            self.cut(BEHIND)

    def cut(self, reason: str) -> None:
        """Drop a reader that is too slow; ``reason`` is one of ``fairlead.http.backlog``."""
        self.server.backlogs.cut[reason] += 1
        if self._backlog is not None:
            self._backlog.clear()  # at once: the transport reports its loss later
        if self._exchange is not None:
            self._exchange.cut = reason
        self.abort()

    def timed_out(self) -> None:
        """Act on the deadline: refuse the slow sender, drop the slow reader, close the idle."""
        self.deadline = 0.0
        transport, backlog = self._transport, self._backlog
        if transport is None:
            return
        if self.paused and backlog is not None:
            left = transport.get_write_buffer_size()
            if left < backlog.in_transport:
                backlog.block(left)
                self.deadline = self._loop.time() + self.server.limits.write_timeout
            else:
                self.cut(STALLED)
        elif self._lingering or transport.is_closing():
            self.abort()
        elif self._in_message:
            self._say(_RefusedError(408, "the request did not arrive in time"))
        elif self._exchange is None:
            self._close()

    # --- parsing -------------------------------------------------------------------------------

    def _take_known(self, known: KnownHead[RequestHead], data: bytes) -> bool:
        """Take one whole request if its head is known; return whether it was one."""
        body = known.body_of(data)
        if body is None or len(body) > self.server.limits.body_bytes:
            return False
        self._ready.append(Exchange(self, known.head, body, known=True))
        return True

    def _feed_new(self, data: bytes) -> None:
        """Parse what starts between two requests, or inside one; remember a plain head."""
        alone = not self._in_message
        self._feed(data)
        if alone and len(self._ready) == 1 and self._refusal is None:
            head = self._ready[0].request_head
            # The others need more than an exchange to be made.
            if head.keep_alive and head.http11 and not self._upgrade:
                self._known = remember(data, head)

    def _feed(self, data: bytes) -> None:
        self._parts_in_read = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as switch:
            self._decline_upgrade(data[switch.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _RefusedError):
                raise
            self._refuse(cause)
        except httptools.HttpParserError as error:
            self._refuse(_RefusedError(400, f"bad HTTP request: {error}"))
        if self._in_message and not self._head_done:
            self._head_size += len(data)
            if self._head_size > self.server.limits.header_bytes:
                self._refuse(_RefusedError(431, "the request's headers are too large"))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 as RFC 9110 section 7.8 lets a server: some clients always offer h2c.

        llhttp stops at such a head, so a fresh parser is given the same framing without the offer.
        """
        if not self._upgrade:
            self._refuse(_RefusedError(501, "CONNECT is not supported"))
            return
        self._upgrade = False
        self._method = self._parser.get_method()
        self._parser = httptools.HttpRequestParser(self)
        framing = [
            b"%b: %b\r\n" % f for f in self._headers if f[0] in {b"content-length", b"transfer-encoding"}
        ]
        self._replayed = True
        self._feed(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n" + rest)

    def on_message_begin(self) -> None:
        """llhttp: a request starts."""
        self._in_message = True
        if not self._replayed:
            self._reset()
            if len(self._ready) >= self.server.limits.pipelined:
                raise _RefusedError(400, "too many pipelined requests")

    def on_url(self, url: bytes) -> None:
        """llhttp: a part of the target."""
        if self._replayed:
            return
        self._target += url
        if len(self._target) > self.server.limits.header_bytes:
            raise _RefusedError(414, "the request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: a header field, or a trailer field, which is counted and dropped."""
        if not self._head_done:
            self._headers.append((name.lower(), value))
        elif not self._replayed:
            self._count_trailer(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """llhttp: check what it leaves to us (RFC 9112 sections 3.2, 6.1)."""
        self._head_done = True
        if self._replayed:
            self._replayed = False
            return
        version = self._parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise _RefusedError(505, f"HTTP version {version} is not supported")
            self._http11 = False
        self._check_fields()
        if self._target[:1] != b"/":
            self._origin_form()

    def _check_fields(self) -> None:
        hosts = size = 0
        limits = self.server.limits
        for name, value in self._headers:
            size += len(name) + len(value)
            if name not in _CHECKED:
                continue
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                if int(value) > limits.body_bytes:
                    raise _RefusedError(413, self._too_large())
            elif name == b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise _RefusedError(501, "only the chunked transfer coding is supported")
                if not self._http11:
                    raise _RefusedError(400, "Transfer-Encoding needs HTTP/1.1")
            elif name == b"expect":
                if value.strip().lower() != b"100-continue":
                    raise _RefusedError(417, "only 100-continue can be expected")
                self._expects = self._http11
            elif name == b"upgrade":
                self._upgrade = True
        if size > limits.header_bytes or len(self._headers) > limits.header_count:
            raise _RefusedError(431, "the request's headers are too large")
        self._head_size = 0  # from here on of trailers
        if hosts != 1 and (self._http11 or hosts):
            raise _RefusedError(400, "a request needs one Host header")

    def on_body(self, data: bytes) -> None:
        """llhttp: a part of the body."""
        self._body_size += len(data)
        if self._body_size > self.server.limits.body_bytes:
            raise _RefusedError(413, self._too_large())
        self._parts_in_read += 1
        if self._parts_in_read > MOST_PARTS:
            raise _RefusedError(400, "the chunks of the body are too small")
        large = self._large
        if large is not None:
            large.add(data)
        elif self._body_size > COUNTED_BYTES:
            self._large = large = Body(self.server.bodies, b"".join([*self._body, data]))
            self._body.clear()
        else:
            self._body.append(data)
            return
        bodies = self.server.bodies
        if bodies.held > bodies.total and not self.server.make_room(self):
            self._large = large = None  # not even the error's traceback keeps it
            raise _no_room()

    def on_message_complete(self) -> None:
        """llhttp: the request is whole."""
        if self._upgrade and self._parser.should_upgrade():
            return  # llhttp skipped the body; _decline_upgrade goes on
        self._in_message = False
        self._expects = False  # the body came unasked
        body, large = self._body, self._large
        self._large = None
        head = RequestHead(
            self._method or self._parser.get_method(),
            self._target,
            self._headers,
            self._parser.should_keep_alive() if self._http11 else False,
            self._http11,
        )
        if large is not None:
            self._ready.append(Exchange(self, head, large))
        else:
            self._ready.append(Exchange(self, head, body[0] if len(body) == 1 else b"".join(body)))

    def _count_trailer(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self.server.limits.header_bytes:
            raise _RefusedError(431, "the request's trailers are too large")

    def _origin_form(self) -> None:
        """Reduce an absolute target, which RFC 9112 section 3.2.2 has servers accept, to its path."""
        scheme, colon, rest = self._target.partition(b"://")
        if self._target == b"*" or not colon or scheme.lower() not in {b"http", b"https"}:
            raise _RefusedError(400, "the request target is not a path")
        slash = rest.find(b"/")
        self._target = rest[slash:] if slash >= 0 else b"/"

    def _too_large(self) -> str:
        return f"the request body is over the limit of {self.server.limits.body_bytes} bytes"

    # --- the order of things -------------------------------------------------------------------

    def _settle(self) -> None:
        """After a read that completed nothing: answer Expect, set the deadline that now applies."""
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            self._say(refusal)
            return
        if self._transport is None or self._lingering:
            return
        if self._expects and self._head_done:
            self._expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        limits = self.server.limits
        phase = (BODY if self._head_done else HEAD) if self._in_message else IDLE
        if phase == self._phase:
            return  # set once: each byte of a slow sender must not renew it
        self._phase = phase
        allowed = (0.0, limits.idle_timeout, limits.header_timeout, limits.body_timeout)[phase]
        self.deadline = self._loop.time() + allowed

    def _next(self) -> None:
        """Run handlers while requests are complete, answers come at once, and the client takes them."""
        if self._running or self.paused:
            return
        self._running = True
        try:
            while self._exchange is None and not (self._transport is None or self._lingering or self.paused):
                if not self._ready and not self._release_held():
                    self._settle()
                    break
                if self._ready:
                    self._exchange = self._ready.popleft()
                    self.server.run(self._exchange)
        finally:
            self._running = False

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > HELD_BYTES and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _release_held(self) -> bool:
        """Parse what was held; return whether there was any."""
        if not self._held or self._refusal is not None:
            return False
        data = b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        if self._reading_paused:
            self._reading_paused = False
            self._read_on()
        self._feed(data)
        return True

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def _refuse(self, refusal: _RefusedError) -> None:
        """Keep the refusal until the answers before it are sent."""
        self._in_message = False
        self._refusal = refusal

    def _say(self, refusal: _RefusedError) -> None:
        """Answer with an error, read on for a moment so that the client can take it, and close."""
        transport = self._transport
        if transport is None:
            return
        self._in_message = False
        self._lingering = True
        self._body.clear()
        self._large = None
        exchange = Exchange(self, RequestHead(b"POST", b"", [], keep_alive=False, http11=True), b"")
        retry = () if refusal.status != 503 else ((b"retry-after", b"1"),)
        body = error_body(refusal.status, refusal.message, refusal.code)
        exchange.reply(Response(refusal.status, body, headers=retry))

    def _close(self) -> None:
        transport = self._transport
        if transport is None:
            return
        self._ready.clear()
        self._held.clear()
        self._known = None  # What still comes is no request, however well its head is known.
        self._closing = bool(self._backlog)
        if self._closing:
            return
        if self._lingering and not transport.is_closing() and transport.can_write_eof():
            self.deadline = self._loop.time() + LINGER_S
            transport.write_eof()
            return
        if not self.paused:  # else its deadline runs already
            self.deadline = self._loop.time() + self.server.limits.write_timeout
        transport.close()
