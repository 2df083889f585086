"""What gateways and tracers write of the requests they served: LiteLLM's spend logs, OpenTelemetry's spans.

Both have a start and an end for each request, so that the pauses between the turns of a session are known;
neither has prompts.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from fairlead.core.params import Param, Values
from fairlead.trace.calls import HISTORY, HISTORY_PARAM, SESSIONS, Call, Calls, closed, gaps_label
from fairlead.trace.decoding import decode
from fairlead.trace.faults import Faults, microseconds
from fairlead.trace.files import Sample, lines, whole_text
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.rows import Cells, moment, read_rows, value, whole, word
from fairlead.trace.store import Store, counted

_UNNAMED = "unnamed"
"""The client of a request whose field for it is empty, where other requests' is not."""
_NO_PROMPTS = "the source has no prompts: no prefix is shared between sessions"
_EXAMPLE = "2024-05-01T12:00:00.123Z"


class _Log:
    """One log while it is read."""

    def __init__(self, path: Path, values: Values, unit: str) -> None:
        self.path = path
        self.values = values
        self.faults = Faults(path, unit)
        self.store = Store()
        self.block = values.integer("block_tokens")
        self.calls = Calls(self.store, self.block, closed=closed(values), history=values.flag("history"))
        self.models: set[str] = set()
        self.named = 0

    def add(self, where: str, call: Call, model: str) -> None:
        call.prompt = self.faults.at_least_one(where, "prompt tokens", call.prompt)
        call.output = self.faults.at_least_one(where, "completion tokens", call.output)
        if call.client:
            self.named += 1
        if model:
            self.models.add(model)
        self.faults.arrival(where, call.at)
        self.calls.add(call)

    def trace(self, form: str, items: int, remedy: str) -> Trace:
        repairs = self.faults.finish(items, remedy)
        labels = [_NO_PROMPTS]
        if not self.named:
            labels.append(NO_CLIENTS)
        self.calls.finish()
        self.store.rename_client("", _UNNAMED if self.named else ONE_CLIENT)
        if self.calls.turns:
            labels.append(gaps_label(ends=True))
            if self.values.flag("history"):
                labels.append(HISTORY)
        facts = [counted(len(self.models), "model"), "arrivals are dates"]
        return self.store.trace(
            self.path.name, self.block, identify(form, self.path, self.values), labels, repairs, facts=facts
        )


# ---- LiteLLM

_CLIENTS = {"key": "api_key", "user": "user", "team": "team_id", "end_user": "end_user"}
_SPEND = ("startTime", "prompt_tokens", "completion_tokens")


def _read_litellm(path: Path, values: Values) -> Trace:
    """Read ``LiteLLM_SpendLogs``: the table exported as CSV or parquet, or what ``/spend/logs`` answers."""
    log = _Log(path, values, "row")
    faults = log.faults
    client = _CLIENTS[values.word("client")]

    def take(where: str, cells: Cells) -> None:
        at = moment(cells, "startTime", 1e3, _EXAMPLE)
        prompt, output = whole(cells, "prompt_tokens"), whole(cells, "completion_tokens")
        if word(cells, "cache_hit").lower() == "true":
            faults.mended("answers from LiteLLM's own cache: left out", f"{where}: cache_hit is True")
            return
        if word(cells, "status") == "failure" or not (prompt or output):
            faults.mended("requests that failed: left out", f"{where}: no tokens, or status is failure")
            return
        if "embedding" in word(cells, "call_type"):
            faults.mended("embeddings: left out", f"{where}: call_type is {word(cells, 'call_type')}")
            return
        call = Call(at, prompt, output, word(cells, client), word(cells, "session_id"))
        if value(cells, "endTime") is not None:
            call.end = max(at, moment(cells, "endTime", 1e3, _EXAMPLE))
        log.add(where, call, word(cells, "model"))

    count = read_rows(path, faults, take, _SPEND)
    return log.trace("litellm", count, "mend or remove those rows")


def _of_litellm(sample: Sample) -> bool:
    return set(_SPEND) <= {*sample.columns(), *sample.keys(), *sample.array_keys()}


# ---- OpenTelemetry


class _Value(msgspec.Struct):
    text: str | None = msgspec.field(name="stringValue", default=None)
    whole: int | str | None = msgspec.field(name="intValue", default=None)
    number: float | None = msgspec.field(name="doubleValue", default=None)

    def get(self) -> str | int | float | None:
        found = self.text if self.text is not None else self.whole
        return self.number if found is None else found


class _Attribute(msgspec.Struct):
    key: str
    value: _Value = msgspec.field(default_factory=_Value)


class _Span(msgspec.Struct):
    start: int | str = msgspec.field(name="startTimeUnixNano", default=0)
    end: int | str = msgspec.field(name="endTimeUnixNano", default=0)
    trace: str = msgspec.field(name="traceId", default="")
    attributes: list[_Attribute] = []


class _Scope(msgspec.Struct):
    spans: list[msgspec.Raw] = []


class _Resource(msgspec.Struct):
    attributes: list[_Attribute] = []


class _ResourceSpans(msgspec.Struct):
    resource: _Resource = msgspec.field(default_factory=_Resource)
    scopes: list[_Scope] = msgspec.field(name="scopeSpans", default=[])
    libraries: list[_Scope] = msgspec.field(name="instrumentationLibrarySpans", default=[])


class _Export(msgspec.Struct):
    resources: list[_ResourceSpans] = msgspec.field(name="resourceSpans")


_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
"""Today's names of the conventions, and those before version 1.27."""
_MODELS = ("gen_ai.request.model", "gen_ai.response.model")
_SESSION = {
    "conversation": ("gen_ai.conversation.id", "session.id"),
    "trace": (),
    "none": (),
}
_CLIENT = ("enduser.id", "user.id", "tenant.id", "service.name")
_SUMS = {"invoke_agent", "create_agent", "execute_tool", "invoke_workflow"}
"""Operations whose tokens are the sum of the requests under them."""
_OTHER = "spans of other things than requests: not looked at"


def _exports(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the exports: one a line, as the collector's file exporter writes them, or one in the file."""
    first = next(lines(path), (0, b""))[1]
    try:
        decode(first, dict[str, msgspec.Raw])
    except ValueError:
        yield "document", whole_text(path)
        return
    for number, text in lines(path):
        yield f"line {number}", text


def _read_otel(path: Path, values: Values) -> Trace:
    log = _Log(path, values, "span")
    chosen = values.word("client")
    clients = (chosen,) if chosen else _CLIENT
    by = values.word("session")
    count = 0
    for where, text in _exports(path):
        try:
            export = decode(text, _Export)
        except ValueError as error:
            if where == "document":
                raise TraceError(f"{path}: not OTLP JSON: {error}; is the file complete?") from None
            count += 1
            if text.endswith(b"\n"):
                log.faults.broken(where, str(error))
            else:
                log.faults.mended("the last line breaks off: left out", f"{where}: {error}")
            continue
        number = 0
        for resource in export.resources:
            around = _attributes(resource.resource.attributes)
            for scope in (*resource.scopes, *resource.libraries):
                for raw in scope.spans:
                    number += 1
                    count += _take(log, f"{where}: span {number}", bytes(raw), around, clients, by)
    return log.trace("otel-genai", count, "mend or remove those spans")


def _take(
    log: _Log, where: str, raw: bytes, around: Mapping[str, object], clients: tuple[str, ...], by: str
) -> int:
    """Add a span to ``log`` if it is a request; return 1 if it is, or is broken."""
    try:
        span = decode(raw, _Span)
        found = {**around, **_attributes(span.attributes)}
        operation = found.get("gen_ai.operation.name")
        if _first(found, _INPUT) is None or operation in _SUMS or operation == "embeddings":
            log.faults.mended(_OTHER, f"{where}: {operation or 'no gen_ai.usage.input_tokens'}")
            return 0
        tokens: dict[str, object] = {
            "input_tokens": _first(found, _INPUT), "output_tokens": _first(found, _OUTPUT)
        }  # fmt: skip
        at = _time("startTimeUnixNano", span.start)
        session = span.trace if by == "trace" else _first(found, _SESSION[by])
        call = Call(
            at,
            whole(tokens, "input_tokens"),
            whole(tokens, "output_tokens"),
            f"{_first(found, clients) or ''}",
            f"{session or ''}",
            end=max(at, _time("endTimeUnixNano", span.end)),
        )
        log.add(where, call, f"{_first(found, _MODELS) or ''}")
    except ValueError as error:
        log.faults.broken(where, str(error))
    return 1


def _attributes(found: list[_Attribute]) -> dict[str, object]:
    return {attribute.key: attribute.value.get() for attribute in found}


def _first(found: Mapping[str, object], names: tuple[str, ...]) -> object:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _time(field: str, told: int | str) -> int:
    """Return nanoseconds since 1970, a number or digits in a text, in microseconds."""
    nanoseconds = whole({field: told}, field)
    if nanoseconds <= 0:
        raise ValueError(f"{field} is missing")
    return microseconds(field, float(nanoseconds // 1_000), 1.0) if nanoseconds < 1 << 70 else _absurd(field)


def _absurd(field: str) -> int:
    raise ValueError(f"{field} is out of range")


def _of_otel(sample: Sample) -> bool:
    return not sample.names and b'"resourceSpans"' in sample.head


_COMMON = (SESSIONS, HISTORY_PARAM, Param("block_tokens", 16, "tokens of a KV block", low=1))

READERS = (
    Reader(
        "litellm",
        "LiteLLM's spend logs, CSV or JSON: startTime, endTime, prompt_tokens, completion_tokens, api_key,"
        " user, team_id",
        _of_litellm,
        _read_litellm,
        (Param("client", "key", "what makes a client", choices=tuple(_CLIENTS)), *_COMMON),
        "LiteLLM spend logs",
    ),
    Reader(
        "otel-genai",
        'OTLP JSON {"resourceSpans"} with gen_ai.usage.input_tokens and gen_ai.usage.output_tokens',
        _of_otel,
        _read_otel,
        (
            Param("client", "", f"attribute that names the client; empty: the first of {', '.join(_CLIENT)}"),
            Param(
                "session", "conversation",
                "what makes a session: gen_ai.conversation.id or session.id, the trace, or nothing",
                choices=tuple(_SESSION),
            ),
            *_COMMON,
        ),
        "OpenTelemetry GenAI spans",
    ),
)  # fmt: skip
