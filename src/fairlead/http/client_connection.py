"""The client's side of one connection: one request at a time, its answer parsed as it comes."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import httptools

from fairlead.http.heads import KnownHead, ResponseHead, remember
from fairlead.http.messages import FULL_READ, Headers

if TYPE_CHECKING:
    from fairlead.http.client import Call, Pool

MAX_HEAD_BYTES = 65_536
Buffer = bytes | bytearray | memoryview


class ClientTimeouts(NamedTuple):
    """Patience with an upstream, in seconds."""

    connect: float = 5.0
    first_byte: float = 600.0
    """From the request to the first byte of the answer."""
    quiet: float = 300.0
    """Between two bytes of an answer."""
    idle: float = 60.0
    """How long an unused connection is kept."""


class UpstreamError(Exception):
    """An exchange with the upstream broke off.

    ``kind`` is ``connect``, ``closed``, ``timeout`` or ``protocol``; ``answered`` says whether a
    byte of an answer was seen.
    """

    def __init__(self, kind: str, message: str, answered: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.answered = answered


class Sink(Protocol):
    """Who receives an answer. Calls come in this order; after ``error`` or ``end`` none follows."""

    def head(self, status: int, headers: Headers) -> None:
        """The final status and the header fields (interim 1xx answers are dropped)."""

    def data(self, body: bytes) -> None:
        """What one read brought of the body, without its transfer coding."""

    def end(self) -> None:
        """The answer is whole. The connection is back in the pool already."""

    def error(self, error: UpstreamError) -> None:
        """The answer will not come, or not to its end."""


class WholeSink(Sink, Protocol):
    """A sink that rather takes an answer in one piece, if it came in one and looks like one before."""

    def whole(self, head: ResponseHead, body: bytes) -> None:
        """In place of ``head``, ``data`` and ``end``. Content-Length in ``head`` is another answer's."""


class ClientConnection(asyncio.Protocol):
    """One connection to the upstream; at most one request at a time."""

    __slots__ = (
        "_answered",
        "_call",
        "_complete",
        "_head_done",
        "_head_ready",
        "_head_size",
        "_headers",
        "_interim",
        "_keep",
        "_known",
        "_parser",
        "_parts",
        "_paused",
        "_pool",
        "_quiet_since",
        "_rest",
        "_sink",
        "_status",
        "_to_eof",
        "_transport",
        "_used",
        "_whole",
        "_write_blocked",
    )

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._call: Call | None = None
        self._sink: Sink | None = None
        self._whole: Callable[[ResponseHead, bytes], None] | None = None
        self._used = False
        """Whether an answer was received on it before: only then can it be stale."""
        self._answered = False
        self._complete = False
        self._head_ready = False
        self._head_done = False
        self._interim = False
        self._keep = False
        self._known: KnownHead[ResponseHead] | None = None
        self._status = 0
        self._to_eof = False
        self._paused = False
        self._headers: Headers = []
        self._head_size = 0
        self._parts: list[bytes] = []
        self._quiet_since = 0.0
        self._rest: deque[Buffer] = deque()
        """Pieces of the request still to be written."""
        self._write_blocked = False

    def usable(self) -> bool:
        """Whether a request may be written to it."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def busy(self) -> bool:
        """Whether an exchange is under way on it."""
        return self._sink is not None

    def idle_for(self, now: float) -> float:
        """Seconds since a sweep first saw it unused."""
        if not self._quiet_since:
            self._quiet_since = now
        return now - self._quiet_since

    def start(self, call: "Call", sink: Sink, request: bytes) -> bool:
        """Write the request, or return False when the connection is on its way out."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        call.connection = self
        self._call = call
        self._sink = sink
        self._whole = getattr(sink, "whole", None)
        self._answered = self._complete = False
        self._head_ready = self._to_eof = False
        self._quiet_since = 0.0
        transport.write(request)
        if call.rest:
            self._rest.extend(call.rest)
            self._write_on()
        return True

    def drop(self) -> None:
        """Close without a word to the sink."""
        self._call = self._sink = self._whole = None
        self._rest.clear()
        self._pool.lost(self)
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._quiet_since = 0.0
            self._transport.resume_reading()

    def check(self, now: float, timeouts: ClientTimeouts) -> None:
        """Time out an upstream that sends nothing. ``_quiet_since`` is zeroed by every read."""
        if self._paused:
            return
        if not self._quiet_since:
            self._quiet_since = now
            return
        allowed = timeouts.quiet if self._answered else timeouts.first_byte
        if now - self._quiet_since >= allowed:
            self._break("timeout", f"the worker sent nothing for {allowed:g} s")

    # --- the transport -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in {socket.AF_INET, socket.AF_INET6}:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the sink, or try again when the connection was stale."""
        self._transport = None
        self._pool.lost(self)
        call, sink = self._call, self._sink
        if call is None or sink is None:
            return
        self._call = self._sink = self._whole = None
        call.connection = None
        if self._used and not self._answered:
            self._pool.again(call)
        elif self._to_eof and exc is None:
            sink.end()
        else:
            where = "in the middle of its answer" if self._answered else "without an answer"
            sink.error(UpstreamError("closed", f"the worker closed the connection {where}", self._answered))

    def data_received(self, data: bytes) -> None:
        """Parse one read and hand on what it brought."""
        sink = self._sink
        if sink is None:
            self.drop()  # bytes that nobody asked for: the next answer could not be trusted
            return
        self._quiet_since = 0.0
        if len(data) >= FULL_READ and not self._paused and self._transport is not None:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)
        fresh = not self._answered
        if fresh:
            self._answered = True
            known, whole = self._known, self._whole
            if known is not None and whole is not None:
                body = known.body_of(data)
                if body is not None:
                    self._over()
                    self._pool.ended(self, not self._paused and not self._rest)
                    whole(known.head, body)
                    return
            if self._call is not None:
                self._call.request = b""  # from here on it is never sent again
                self._call.rest = ()
        failure = self._feed(data)
        if fresh and self._complete and self._keep and not failure and self._status == 200:
            self._known = remember(data, ResponseHead(200, self._headers))
        if self._head_ready:
            self._head_ready = False
            sink.head(self._status, self._headers)
        parts = self._parts
        if parts:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            if self._sink is sink:
                sink.data(body)
        if self._sink is not sink:
            return  # cancelled from inside
        if self._complete:
            self._finish(sink, failure)
        elif failure:
            self._break("protocol", f"the worker's answer is not valid HTTP: {failure}")

    def pause_writing(self) -> None:
        """The worker does not take more of a large request for now."""
        self._write_blocked = True

    def resume_writing(self) -> None:
        """It takes more."""
        self._write_blocked = False
        self._write_on()

    def _write_on(self) -> None:
        transport = self._transport
        while self._rest and not self._write_blocked and transport is not None:
            self._quiet_since = 0.0  # the worker's time to answer begins with the end of the request
            transport.write(self._rest.popleft())

    def _read_on(self) -> None:
        """Read on after everybody else had a turn."""
        transport = self._transport
        if not self._paused and transport is not None and not transport.is_closing():
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Let the transport close; ``connection_lost`` judges whether the answer was whole."""
        return False

    # --- parsing -------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> str:
        """Parse; return what is wrong with the answer, if anything."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return "it switched protocols unasked"
        except httptools.HttpParserError as error:
            return str(error.__context__ or error)
        return ""

    def on_message_begin(self) -> None:
        """llhttp: an answer starts."""
        if self._complete:
            raise ValueError("more than one answer to a request")
        self._headers = []
        self._head_size = 0
        self._head_done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: a header field, or a trailer field, which is counted and dropped."""
        self._head_size += len(name) + len(value) + 4
        if self._head_size > MAX_HEAD_BYTES:
            raise ValueError("its headers are too large")
        if not self._head_done:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """llhttp: interim answers are dropped; a body without a length ends with the connection."""
        self._head_done = True
        self._status = status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                raise ValueError("it switched protocols unasked")
            self._interim = True
            return
        self._head_ready = True
        if status not in {204, 304}:
            self._to_eof = True
            for name, value in self._headers:
                if name == b"content-length" or (
                    name == b"transfer-encoding" and b"chunked" in value.lower()
                ):
                    self._to_eof = False

    def on_body(self, data: bytes) -> None:
        """llhttp: a part of the body."""
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """llhttp: the answer is whole."""
        if self._interim:
            self._interim = False
        else:
            self._complete = True
            self._keep = self._parser.should_keep_alive()

    # --- the end -------------------------------------------------------------------------------

    def _finish(self, sink: Sink, failure: str) -> None:
        self._over()
        self._pool.ended(self, not (failure or self._paused or self._rest) and self._keep)
        sink.end()

    def _over(self) -> None:
        """The exchange is over, and well."""
        call = self._call
        self._call = self._sink = self._whole = None
        self._used = True
        if call is not None:
            call.connection = None

    def _break(self, kind: str, message: str) -> None:
        sink, call = self._sink, self._call
        self.drop()
        if call is not None:
            call.connection = None
        if sink is not None:
            sink.error(UpstreamError(kind, message, self._answered))
