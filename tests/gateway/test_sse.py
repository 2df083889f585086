from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fairlead.gateway.sse import MAX_EVENT_BYTES, Tap
from tests.gateway.mocks import DONE, ROLE, USAGE_EVENT, event, token

STREAM = ROLE + token('say "usage" \n\n data: x') + token("two") + USAGE_EVENT + DONE


@given(st.lists(st.integers(0, len(STREAM)), max_size=30), st.booleans(), st.booleans())
def test_however_a_stream_is_cut_the_same_bytes_and_figures_come_out(cuts, hide, crlf):
    stream, usage = STREAM, USAGE_EVENT
    if crlf:
        stream, usage = stream.replace(b"\n\n", b"\r\n\r\n"), usage.replace(b"\n\n", b"\r\n\r\n")
    tap = Tap(hide)
    edges = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    out = b"".join(tap.feed(stream[a:b]) for a, b in pairwise(edges) if b > a)
    out += tap.rest()
    assert out == (stream.replace(usage, b"") if hide else stream)
    assert tap.began
    assert tap.usage is not None
    assert (tap.usage.prompt_tokens, tap.usage.cached_tokens, tap.usage.completion_tokens) == (10, 4, 3)
    assert 2 <= tap.events <= 5


def test_a_role_or_an_empty_text_is_no_first_token():
    tap = Tap(hide=True)
    tap.feed(ROLE)
    tap.feed(event({"choices": [{"index": 0, "text": ""}]}))
    tap.feed(b": ping\n\n")
    tap.feed(event({"error": {"message": "x"}}))
    assert not tap.began
    tap.feed(event({"choices": [{"index": 0, "text": "a"}]}))
    assert (tap.began, tap.events) == (True, 1)


def test_reasoning_and_tool_calls_are_tokens():
    for delta in (
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
    ):
        tap = Tap(hide=True)
        tap.feed(event({"choices": [{"index": 0, "delta": delta}]}))
        assert tap.began


def test_usage_in_every_chunk_hides_only_the_last_one():
    tap = Tap(hide=True)
    running = event({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": 1}})
    nothing = event({"choices": [{"index": 0, "delta": {"content": "b"}}], "usage": None})
    assert tap.feed(running) == running
    assert tap.feed(nothing) == nothing
    assert tap.feed(USAGE_EVENT) == b""
    assert tap.usage is not None
    assert tap.usage.completion_tokens == 3


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
