"""Files of prompts: OpenAI's batches, vLLM's custom data, guidellm's and AIPerf's inputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reading import read_trace
from tests.trace.shapes import check_trace, quotes, shared_blocks

RULES = "Answer briefly. " * 40
"""640 bytes: 10 blocks of 16 tokens."""


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only_turns(trace: Trace) -> list[Any]:
    sessions = check_trace(trace)
    assert all(len(session.turns) == 1 for session in sessions)
    return [session.turns[0] for session in sessions]


def batch(number: int, question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
    return {
        "custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": messages, **more},
    }  # fmt: skip


def test_a_batch_shares_its_system_prompt_and_states_its_limits(tmp_path: Path) -> None:
    path = write(
        tmp_path / "batch.jsonl",
        batch(1, "Why is the sky blue?", max_tokens=100, user="ann"),
        batch(2, "Why is grass green?", max_completion_tokens=50),
        {"custom_id": "3", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}},
        {"custom_id": "4", "method": "POST", "url": "/v1/completions", "body": {"prompt": [1, 2, 3]}},
    )
    trace = read_trace(path)
    one, other, ids = only_turns(trace)
    assert shared_blocks(one, other) == 10
    assert (one.output_tokens, other.output_tokens, ids[:2]) == (100, 50, (3, 256))
    assert trace.understood == "OpenAI batch: 3 requests, 0 sessions, 2 clients, no arrival times"
    assert any("1 requests state no output" in label for label in trace.labels)
    assert any("Poisson" in label for label in trace.labels)
    assert [repair.count for repair in trace.repairs] == [1]


def test_vllms_custom_data_has_prompts_and_lengths(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.jsonl", {"prompt": RULES + "a" * 64, "output_tokens": 10}, {"prompt": RULES + "b" * 64}
    )
    one, other = only_turns(read_trace(path, output_tokens=7))
    assert (one.prompt_tokens, one.output_tokens, other.output_tokens) == (176, 10, 7)
    assert shared_blocks(one, other) == 10


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_guidellms_counts_are_believed_before_estimates(form: str, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "Hello there",
            "system_prompt": RULES,
            "prompt_tokens_count": 200,
            "output_tokens_count": 5,
        },
        {"prompt": "Bye", "system_prompt": RULES, "prompt_tokens_count": 100, "output_tokens_count": 3},
    ]
    if form == "csv":
        head = ",".join(rows[0])
        (tmp_path / "d").write_text("\n".join([head, *(",".join(map(str, row.values())) for row in rows)]))
    else:
        write(tmp_path / "d", *rows)
    one, other = only_turns(read_trace(tmp_path / "d"))
    assert (one[:2], other[:2]) == ((200, 5), (100, 3))
    assert shared_blocks(one, other) == 100 // 16


def test_aiperfs_turns_hold_what_was_said_before(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "text": RULES},
        {"text": "What is a fairlead?" * 10, "output_length": 50},
        {"text": "Give an example.", "delay": 250, "output_length": 20},
    ]
    path = write(tmp_path / "a.jsonl", {"session_id": "chat_1", "turns": turns}, {"turns": turns[1:]})
    trace = read_trace(path)
    one, other = check_trace(trace)
    told = [(turn.output_tokens, turn.after, turn.delay_us) for turn in one.turns]
    assert told == [(50, -1, 0), (20, 0, 250_000)]
    assert quotes(one.turns[1], one.turns[0])
    assert quotes(other.turns[1], other.turns[0])
    assert shared_blocks(one.turns[0], other.turns[0]) == 0
    assert trace.understood == "AIPerf input: 4 requests, 2 sessions, no clients named, no arrival times"


def test_aiperfs_single_turns_come_at_their_times(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"text": RULES, "timestamp": 1000, "output_length": 5},
        {"texts": [RULES, "more"], "timestamp": 1500.5, "output_length": 6},
    )
    trace = read_trace(path)
    assert [session.at for session in trace.sessions()] == [0, 500_500]
    assert trace.understood.endswith("arrivals in milliseconds")
    one, other = only_turns(trace)
    assert shared_blocks(one, other) == 10


def test_aiperfs_messages_are_whole_or_what_is_new(tmp_path: Path) -> None:
    first = [{"role": "user", "content": RULES}]
    history = [*first, {"role": "assistant", "content": "x" * 400}, {"role": "user", "content": "And?"}]
    whole = [
        {"session_id": "w", "messages": first, "output_length": 100, "timestamp": 0},
        {"session_id": "w", "messages": history, "output_length": 30, "timestamp": 2000},
    ]
    (session,) = check_trace(read_trace(write(tmp_path / "w.jsonl", *whole)))
    assert shared_blocks(*session.turns) == len(session.turns[0].keys)
    assert session.turns[1].delay_us == 2_000_000
    new = [{**row, "message_mode": "delta"} for row in whole]
    new[1]["messages"] = history[-1:]
    (session,) = check_trace(read_trace(write(tmp_path / "d.jsonl", *new)))
    assert quotes(session.turns[1], session.turns[0])


def test_aiperfs_inputs_json_has_sessions_of_payloads(tmp_path: Path) -> None:
    payload = {"messages": [{"role": "user", "content": RULES}], "max_completion_tokens": 9}
    sessions = [("a", [payload, payload]), ("b", [payload])]
    found = {"data": [{"session_id": name, "payloads": payloads} for name, payloads in sessions]}
    (tmp_path / "inputs.json").write_text(json.dumps(found, indent=2))
    trace = read_trace(tmp_path / "inputs.json")
    assert [len(session.turns) for session in check_trace(trace)] == [2, 1]
    assert reached(trace) == {9}


def reached(trace: Trace) -> set[int]:
    return {turn.output_tokens for session in trace.sessions() for turn in session.turns}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (batch(1, "x", max_tokens=-1), "negative"),
        (batch(1, "x", max_tokens=10**6), "beyond any answer"),
        (batch(1, "x", messages="hi"), "messages is no list"),
        (batch(1, "x", messages=[{"content": "hi"}]), "message 0 has no role"),
        (batch(1, "x", messages=[{"role": "user", "content": 5}]), "a text is expected"),
        (batch(1, "x") | {"body": None}, "body is no object"),
        ({"turns": []}, "no list of turns"),
        ({"turns": ["hi"]}, "turn 0 is no object"),
        ({"turns": [{"text": "hi", "delay": -1}]}, "delay is -1, negative"),
    ],
)
def test_a_bad_line_is_named(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=f"line 1: .*{says}"):
        read_trace(write(tmp_path / "t.jsonl", row))
