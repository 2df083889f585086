"""Heads that were parsed before, to be recognised without parsing them again.

One client's requests, and one worker's answers, differ in their bodies and in the body's length, and
seldom in anything else. So a message that came in one read is looked up by the bytes of its head with
the digits of Content-Length cut out. Only heads that the parser accepted get in, and between two
messages the parser keeps no state, so what is found here is what it would say of the same bytes.
"""

from typing import Generic, TypeVar

from fairlead.http.messages import Headers

HEADS = 1024
"""Heads in a generation of a cache."""
HEAD_BYTES = 2048
"""Longer ones are always parsed: with ``HEADS`` it bounds the memory."""

_FIELD = b"content-length: "
_MARK = b"ength: "  # whichever way the rest is capitalised


class RequestHead:
    """A request without its body. Shared by all requests that look the same: never changed."""

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


class HeadCache(Generic[H]):
    """Heads by their bytes. Those of messages that have Content-Length, in digits, exactly once."""

    def __init__(self) -> None:
        self._heads: dict[bytes, H] = {}
        self._old: dict[bytes, H] = {}

    def __len__(self) -> int:
        return len(self._heads) + len(self._old)

    def find(self, data: bytes) -> tuple[H, bytes] | None:
        """Return the head and the body if ``data`` is one whole message with a known head."""
        end = data.find(b"\r\n\r\n")
        at = data.find(_MARK, 0, end) + len(_MARK)
        stop = data.find(b"\r\n", at, end + 2)
        # The only digits taken are those that say that the message ends where the data does.
        if data[at:stop] != b"%d" % (len(data) - end - 4):
            return None
        head = self._heads.get(data[:at] + data[stop:end])
        return None if head is None else (head, data[end + 4 :])

    def learn(self, data: bytes, head: H) -> None:
        """Keep ``head``, which the parser made of ``data`` alone, if its bytes are enough to tell it by."""
        end = data.find(b"\r\n\r\n")
        at = data.find(_MARK, 0, end) + len(_MARK)
        stop = data.find(b"\r\n", at, end + 2)
        if end > HEAD_BYTES or data[at:stop] != b"%d" % (len(data) - end - 4):
            return
        if not data[:at].lower().endswith(b"\r\n" + _FIELD):
            return  # the digits belong to some other field
        if [name for name, _ in head.headers].count(b"content-length") != 1:
            return
        key = data[:at] + data[stop:end]
        if len(self._heads) >= HEADS:
            # Two generations make a cheap LRU: what was not asked for since the last turn goes.
            self._old = self._heads
            self._heads = {}
        self._heads[key] = self._old.pop(key, head)


def with_length(headers: Headers, length: int) -> Headers:
    """Return ``headers`` with the Content-Length of this message in the place of another's."""
    value = b"%d" % length
    return [(name, value if name == b"content-length" else old) for name, old in headers]
