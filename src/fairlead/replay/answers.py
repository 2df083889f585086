"""Reads one streamed answer: first token, times between tokens, usage, and the one way in which it ended."""

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import msgspec

from fairlead.http.client import Call, UpstreamError
from fairlead.http.messages import Headers
from fairlead.report.run import DONE, FAILED, REJECTED

REFUSALS = frozenset({429, 503, 529})
"""Statuses by which a server refuses a request for now."""
_PLAIN = (b"data: {", b"data:{")
_MOST_KEPT = 4 * 2**20
_SHOWN = 300


class Details(msgspec.Struct, gc=False):
    """``usage.prompt_tokens_details``."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """``usage``, as far as a replay needs it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None

    @property
    def cached(self) -> int:
        """Prompt tokens found cached; -1 if the server does not say."""
        found = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        return -1 if found is None else found


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream, or a whole answer."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(Chunk)


class Answer:
    """A sink of the HTTP client. Calls ``ended(self)`` once, when the request has ended by itself.

    Times are nanoseconds of ``perf_counter_ns``; 0 where the moment did not come.
    """

    __slots__ = (
        "_began_ns", "_cr", "_done", "_error", "_itl", "_rest", "call", "ended", "first_ns", "last_ns",
        "outcome", "reason", "row", "status", "tokens", "usage",
    )  # fmt: skip

    def __init__(self, row: int, ended: "Callable[[Answer], None]", itl: Callable[[int, int], None]) -> None:
        self.row = row
        self.ended = ended
        self._itl = itl
        """Told of the times between tokens: microseconds, and how many."""
        self.call: Call | None = None
        self.status = 0
        self.first_ns = 0
        self.last_ns = 0
        """When its latest part came."""
        self.tokens = 0
        """Events with a token so far; ``usage`` is exact, but comes at the end."""
        self.usage: Usage | None = None
        self.outcome = FAILED
        self.reason = ""
        """Why it was rejected or failed."""
        self._began_ns = 0
        self._rest = b""
        self._cr = False
        """The last byte was a CR: an LF that comes next is of the same line end."""
        self._done = False
        self._error = ""

    def head(self, status: int, _headers: Headers) -> None:
        """Note the status."""
        self.status = status

    def data(self, body: bytes) -> None:
        """Read what came."""
        now = perf_counter_ns()
        if self.status != 200:
            self._rest = (self._rest + body)[:_MOST_KEPT]
            return
        if self._cr or b"\r" in body:
            body = self._with_lf(body)
        data = self._rest + body if self._rest else body
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > _MOST_KEPT:
            self._rest = b""
        tokens = 0
        for event in events:
            tokens += self._event(event, now)
        if tokens:
            self._count(tokens, now)

    def _with_lf(self, body: bytes) -> bytes:
        """Return what came with LF for each line end: CRLF, LF or CR, also in a mix."""
        if self._cr:
            body = body.removeprefix(b"\n")
        self._cr = body.endswith(b"\r")
        return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _event(self, event: bytes, now: int) -> bool:
        """Take in one event; return whether it carries a token."""
        if event.endswith(b"[DONE]"):
            self._done = True
            return False
        if self.first_ns and b'"usage"' not in event and b'"error"' not in event:
            return event.startswith(_PLAIN)
        chunk = _chunk(event)
        if chunk is None:
            return False
        if chunk.error is not None:
            self._error = _said(chunk.error)
        self.usage = chunk.usage or self.usage
        if not self.first_ns and any(choice.text for choice in chunk.choices):
            self.first_ns = now
        return bool(chunk.choices)

    def _count(self, tokens: int, now: int) -> None:
        """Count tokens that came together: the client saw no time between them."""
        if self.tokens:
            self._itl((now - self.last_ns) // 1000, 1)
        else:
            self._began_ns = now
        if tokens > 1:
            self._itl(0, tokens - 1)
        self.tokens += tokens
        self.last_ns = now

    def end(self) -> None:
        """Say how it ended: well only with usage or the end mark, and without an error event."""
        if self.status != 200:
            self._refused()
        elif self._error:
            self.reason = f"error in the stream: {self._error}"
        elif self._done or self.usage is not None or self._whole():
            self.outcome = DONE
            self.first_ns = self.first_ns or self._began_ns  # tokens that decode to no text
        else:
            self.reason = "the stream ended early"
        self.ended(self)

    def _whole(self) -> bool:
        """Read an answer that was not streamed, though it was asked to be."""
        chunk = _decoded(self._rest)
        if chunk is None or not chunk.choices:
            return False
        self.usage = chunk.usage
        return True

    def _refused(self) -> None:
        self.outcome = REJECTED if self.status in REFUSALS else FAILED
        self.reason = f"status {self.status}: {error_text(self._rest)}"

    def error(self, error: UpstreamError) -> None:
        """Note that the connection broke, or could not be made."""
        self.reason = str(error)
        self.ended(self)


def error_text(body: bytes) -> str:
    """Return what an error's body says, in OpenAI's shape or not, in one line."""
    chunk = _decoded(body)
    if chunk is not None and chunk.error is not None:
        return _said(chunk.error)
    return " ".join(body.decode("utf-8", "replace").split())[:_SHOWN] or "no reason given"


def decode_usage(body: bytes) -> Usage | None:
    """Return the usage of a whole answer."""
    chunk = _decoded(body)
    return chunk.usage if chunk is not None else None


def _said(error: Any) -> str:
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:_SHOWN]


def _chunk(event: bytes) -> Chunk | None:
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return _decoded(b"\n".join(lines))


def _decoded(data: bytes) -> Chunk | None:
    try:
        return _CHUNK.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
