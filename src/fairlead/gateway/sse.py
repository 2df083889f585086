"""Reads a stream of server-sent events on its way through: tokens, usage, and what to hide.

Events are passed on byte for byte, but whole: an event cut by a read waits for its rest, so that the
usage event that the gateway itself asked for can be left out, and an error event never lands inside
another one.
"""

from typing import TypeVar

import msgspec

from fairlead.gateway.wire import NO_RAW, Usage, usage_from

MAX_EVENT_BYTES = 4 * 2**20
"""An unfinished event beyond this is passed on unread: memory is bounded, whatever an engine sends."""

T = TypeVar("T")


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


class _WithUsage(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] = []
    usage: msgspec.Raw = NO_RAW


_CHUNK = msgspec.json.Decoder(_Chunk)
_WITH_USAGE = msgspec.json.Decoder(_WithUsage)


class Tap:
    """One stream. ``hide`` leaves the usage event out of what is passed on."""

    __slots__ = ("began", "events", "hide", "tail", "usage")

    def __init__(self, hide: bool) -> None:
        self.hide = hide
        self.tail = b""
        """The beginning of an event whose end has not come."""
        self.began = False
        """Whether a token was seen: a role alone, or an empty text, is none."""
        self.events = 0
        """Events with tokens since the caller last took the count. An estimate: usage settles it."""
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """Take in what one read brought; return what to pass on."""
        if self.tail or not data.endswith(b"\n\n"):
            data = self._whole_events(data)
            if not data:
                return b""
        if self.began:
            self.events += data.count(b"\n\n") or data.count(b"\n\r\n")
        else:
            self._look_for_token(data)
        # Inside a JSON string the quotes would be escaped, so this is a field, not generated text.
        if b'"usage"' in data:
            return self._read_usage(data)
        return data

    def rest(self) -> bytes:
        """Return what is left when the stream ends: normally nothing."""
        tail, self.tail = self.tail, b""
        return tail

    def _whole_events(self, data: bytes) -> bytes:
        data = self.tail + data
        cut = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
        if cut < 3:
            cut = 0
        self.tail = data[cut:]
        if len(self.tail) > MAX_EVENT_BYTES:
            self.tail = b""
            return data
        return data[:cut]

    def _look_for_token(self, data: bytes) -> None:
        for event in _events(data):
            if self.began:
                self.events += 1
            elif _has_token(event):
                self.began = True
                self.events = 1

    def _read_usage(self, data: bytes) -> bytes:
        kept = []
        for event in _events(data):
            chunk = _decoded(_WITH_USAGE, event) if b'"usage"' in event else None
            usage = None if chunk is None else usage_from(chunk.usage)
            if chunk is not None and usage is not None:
                self.usage = usage
                if self.hide and not chunk.choices:
                    continue
            kept.append(event)
        return b"".join(kept)


def _events(data: bytes) -> list[bytes]:
    """Cut whole events apart, each with its blank line."""
    end = b"\n\n" if b"\n\n" in data else b"\r\n\r\n"
    parts = data.split(end)
    last = parts.pop()
    events = [part + end for part in parts]
    if last:
        events.append(last)
    return events


def _decoded(decoder: "msgspec.json.Decoder[T]", event: bytes) -> T | None:
    """Decode the data of one event; None if it is not a chunk of an answer."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return decoder.decode(b"\n".join(lines))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _has_token(event: bytes) -> bool:
    chunk = _decoded(_CHUNK, event)
    if chunk is None:
        return False
    for choice in chunk.choices:
        delta = choice.delta
        if choice.text or (
            delta is not None
            and (delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)
        ):
            return True
    return False
