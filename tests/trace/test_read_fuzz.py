"""Whatever a file holds, it is read or refused in words: no reader raises anything but ``TraceError``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.trace.decisions import MARK
from fairlead.trace.faults import MAX_TIME_US, MAX_TOKENS
from fairlead.trace.model import TraceError
from fairlead.trace.reading import READERS, read_trace
from tests.trace.test_read_formats import FILES

NAMES = (
    "timestamp|created_time|input_length|output_length|hash_ids|session_id|delay|delay_ms|chat_id|"
    "parent_chat_id|type|turn|startTime|endTime|prompt_tokens|completion_tokens|api_key|status|"
    "cache_hit|call_type|custom_id|url|body|messages|role|content|prompt|output_tokens|"
    "output_tokens_count|prompt_tokens_count|text|texts|turns|payload|message_mode|data|payloads|tools|"
    "max_tokens|input|resourceSpans|scopeSpans|spans|attributes|resource|key|value|intValue|"
    "stringValue|startTimeUnixNano|endTimeUnixNano|gen_ai.usage.input_tokens|"
    "gen_ai.usage.output_tokens|Timestamp|Session ID|Elapsed time|Model|Request tokens|Response tokens|"
    "Log Type"
)
FIELDS = NAMES.split("|")
NUMBERS = st.one_of(
    st.integers(-3, 3_000),
    st.floats(),
    st.sampled_from([1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 1e308, MAX_TOKENS, 1e-300]),
)
ODD = ["", "a", "nan", "inf", "1e9", "-1", "9" * 5000, "2024-05-01", "0001-01-01T00:00+23:59", "\ud800"]
TEXTS = st.one_of(st.sampled_from(ODD), st.text(max_size=30))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=8)
    ),
    max_leaves=25,
)
PIECES = st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"[[", b"{", b"\n"]))
Store = Callable[[list[Any]], bytes]
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=14), min_size=1, max_size=5)
MAP = (
    "arrival=timestamp,prompt=prompt,output=output_tokens,client=api_key,session=session_id,"
    "end=endTime,delay=delay"
)
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
LIMITS = settings(max_examples=10, deadline=None, suppress_health_check=SLOW)


def options(form: str) -> dict[str, Any]:
    return {"map": MAP} if form == "mapped" else {}


def read_or_refuse(path: Path, form: str | None) -> None:
    try:
        trace = read_trace(path, form=form, **options(form or ""))
    except TraceError:
        return
    for session in trace.sessions():
        assert 0 <= session.at <= 2 * MAX_TIME_US
        for number, turn in enumerate(session.turns):
            assert 1 <= turn.prompt_tokens <= MAX_TOKENS
            assert 1 <= turn.output_tokens <= MAX_TOKENS
            assert 0 <= turn.delay_us <= MAX_TIME_US
            assert -1 <= turn.after < number


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def as_list(rows: list[Any]) -> bytes:
    return json.dumps(rows).encode()


def as_document(rows: list[Any]) -> bytes:
    return json.dumps({"data": rows, "resourceSpans": rows}, indent=1).encode()


DEEP = {
    "lists": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "messages": b'{"messages":' + b"[" * 900 + b"]" * 900 + b"}",
    "log": MARK + b'1,"a":' + b"[" * 100_000,
}
ROWS_OF = [form for form in READERS if form not in {"servegen", "decision-log"}]


@pytest.mark.parametrize("form", ROWS_OF)
@given(rows=ROWS, store=st.sampled_from([as_lines, as_list, as_document]))
@LIMITS
def test_rows_of_any_json(form: str, tmp_path: Path, rows: list[Any], store: Store) -> None:
    path = tmp_path / "t"
    path.write_bytes(store(rows))
    read_or_refuse(path, form)
    read_or_refuse(path, None)


@pytest.mark.parametrize("form", sorted(FILES))
@given(data=st.data())
@LIMITS
def test_files_with_bytes_changed(form: str, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(FILES[form])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        stop = start + data.draw(st.integers(0, 12))
        content[start:stop] = data.draw(PIECES)
    path = tmp_path / "t"
    path.write_bytes(bytes(content))
    read_or_refuse(path, form)
    read_or_refuse(path, None)


@pytest.mark.parametrize("form", sorted(READERS))
@pytest.mark.parametrize("shape", DEEP)
def test_depths_that_no_parser_follows(form: str, shape: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(DEEP[shape] + b"\n")
    read_or_refuse(path, form)
    read_or_refuse(path, None)
