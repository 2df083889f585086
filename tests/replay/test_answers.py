"""Streams of events, however they are cut."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.http.client import UpstreamError
from fairlead.replay.answers import Answer
from fairlead.report.run import DONE, FAILED, OUTCOMES, REJECTED
from tests.replay.fake import events, usage

TOKEN = {"choices": [{"text": "a"}]}
LAST = {"choices": [], "usage": usage(20, 3, 16)}
BROKEN = {"error": {"message": "it broke"}}
STREAM = events(TOKEN, TOKEN, TOKEN, LAST, b"[DONE]")


class Heard:
    def __init__(self) -> None:
        self.ends = 0
        self.gaps: dict[int, int] = {}
        self.answer = Answer(0, self._end, self._gap)

    def _end(self, answer: Answer) -> None:
        assert answer is self.answer
        self.ends += 1

    def _gap(self, us: int, count: int) -> None:
        assert us >= 0
        self.gaps[us] = self.gaps.get(us, 0) + count

    def hear(self, *parts: bytes, status: int = 200) -> Answer:
        self.answer.head(status, [])
        for part in parts:
            self.answer.data(part)
        self.answer.end()
        assert self.ends == 1
        return self.answer


@settings(max_examples=100)
@given(st.lists(st.integers(0, len(STREAM)), max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\r"]))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int], end: bytes) -> None:
    if len(end) == 2 and end[:1] == b"\n":  # a mix: each event ends with LF and CR
        stream = STREAM.replace(b"\n\n", end)
    else:
        stream = STREAM.replace(b"\n", end)
    places = [0, *sorted(cuts), len(stream)]
    heard = Heard()
    answer = heard.hear(*[stream[a:b] for a, b in pairwise(places)])
    assert answer.outcome == DONE
    assert answer.tokens == 3
    assert answer.first_ns
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached) == (20, 3, 16)
    assert sum(heard.gaps.values()) == 2


def test_tokens_that_come_together_have_no_time_between_them() -> None:
    heard = Heard()
    heard.hear(STREAM)
    assert heard.gaps == {0: 2}


@pytest.mark.parametrize(
    ("status", "body", "outcome", "reason"),
    [
        (429, b'{"error":{"message":"queue  full"}}', REJECTED, "status 429: queue full"),
        (503, b"<html>busy\n</html>", REJECTED, "status 503: <html>busy </html>"),
        (500, b"", FAILED, "status 500: no reason given"),
        (404, b'{"error":"no such"}', FAILED, "status 404: no such"),
        (200, events(TOKEN, BROKEN, b"[DONE]"), FAILED, "error in the stream: it broke"),
        (200, events(TOKEN, TOKEN), FAILED, "the stream ended early"),
        (200, b"", FAILED, "the stream ended early"),
        (200, b"data: {broken\n\n" + STREAM, DONE, ""),
        (200, b": still here\n\n" + STREAM, DONE, ""),
        (200, b'{"choices":[{"text":"all"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}', DONE, ""),
    ],
)  # fmt: skip
def test_every_answer_ends_in_one_known_way(status: int, body: bytes, outcome: int, reason: str) -> None:
    answer = Heard().hear(body, status=status)
    assert OUTCOMES[answer.outcome] == OUTCOMES[outcome]
    assert answer.reason == reason


def test_an_answer_that_is_not_streamed_has_usage_and_no_first_token() -> None:
    answer = Heard().hear(b'{"choices":[{"text":"all"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}')
    assert answer.first_ns == 0
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    assert answer.usage.cached == -1


def test_the_first_token_is_the_first_text_or_the_first_event_where_none_has_text() -> None:
    empty: dict[str, Any] = {"choices": [{"text": ""}]}
    heard = Heard()
    heard.answer.head(200, [])
    heard.answer.data(events(empty))
    assert heard.answer.first_ns == 0
    heard.answer.data(events(TOKEN))
    assert heard.answer.first_ns
    assert heard.answer.tokens == 2
    assert Heard().hear(events(empty, empty, b"[DONE]")).first_ns


def test_servers_that_send_usage_with_every_event_are_counted_right() -> None:
    chunks = [
        TOKEN | {"usage": None},
        TOKEN | {"usage": usage(20, 2)},
        {"choices": [], "usage": usage(20, 2)},
    ]
    answer = Heard().hear(events(*chunks, b"[DONE]"))
    assert answer.tokens == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_a_broken_connection_is_a_failure_with_its_reason() -> None:
    heard = Heard()
    heard.answer.head(200, [])
    heard.answer.data(events(TOKEN))
    heard.answer.error(UpstreamError("closed", "the worker closed the connection", True))
    assert heard.ends == 1
    assert heard.answer.outcome == FAILED
    assert heard.answer.tokens == 1
