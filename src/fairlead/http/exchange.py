"""One request and its answer on a server connection."""

from typing import TYPE_CHECKING, Protocol

from fairlead.http.bodies import Body
from fairlead.http.heads import RequestHead, with_length
from fairlead.http.messages import Headers, Response, error_body, head

if TYPE_CHECKING:
    from fairlead.http.connection import ServerConnection


class Listener(Protocol):
    """Who wants to hear of the client while an answer is under way."""

    def disconnected(self) -> None:
        """The client is gone; nothing more can be sent."""

    def pause(self) -> bool:
        """The client is as far behind as it may be. Return True to send no more until ``resume``.

        With False the connection is cut, and ``disconnected`` called, soon.
        """

    def resume(self) -> None:
        """The client caught up."""


class Exchange:
    """A complete request, and the means to answer it.

    Answer with ``reply``, or with ``begin``, any number of ``send``, and ``finish``. After the
    client is gone all of these do nothing, so that a handler needs no checks of its own.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_connection",
        "_head",
        "_length",
        "_remaining",
        "begun",
        "cut",
        "keep_alive",
        "listener",
        "method",
        "request_head",
        "target",
    )

    def __init__(
        self,
        connection: "ServerConnection",
        request_head: RequestHead,
        body: bytes | Body,
        known: bool = False,
    ) -> None:
        """``known``: the head is one of an earlier request, equal but for Content-Length."""
        self._connection: ServerConnection | None = connection
        self.request_head = request_head
        self.method = request_head.method
        self.target = request_head.target
        self.keep_alive = request_head.keep_alive
        self._body = body
        self._length = len(body) if known else -1
        self.listener: Listener | None = None
        self.begun = False
        """Whether the answer's head is decided: a different answer is no longer possible."""
        self.cut = ""
        """Why the client was cut off as a slow reader; empty if it was not."""
        self._head = b""
        self._chunked = False
        self._remaining = -1

    def __repr__(self) -> str:
        state = "gone" if self.gone else "begun" if self.begun else "waiting"
        return f"<Exchange {self.method.decode()} {self.target.decode('latin-1')} {state}>"

    @property
    def headers(self) -> Headers:
        """Header fields in the order received; names in lower case. Not to be changed."""
        headers = self.request_head.headers
        return headers if self._length < 0 else with_length(headers, self._length)

    @property
    def body(self) -> bytes:
        """The body in one piece; empty once it was taken."""
        body = self._body
        return body if isinstance(body, bytes) else body.whole()

    @property
    def body_size(self) -> int:
        """Bytes in the body."""
        return len(self._body)

    def take_body(self) -> bytes | Body:
        """Return the body as it came and forget it. It is counted while the caller keeps it."""
        body, self._body = self._body, b""
        return body

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    @property
    def peer(self) -> str:
        """The address of the connection's other end; empty when unknown."""
        return "" if self._connection is None else self._connection.peer

    @property
    def gone(self) -> bool:
        """Whether the answer is complete or can no longer be sent."""
        return self._connection is None

    @property
    def paused(self) -> bool:
        """Whether the client reads slower than it is sent to, so that bytes wait for it."""
        return self._connection is not None and self._connection.paused

    def keeps_up(self) -> bool:
        """Hold or cut readers that are too far behind; return whether this one can still be answered.

        This happens soon by itself. Who may send much in one turn of the loop asks before each part.
        """
        connection = self._connection
        if connection is not None and connection.paused:
            backlogs = connection.server.backlogs
            if connection.backlog_size > backlogs.each:
                connection.fell_behind()
            backlogs.check_total()
        return self._connection is not None

    def header(self, name: bytes) -> bytes | None:
        """Return the last value of ``name`` (in lower case), or None."""
        for field, value in reversed(self.headers):
            if field == name:
                return value
        return None

    def reply(self, response: Response) -> None:
        """Send a whole answer. Raises RuntimeError if another one was begun."""
        fields = [(b"content-type", response.content_type), *response.headers]
        self.whole(head(response.status, fields), response.body)

    def whole(self, head_lines: bytes, body: bytes) -> None:
        """Send a whole answer; ``head_lines`` as for ``begin``. Raises RuntimeError if one was begun."""
        connection = self._connection
        if (
            connection is None
            or self.begun
            or not self.keep_alive
            or connection.server.draining
            or self.method == b"HEAD"
        ):
            self.begin(head_lines, len(body))
            self.finish(body)
            return
        # The common case of the two, in one step.
        self.begun = True
        self._connection = self.listener = None
        connection.write(b"%bcontent-length: %d\r\n\r\n%b" % (head_lines, len(body), body))
        connection.done(self)

    def begin(self, head_lines: bytes, length: int | None = None) -> None:
        """Decide the head: status line and fields, each ended by CRLF, framing fields excepted.

        Nothing is written before the first ``send``, ``flush`` or ``finish``, so that head and
        body share a packet. ``length`` is the size of the body; None sends it in chunks, or up to
        the connection's close to an HTTP/1.0 client. Raises RuntimeError if an answer was begun.
        """
        if self.begun:
            raise RuntimeError("an answer was already begun")
        self.begun = True
        connection = self._connection
        if connection is None:
            return
        if length is not None:
            self._remaining = length
            framing = b"content-length: %d\r\n" % length
        elif self.request_head.http11:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self.keep_alive = False
            framing = b""
        if connection.server.draining:
            self.keep_alive = False
        if self.method == b"HEAD":
            self._chunked = False
        self._head = head_lines + framing + (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def flush(self) -> None:
        """Send the head without waiting for a body."""
        if self._head and self._connection is not None:
            self._connection.write(self._head)
            self._head = b""

    def send(self, data: bytes) -> None:
        """Send a part of the body."""
        connection = self._connection
        if connection is None or not data:
            return
        data = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else self._account(data)
        if self._head:
            data = self._head + data
            self._head = b""
        connection.write(data)

    def finish(self, data: bytes = b"") -> None:
        """Send the last part and end the answer; a body shorter than announced closes the connection."""
        connection = self._connection
        if connection is None:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        else:
            data = self._account(data)
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            connection.write(data)
        if self._remaining > 0 and self.method != b"HEAD":
            self.abort()
            return
        self._connection = None
        self.listener = None
        connection.done(self)

    def abort(self) -> None:
        """Cut the connection, so that the client sees that the answer is not whole."""
        connection = self._connection
        if connection is not None:
            self.listener = None
            connection.abort()

    def fail(self) -> None:
        """Answer 500, or cut the connection when an answer was begun."""
        if self.begun:
            self.abort()
        else:
            self.reply(Response(500, error_body(500, "internal error")))

    async def drained(self) -> None:
        """Wait until the client caught up, or is gone."""
        if self._connection is not None:
            await self._connection.drained()

    def lose(self) -> None:
        """Called by the connection: the client is gone."""
        self._connection = None
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.disconnected()

    def _account(self, data: bytes) -> bytes:
        if self.method == b"HEAD":
            return b""
        if self._remaining >= 0:
            if len(data) > self._remaining:
                raise RuntimeError("the body is longer than announced")
            self._remaining -= len(data)
        return data
