"""Heads like the one before, to be recognised without parsing them.

What comes on one connection, requests from one side or answers from the other, differs in bodies and
in the body's length, and seldom in anything else. So each connection remembers the last head that
its parser accepted, cut where the digits of Content-Length were. Bytes that are the same around
other digits, and whose digits say that the message ends where the data does, would be parsed to the
same head: between two messages the parser keeps no state.
"""

from typing import Generic, TypeVar

from fairlead.http.messages import Headers

_FIELD = b"\r\ncontent-length: "
_MARK = b"ength: "  # whichever way the rest is capitalised
_MOST_DIGITS = 16


class RequestHead:
    """A request without its body. Shared by the requests that look the same: never changed."""

    __slots__ = ("headers", "http11", "keep_alive", "method", "notes", "target")

    def __init__(
        self, method: bytes, target: bytes, headers: Headers, keep_alive: bool, http11: bool
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.keep_alive = keep_alive
        self.http11 = http11
        self.notes: object = None
        """What a handler worked out from these fields, to be found when they come again."""


class ResponseHead:
    """A final answer without its body. Shared like a ``RequestHead``."""

    __slots__ = ("headers", "notes", "status")

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.notes: object = None
        """What a sink worked out from these fields, to be found when they come again."""


H = TypeVar("H", RequestHead, ResponseHead)


class KnownHead(Generic[H]):
    """A head, and the bytes before and behind the digits of its Content-Length."""

    __slots__ = ("_after", "_before", "_digits_at", "_search_to", "head")

    def __init__(self, head: H, before: bytes, after: bytes) -> None:
        self.head: H = head
        self._before = before
        self._after = after
        self._digits_at = len(before)
        self._search_to = len(before) + _MOST_DIGITS + len(after)

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body if ``data`` is one whole message with this head, else None."""
        if not data.startswith(self._before):
            return None
        at, after = self._digits_at, self._after
        end = data.find(after, at, self._search_to)
        begin = end + len(after)
        if end < 0 or data[at:end] != b"%d" % (len(data) - begin):
            return None
        return data[begin:]


def remember(data: bytes, head: H) -> KnownHead[H] | None:
    """Return what to know ``head`` by, which the parser made of ``data`` and of nothing else.

    None if ``data`` is not one message with a Content-Length that says so.
    """
    end = data.find(b"\r\n\r\n")
    at = data.find(_MARK, 0, end) + len(_MARK)
    stop = data.find(b"\r\n", at, end + 2)
    if data[at:stop] != b"%d" % (len(data) - end - 4):
        return None
    before = data[:at]
    if not before.lower().endswith(_FIELD):
        return None  # these digits belong to some other field
    if [name for name, _ in head.headers].count(b"content-length") != 1:
        return None
    return KnownHead(head, before, data[stop : end + 4])


def with_length(headers: Headers, length: int) -> Headers:
    """Return ``headers`` with the Content-Length of this message in the place of another's."""
    value = b"%d" % length
    return [(name, value if name == b"content-length" else old) for name, old in headers]
