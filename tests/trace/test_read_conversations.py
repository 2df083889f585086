"""Conversations as text: estimated tokens, byte keys, answers that come back."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.trace.conversations import TOKEN_BYTES
from fairlead.trace.model import TraceError
from fairlead.trace.reading import read_trace
from tests.trace.shapes import check_trace, quotes, shared_blocks

SYSTEM = "You answer in verse. " * 20


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def write(path: Path, *conversations: Any) -> Path:
    path.write_text(json.dumps(list(conversations)))
    return path


def talk(*words: str) -> list[dict[str, Any]]:
    return [said("system", SYSTEM)] + [
        said(("user", "assistant")[i % 2], word) for i, word in enumerate(words)
    ]


def test_every_answer_is_a_request_that_follows_the_one_before(tmp_path: Path) -> None:
    trace = read_trace(
        write(tmp_path / "c.json", {"id": "one", "messages": talk("Hi", "A" * 300, "More", "B" * 200)}),
        think_s=2.5,
    )
    (only,) = check_trace(trace)
    first, second = only.turns
    start = len("system\n") + len(SYSTEM) + len("\nuser\nHi\nassistant\n")
    assert first.prompt_tokens == start // TOKEN_BYTES
    assert first.output_tokens == (start + 300) // TOKEN_BYTES - first.prompt_tokens
    assert (first.after, first.delay_us, second.after, second.delay_us) == (-1, 0, 0, 2_500_000)
    assert quotes(second, first)
    assert len(first.output_keys) > 0
    assert only.name == "one"
    assert any("4 bytes a token" in label for label in trace.labels)


def test_equal_beginnings_share_blocks_whatever_the_client_library_called_them(tmp_path: Path) -> None:
    one = {"id": 1, "messages": talk("x" * 100, "yes")}
    other = {"id": 2, "messages": talk("y" * 100, "no")}
    a, b = (s.turns[0] for s in check_trace(read_trace(write(tmp_path / "c.json", one, other))))
    assert shared_blocks(a, b) == (len("system\n") + len(SYSTEM) + len("\nuser\n")) // 64
    gpt = {"id": "g", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    plain = {"id": "p", "messages": [said("user", "Hi"), said("assistant", "Hello")]}
    (shared,) = read_trace(write(tmp_path / "g.json", gpt)).sessions()
    (vllm,) = read_trace(write(tmp_path / "p.json", plain)).sessions()
    assert shared.turns == vllm.turns


def test_tool_calls_and_parts_are_text_too(tmp_path: Path) -> None:
    call = [{"function": {"name": "find", "arguments": "{}"}, "id": "1", "type": "function"}]
    steps = [
        said("user", "go"),
        said("assistant", None, tool_calls=call),
        said("tool", "found"),
        said("assistant", "ok"),
    ]
    path = write(tmp_path / "t.json", {"task_id": 3, "reward": 1.0, "trial": 2, "traj": steps})
    (only,) = check_trace(read_trace(path))
    assert only.name == "task 3 trial 2"
    assert only.turns[0].output_tokens > len('{"function":{"name":"find"') // TOKEN_BYTES
    assert len(only.turns) == 2
    parts = [said("user", [{"type": "text", "text": "go"}]), said("assistant", "ok")]
    whole = [said("user", "go"), said("assistant", "ok")]
    a, b = read_trace(write(tmp_path / "p.json", {"messages": parts}, {"messages": whole})).sessions()
    assert a.turns == b.turns


def test_what_nothing_answers_is_left_out_and_counted(tmp_path: Path) -> None:
    conversations = [
        {"id": 0, "messages": talk("a", "b", "c")},
        {"id": 1, "messages": talk("alone")},
        {"id": 2, "conversations": [{"from": "gpt", "value": "I begin"}]},
    ]
    trace = read_trace(write(tmp_path / "c.json", *conversations))
    assert trace.requests == 1
    assert {repair.rule: repair.count for repair in trace.repairs} == {
        "messages without an answer at the end: left out": 2,
        "conversations without any answer: left out": 2,
    }


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"id": 1, "messages": [{"content": "who?"}]}, "conversation 1: message 0 has no role"),
        ({"id": 1}, "conversation 1: no messages, conversations or traj"),
        ({"id": 1, "messages": "hello"}, "conversation 1: Expected `array"),
        (7, "conversation 1: Expected `object`"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path: Path, item: Any, says: str) -> None:
    path = write(tmp_path / "c.json", {"id": 0, "messages": talk("a", "b")}, item)
    with pytest.raises(TraceError) as refused:
        read_trace(path)
    assert says in str(refused.value)


def test_a_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"id": 0, "messages": talk("a", "b")})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(TraceError, match="is the file complete"):
        read_trace(path)


@given(words=st.lists(st.text(max_size=120), min_size=2, max_size=8), block=st.integers(1, 20))
def test_any_text_makes_a_sound_conversation(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], block: int
) -> None:
    path = tmp_path_factory.mktemp("c") / "c.json"
    write(path, {"id": 0, "messages": talk(*words)}, {"id": 1, "messages": talk(*words[:2])})
    one, other = check_trace(read_trace(path, block_tokens=block))
    assert list(one.turns[0].keys) == list(other.turns[0].keys)
    for before, after in zip(one.turns, one.turns[1:], strict=False):
        assert [*before.keys, *before.output_keys] == list(after.keys)[
            : len(before.keys) + len(before.output_keys)
        ]
