import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.gateway.sse import MAX_EVENT_BYTES, Tap
from tests.gateway.mocks import DONE, ROLE, USAGE, USAGE_EVENT, event, token

STREAM = ROLE + token('say "usage" \n\n data: x') + token("two") + USAGE_EVENT + DONE
OF_CHUNKS = {"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"}


def fed(tap, stream, cuts):
    """Feed a stream cut at these places; return what came out of each read, and at the end."""
    edges = [0, *sorted({c for c in cuts if 0 < c < len(stream)}), len(stream)]
    out = [tap.feed(stream[a:b]) for a, b in pairwise(edges) if b > a]
    return [*out, tap.rest()], edges[1:]


@given(
    st.lists(st.integers(0, len(STREAM)), max_size=30), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_however_a_stream_is_cut_the_same_bytes_and_figures_come_out(cuts, hide, end):
    stream, usage = (part.replace(b"\n", end.encode()) for part in (STREAM, USAGE_EVENT))
    tap = Tap(hide)
    out, _ = fed(tap, stream, cuts)
    assert b"".join(out) == (stream.replace(usage, b"") if hide else stream)
    assert tap.began
    assert tap.usage is not None
    assert (tap.usage.prompt_tokens, tap.usage.cached_tokens, tap.usage.completion_tokens) == (10, 4, 3)
    assert 2 <= tap.events <= 5


# --- against a plain parser ---------------------------------------------------------------------


class Line:
    """One line, by the grammar: what it says, and the bytes that it is."""

    def __init__(self, said, end):
        self.said, self.end = said, end
        name, colon, value = said.partition(b":")
        self.comment = bool(colon) and not name
        self.field = name or None
        self.value = value.removeprefix(b" ")

    @property
    def raw(self):
        return self.said + self.end


def lines_of(data):
    """Read byte by byte. The last line may lack its end."""
    lines, said, at = [], b"", 0
    while at < len(data):
        byte = data[at : at + 1]
        end = b"\r\n" if data[at : at + 2] == b"\r\n" else byte if byte in (b"\r", b"\n") else b""
        if end:
            lines.append(Line(said, end))
            said = b""
        else:
            said += byte
        at += len(end) or 1
    return [*lines, Line(said, b"")] if said else lines


def as_passed(lines, hide):
    """Return what is passed on of one event, and the usage that it has."""
    raw = b"".join(line.raw for line in lines)
    data = [line.value for line in lines if line.field == b"data"]
    try:
        value = json.loads(b"\n".join(data))
    except ValueError:
        return raw, None
    if not isinstance(value, dict) or "usage" not in value:
        return raw, None
    usage = value.pop("usage")
    if not hide or (value.get("choices") and usage is not None):
        return raw, usage
    if usage is None or any(value[name] for name in set(value) - OF_CHUNKS):
        rest = [line for line in lines if line.field != b"data"]
        at = next(number for number, line in enumerate(lines) if line.field == b"data")
        end = lines[at].end
        rest.insert(at, Line(b"data: " + json.dumps(value, separators=(",", ":")).encode(), end))
        return b"".join(line.raw for line in rest), usage
    comments = [line for line in lines if line.comment]
    if not comments:
        return b"", usage
    return b"".join(line.raw for line in [*comments, *[line for line in lines if not line.said]]), usage


def plainly(stream, hide, *, ended):
    """Return what to pass on of a whole stream and its last usage: slow, and as the grammar says."""
    bom = stream[:3] if stream.startswith(b"\xef\xbb\xbf") else b""
    out, usage, lines = bom, None, []
    for line in lines_of(stream[len(bom) :]):
        lines.append(line)
        if not line.said:
            passed, said = as_passed(lines, hide)
            out, usage, lines = out + passed, said or usage, []
    if ended:
        passed, said = as_passed(lines, hide)
        out, usage = out + passed, said or usage
    return out, usage


def chunk(value):
    return json.dumps(value, separators=(",", ":")).encode()


SAYS = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
CHUNKS = [
    b"[DONE]",
    b"no json",
    chunk(SAYS),
    chunk({**SAYS, "usage": None}),
    chunk({**SAYS, "usage": USAGE}),
    chunk({"choices": [], "usage": None}),
    chunk({"choices": [], "usage": USAGE}),
    chunk({"id": "x", "model": "m", "usage": USAGE, "choices": [], "object": "chat.completion.chunk"}),
    chunk({"choices": [], "usage": {"prompt_tokens": 5}, "timings": {"prompt_ms": 1.5}}),
    chunk({"choices": [], "usage": {"prompt_tokens": 5}, "metrics": None}),
    chunk({"usage": {"prompt_tokens": 7}}),
    chunk({"choices": [], "x": {"usage": USAGE}}),
    chunk([{"usage": USAGE}]),
]
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.one_of(
    st.sampled_from(CHUNKS).map(lambda data: b"data: " + data),
    st.sampled_from(CHUNKS).map(lambda data: b"data:" + data),
    st.sampled_from([b"", b"", b":", b": ping", b"data", b"data:", b"event: x", b"id: 5", b"odd"]),
    # One value over two lines.
    st.tuples(st.just(b'data: {"choices":[],'), ENDS, st.just(b'data: "usage":{"prompt_tokens":3}}')).map(
        b"".join
    ),
)
STREAMS = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(LINES, ENDS, st.one_of(ENDS, st.just(b""))).map(b"".join), max_size=12).map(b"".join),
    st.sampled_from([b"", b"", b"data: x", b"data: " + CHUNKS[5], b": cut"]),
).map(b"".join)


@given(STREAMS, st.sets(st.integers(1, 2000), max_size=40), st.booleans())
@example(b"data: " + CHUNKS[5] + b"\r\r\ndata: x\n\n", {len(CHUNKS[5]) + 8}, True)
@example(b": c\rdata: " + CHUNKS[5] + b"\r\r\ndata: x\n\n", {len(CHUNKS[5]) + 12}, True)
@example(b"data: " + CHUNKS[5] + b"\r\rdata: x\n\n", {len(CHUNKS[5]) + 15}, True)
@example(b"data: x\r\n\r\ndata: " + CHUNKS[5] + b"\r\n\r\n: note\n\n", set(), True)
@example(b"\xef\xbb\xbfdata: " + CHUNKS[5] + b"\n\n", {1}, True)
def test_a_stream_is_read_as_the_grammar_says(stream, cuts, hide):
    """In every mix of line ends and cut anywhere: after each read all complete events are out."""
    tap = Tap(hide)
    out, ends = fed(tap, stream, cuts)
    *reads, rest = out
    so_far = b""
    for read, end in zip(reads, ends, strict=False):
        so_far += read
        assert so_far == plainly(stream[:end], hide, ended=False)[0]
    passed, usage = plainly(stream, hide, ended=True)
    assert so_far + rest == passed
    assert (tap.usage and tap.usage.prompt_tokens) == (usage and usage["prompt_tokens"])


def test_a_stream_of_cr_is_passed_on_event_by_event():
    tap = Tap(hide=True)
    one = token("a").replace(b"\n", b"\r")
    assert [tap.feed(one) for _ in range(3)] == [one] * 3
    assert tap.events == 3


# --- what was asked for, and what an engine says besides ------------------------------------------


def test_what_an_engine_says_beside_the_usage_is_passed_on():
    """As llama.cpp does: its timings come with the usage."""
    tap = Tap(hide=True)
    said = {"choices": [], "id": "c", "usage": USAGE, "timings": {"predicted_per_second": 55.5, "cache_n": 4}}
    out = tap.feed(event(said))
    del said["usage"]
    assert json.loads(out.removeprefix(b"data: ")) == said
    assert tap.usage is not None
    assert tap.usage.prompt_tokens == 10


def test_usage_beside_a_choice_stays_and_a_null_that_announces_usage_goes():
    tap = Tap(hide=True)
    running = event({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": 1}})
    fields = {"choices": [{"index": 0, "delta": {"content": "b"}}], "id": 'say "usage": null'}
    assert tap.feed(running) == running
    out = tap.feed(event({**fields, "usage": None}))
    assert json.loads(out.removeprefix(b"data: ")) == fields
    assert tap.feed(USAGE_EVENT) == b""
    assert tap.usage is not None
    assert tap.usage.completion_tokens == 3
    shown = Tap(hide=False)
    assert shown.feed(event({**fields, "usage": None})) == event({**fields, "usage": None})


@pytest.mark.parametrize("figures", ['"much"', '{"prompt_tokens": 1e999}', '{"prompt_tokens": "x"}', "[]"])
def test_usage_that_makes_no_sense_is_hidden_all_the_same(figures):
    tap = Tap(hide=True)
    assert tap.feed(b'data: {"choices": [], "usage": %b}\n\n' % figures.encode()) == b""


def test_what_is_no_event_stream_passes():
    tap = Tap(hide=True)
    data = b'data: {"usage": broken\n\ndata: "usage"\n\nevent: x\ndata: 5 "usage"\n\n\xff\xfe\n\n'
    assert tap.feed(data) == data
    assert tap.feed(b"end without blank line") == b""
    assert tap.rest() == b"end without blank line"


def test_an_endless_event_is_not_kept():
    tap = Tap(hide=True)
    part = b"x" * 2**20
    out = sum(len(tap.feed(part)) for _ in range(20))
    assert out + len(tap.tail) == 20 * 2**20
    assert len(tap.tail) <= MAX_EVENT_BYTES


# --- the first token ----------------------------------------------------------------------------


def test_a_role_is_no_first_token():
    tap = Tap(hide=True)
    tap.feed(ROLE)
    tap.feed(event({"choices": [{"index": 1, "delta": {"role": "assistant", "content": None}}]}))
    tap.feed(b": ping\n\n")
    tap.feed(event({"error": {"message": "x"}}))
    tap.feed(event({"choices": [], "prompt_filter_results": []}))
    tap.feed(event({"choices": None}))
    assert not tap.began
    tap.feed(event({"choices": [{"index": 0, "text": "a"}]}))
    assert (tap.began, tap.events) == (True, 1)


@pytest.mark.parametrize(
    "choice",
    [
        {"text": ""},
        {"delta": {}},
        {"delta": {"content": ""}},
        {"delta": {"content": "a"}},
        {"delta": {"content": [{"type": "text", "text": "a"}]}},
        {"delta": {"content": {"parts": ["a"]}}},
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"reasoning": {"text": "hm"}}},
        {"delta": {"refusal": "no"}},
        {"delta": {"audio": {"data": "AAAA"}}},
        {"delta": {"function_call": {"name": "f", "arguments": ""}}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}},
        {"delta": {"role": "assistant", "content": "a"}},
        {"delta": {"role": "assistant", "content": [{"type": "text", "text": "a"}]}},
        {"delta": {"role": "assistant", "something new": 1}},
        {"delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"},
        {"message": {"content": "a"}},
        {"delta": "a"},
    ],
    ids=str,
)
def test_the_first_choice_beyond_the_role_is_the_first_token(choice):
    tap = Tap(hide=True)
    tap.feed(ROLE)
    assert not tap.began
    tap.feed(event({"choices": [{"index": 0, **choice}]}))
    assert (tap.began, tap.events) == (True, 1)


def test_a_role_that_is_told_again_is_a_step_of_the_engine():
    """Some engines repeat the role in every delta, empty ones until a tool call is complete."""
    tap = Tap(hide=True)
    tap.feed(ROLE)
    tap.feed(ROLE)
    assert (tap.began, tap.events) == (True, 1)
