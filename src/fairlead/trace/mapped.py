"""Any table whose fields the user names: ``--map arrival=...,prompt=...,output=...``.

The table is CSV, JSON lines, a JSON list or parquet. What a field holds says how it is read: an arrival is a
number of ``time_unit`` or a date with a time, a prompt is a number of tokens or text, and so is an output.
Without an arrival, requests and sessions start as a Poisson process.
"""

from collections.abc import Mapping
from pathlib import Path

from xxhash import xxh3_64_intdigest

from fairlead.core.keys import byte_keys, seed_key
from fairlead.core.params import Param, Values, nearest
from fairlead.trace.arrivals import session_starts, start_params
from fairlead.trace.calls import HISTORY, HISTORY_PARAM, SESSIONS, Call, Calls, closed, gaps_label
from fairlead.trace.conversations import TOKEN_BYTES
from fairlead.trace.faults import Faults, microseconds
from fairlead.trace.files import sample
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.rows import US_PER, Cells, fraction, moment, read_rows, value, whole, word
from fairlead.trace.store import Span, Store

FORM = "mapped"
MUST = ("prompt", "output")
"""What a map must name."""
MAY = ("arrival", "client", "session", "end", "delay")
_ROLES = (*MUST, *MAY)
SHAPE = "arrival=FIELD,prompt=FIELD,output=FIELD[,client=FIELD][,session=FIELD][,end=FIELD][,delay=FIELD]"
_LONG = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def parse_map(told: str) -> dict[str, str]:
    """Return the fields by what they are. Raises ``TraceError`` for a map that says too little or twice."""
    found: dict[str, str] = {}
    for part in filter(None, told.split(",")):
        role, equals, name = (side.strip() for side in part.partition("="))
        if not (equals and role and name):
            raise TraceError(f"map: '{part}' is not of the form {SHAPE}")
        if role not in _ROLES:
            raise TraceError(f"map: '{role}' is none of {', '.join(_ROLES)}{nearest(role, _ROLES)}")
        if role in found:
            raise TraceError(f"map: '{role}' is named twice, as {found[role]} and as {name}")
        found[role] = name
    missing = [role for role in MUST if role not in found]
    if missing:
        raise TraceError(f"map: no field is named for {' and '.join(missing)}: write {SHAPE}")
    return found


class _Reading:
    """One table while it is read."""

    def __init__(self, path: Path, values: Values, fields: Mapping[str, str]) -> None:
        self.faults = Faults(path)
        self.fields = fields
        self.store = Store()
        self.block = values.integer("block_tokens")
        self.unit = values.word("time_unit")
        self.texts = False
        self.dates = False
        self.estimates = False
        self.starts, self.starts_label = session_starts(values)
        self.calls = Calls(self.store, self.block, closed=closed(values), history=values.flag("history"))
        self._known: set[tuple[str, str]] = set()  # sessions that have started, where there are no arrivals

    def take(self, where: str, cells: Cells) -> None:
        fields, per_unit = self.fields, US_PER[self.unit]
        at = moment(cells, fields["arrival"], per_unit) if "arrival" in fields else -1
        arrival = value(cells, fields.get("arrival", ""))
        self.dates = self.dates or (isinstance(arrival, str) and not _numeric(arrival))
        prompt, text = self._length(cells, where, "prompt")
        output, _ = self._length(cells, where, "output")
        call = Call(at, prompt, output, ONE_CLIENT)
        if "client" in fields:
            call.client = word(cells, fields["client"])
            if not call.client:
                raise ValueError(f"{fields['client']} is missing")
        if "session" in fields:
            call.session = word(cells, fields["session"])
        if "end" in fields and value(cells, fields["end"]) is not None:
            call.end = max(at, moment(cells, fields["end"], per_unit))
        if "delay" in fields and value(cells, fields["delay"]) is not None:
            call.delay = microseconds(fields["delay"], fraction(cells, fields["delay"]), per_unit)
        if text is not None:
            call.spans = self._keys(text, prompt)
        if at >= 0:
            self.faults.arrival(where, at)
        elif not call.session or (call.client, call.session) not in self._known:
            call.at = next(self.starts)
            self._known.add((call.client, call.session))
        self.calls.add(call)

    def _length(self, cells: Cells, where: str, role: str) -> tuple[int, bytes | None]:
        """Return tokens, and the text if the field holds text."""
        name = self.fields[role]
        found = value(cells, name)
        try:
            tokens = whole(cells, name)
        except ValueError:
            if not isinstance(found, str) or _numeric(found):
                raise
            text = found.encode("utf-8", "surrogatepass")
            self.estimates = True
            self.texts = self.texts or role == "prompt"
            return self.faults.at_least_one(where, name, len(text) // TOKEN_BYTES), text
        return self.faults.at_least_one(where, name, tokens), None

    def _keys(self, text: bytes, prompt: int) -> tuple[Span]:
        full = text[: prompt * TOKEN_BYTES]
        keys = byte_keys(full, self.block * TOKEN_BYTES, seed_key("trace"), xxh3_64_intdigest)
        return (self.store.add_keys(keys),)


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(path: Path, values: Values) -> Trace:
    fields = parse_map(values.word("map"))
    reading = _Reading(path, values, fields)
    count = read_rows(
        path, reading.faults, reading.take, [name for name in fields.values() if "." not in name]
    )
    reading.calls.finish()
    seen = ", ".join(sample(path).fields()[:12])
    repairs = reading.faults.finish(
        count, f"mend or remove those lines, or name other fields (there are: {seen})"
    )
    labels = [] if "client" in fields else [NO_CLIENTS]
    if reading.estimates:
        labels.append(f"token counts of texts are estimates: {TOKEN_BYTES} bytes a token")
    if not reading.texts:
        labels.append("the source has no prompts: no prefix is shared between sessions")
    if reading.calls.turns:
        labels.append(gaps_label(ends="end" in fields or "delay" in fields))
        if values.flag("history") and not reading.texts:
            labels.append(HISTORY)
    if "arrival" not in fields:
        labels.append(reading.starts_label)
    arrivals = (
        "no arrival times"
        if "arrival" not in fields
        else "arrivals are dates"
        if reading.dates
        else f"arrivals in {_LONG[reading.unit]}"
    )
    return reading.store.trace(
        path.name, reading.block, identify(FORM, path, values), labels, repairs, facts=[arrivals]
    )


READERS = (
    Reader(
        FORM,
        f"any CSV, JSON or parquet table, by --map {SHAPE}",
        lambda _: False,
        _read,
        (
            Param("map", "", f"which field is what: {SHAPE}"),
            Param("time_unit", "s", "unit of times that are numbers", choices=tuple(US_PER)),
            *start_params(1.0),
            SESSIONS,
            HISTORY_PARAM,
            Param("block_tokens", 16, "tokens of a KV block", low=1),
        ),
        "Table",
    ),
)
