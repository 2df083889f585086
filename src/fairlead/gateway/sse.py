"""Reads a stream of server-sent events on its way through: tokens, usage, and what to hide.

Events are passed on byte for byte, but whole: an event cut by a read waits for its rest, so that the
usage that the gateway itself asked for can be left out, and an error event never lands inside another
one. The grammar is WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html): a line
ends with CRLF, LF or CR, an event with an empty line.
"""

import re
from typing import Any

import msgspec

from fairlead.gateway.wire import Usage, usage_from

MAX_EVENT_BYTES = 4 * 2**20
"""An unfinished event beyond this is passed on unread: memory is bounded, whatever an engine sends."""

_BOM = b"\xef\xbb\xbf"
_ENDS = (b"\n\n", b"\r\n\r\n")
# Atomic groups: the CR of a CRLF is never taken for a line end of its own.
_EVENT_END = re.compile(rb"(?>\r\n?|\n)(?>\r\n?|\n)")
_EMPTY_LINES = re.compile(rb"(?:\r\n?|\n)*")
_LONGEST_END = 4
_CHUNK_FIELDS = {
    "id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint",
    "obfuscation",
}  # fmt: skip
"""What a chunk has anyway. An event of usage with more than this says something besides."""
_NOTHING = (b"null", b"[]", b"{}", b'""')

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Tap:
    """One stream. ``hide`` leaves out the usage, which only the gateway asked for."""

    __slots__ = (
        "_lf",
        "_plain",
        "_roles",
        "_started",
        "began",
        "events",
        "failed",
        "hide",
        "keep_null",
        "over",
        "tail",
        "usage",
    )

    def __init__(self, hide: bool) -> None:
        self.hide = hide
        self.keep_null = False
        """Whether a usage of null is passed on: some engines say it to whoever does not ask, too."""
        self.tail = bytearray()
        """The beginning of an event whose end has not come."""
        self.began = False
        """Whether a token was seen: a choice that says more than its role."""
        self.events = 0
        """Events with tokens since the caller last took the count. An estimate: usage settles it."""
        self.usage: Usage | None = None
        """The latest; some engines say it in every chunk."""
        self.over = False
        """Whether that is the last one: it came without a choice, or with the end of all of its choices."""
        self.failed = False
        """Whether the engine said in an event that the answer failed."""
        self._plain = False
        """The next byte begins an event, and nothing is known that says otherwise."""
        self._started = False
        """Whether the first bytes, which may be a byte order mark, are through."""
        self._lf = False
        """An event that was left out ended with CR: an LF that comes next belongs to it."""
        self._roles: set[bytes] = set()
        """Choices, by index, whose role was told."""

    def feed(self, data: bytes) -> bytes:
        """Take in what one read brought; return what to pass on."""
        if not self._plain or not data.endswith(_ENDS):
            if not self._started:
                return self._start(data)
            data = self._whole_events(data)
            if not data:
                return b""
        if self.began:
            self.events += data.count(b"\n\n") or len(_EVENT_END.findall(data))
        else:
            self._look_for_token(data)
        # Inside a JSON string the quotes would be escaped, so these are fields, not generated text.
        if b'"error"' in data and not self.failed:
            self.failed = any(_says_error(event) for event in _events(data))
        if b'"usage"' in data:
            return self._read_usage(data)
        return data

    def rest(self) -> bytes:
        """Return what is left when the stream ends: normally nothing.

        Some clients read an event that lacks its empty line, so it is read here as others are.
        """
        tail, self.tail = bytes(self.tail), bytearray()
        return self._read_usage(tail) if b'"usage"' in tail else tail

    def _start(self, data: bytes) -> bytes:
        """Pass a byte order mark on by itself: it belongs to no event."""
        data = bytes(self.tail) + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self.tail = bytearray(data)
            return b""
        self.tail.clear()
        self._started = self._plain = True
        if data.startswith(_BOM):
            return _BOM + self.feed(data[len(_BOM) :])
        return self.feed(data)

    def _whole_events(self, data: bytes) -> bytes:
        """Return the events that are complete now, and keep the rest."""
        if self._lf and data:
            self._lf = False
            data = data.removeprefix(b"\n")
        held = self.tail
        # An end that was cut begins in the last bytes that are held; none is whole in them.
        begin = max(0, len(held) - _LONGEST_END + 1)
        cut = 0
        held += data
        for end in _EVENT_END.finditer(held, begin):
            cut = end.end()
        if cut or not begin:
            # Where no event is open, an empty line is complete by itself.
            empty = _EMPTY_LINES.match(held, cut)
            assert empty is not None
            cut = empty.end()
        if len(held) - cut > MAX_EVENT_BYTES:
            cut = len(held)
        out = bytes(held[:cut])
        del held[:cut]
        self._plain = not held
        return out

    def _look_for_token(self, data: bytes) -> None:
        for event in _events(data):
            if self.began:
                self.events += 1
            elif self._has_token(event):
                self.began = True
                self.events = 1

    def _has_token(self, event: bytes) -> bool:
        """Say whether a choice says more than its role, whatever that is: even an empty delta is a step."""
        chunk = _decoded(_data(event))
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not isinstance(choices, list):
            return False
        for choice in choices:
            if not isinstance(choice, dict) or not _only_role(choice):
                return True
            index = msgspec.json.encode(choice.get("index"))
            if index in self._roles:
                return True
            self._roles.add(index)
        return False

    def _read_usage(self, data: bytes) -> bytes:
        kept = [self._usage_in(event) if b'"usage"' in event else event for event in _events(data)]
        if not kept[-1] and not self.tail and data.endswith(b"\r"):
            self._lf, self._plain = True, False
        return b"".join(kept)

    def _usage_in(self, event: bytes) -> bytes:
        """Note the usage of an event; return what to pass on of the event."""
        fields = _fields(_data(event))
        said = fields.pop("usage", None)
        if said is None:
            return event
        usage = usage_from(said)
        if usage is not None:
            self.usage = usage
            self.over = self.over or _no_more(_decoded(fields.get("choices", b"[]")))
        null = bytes(said) == b"null"  # a promise of usage that comes later
        if not self.hide or (null and self.keep_null):
            return event
        if not null and bytes(fields.get("choices", b"[]")) not in _NOTHING:
            return event  # the engine would have said it unasked
        if null or any(name not in _CHUNK_FIELDS and bytes(fields[name]) not in _NOTHING for name in fields):
            return _with_data(event, msgspec.json.encode(fields))
        return _without_data(event)


def _events(data: bytes) -> list[bytes]:
    """Cut whole events apart, each with its empty line; empty lines before it count to an event."""
    if b"\r" not in data:  # the usual case, several times faster
        events = [event + b"\n\n" for event in data.split(b"\n\n")]
        last = events.pop()[:-2]
    else:
        at = 0
        events = []
        for end in _EVENT_END.finditer(data):
            events.append(data[at : end.end()])
            at = end.end()
        last = data[at:]
    if last:
        events.append(last)
    return events


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line.rstrip(b"\r\n") == b"data"


def _data(event: bytes) -> bytes:
    """Return the lines of the event's data, joined. A space before each makes no difference to JSON."""
    lines = event.splitlines()
    if len(lines) == 2 and not lines[1] and lines[0].startswith(b"data:"):
        return lines[0][5:]  # as most events are
    return b"\n".join([line[5:] for line in lines if line.startswith(b"data:")])


def _with_data(event: bytes, data: bytes) -> bytes:
    """Return the event with other data, one line of JSON; its other lines stay as they are."""
    out = []
    new = data.replace(b"\r", b" ").replace(b"\n", b" ")  # only between tokens: strings have them escaped
    for line in event.splitlines(keepends=True):
        if not _is_data(line):
            out.append(line)
        elif new:
            out.append(b"data: " + new + line[len(line.rstrip(b"\r\n")) :])
            new = b""
    return b"".join(out)


def _without_data(event: bytes) -> bytes:
    """Return what is left where an event is left out: comments, and empty lines before it."""
    lines = event.splitlines(keepends=True)
    begin = next(number for number, line in enumerate(lines) if line.strip(b"\r\n"))
    kept = [line for line in lines[begin:] if line.startswith((b":", b"\r", b"\n"))]
    if not kept or not kept[0].startswith(b":"):
        kept = []
    return b"".join(lines[:begin] + kept)


def _decoded(data: bytes | msgspec.Raw) -> Any:
    """Return the JSON value, or None if there is none to be read."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _fields(data: bytes) -> dict[str, msgspec.Raw]:
    """Return the fields of a JSON object as they are written; none if it is no object."""
    try:
        return _FIELDS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _no_more(choices: Any) -> bool:
    """Say whether a chunk with these choices is the last one with tokens."""
    return not isinstance(choices, list) or all(
        isinstance(c, dict) and c.get("finish_reason") for c in choices
    )


def _says_error(event: bytes) -> bool:
    """Say whether an event is an engine's error, as vLLM and SGLang send it once an answer has begun."""
    said = _fields(_data(event)).get("error")
    return said is not None and bytes(said) not in _NOTHING


def _only_role(choice: dict[str, Any]) -> bool:
    """Say whether a choice tells who speaks and nothing else, as some engines do before they compute."""
    delta = choice.get("delta")
    if not isinstance(delta, dict) or "role" not in delta:
        return False
    said = any(value not in (None, "", [], {}) for name, value in delta.items() if name != "role")
    return not said and choice.get("finish_reason") is None
