"""Hashed traces with sessions: Qwen-Bailian's and Dynamo's form of Mooncake's; units and blocks of others."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.trace.model import TraceError
from fairlead.trace.reading import read_trace
from tests.trace.shapes import check_trace, quotes, shared_blocks


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(number: int, parent: int, at: float, prompt: int, output: int, ids: list[int]) -> dict[str, Any]:
    """A line of a Bailian trace, as its README shows it."""
    return {
        "chat_id": number, "parent_chat_id": parent, "timestamp": at, "input_length": prompt,
        "output_length": output, "type": "text", "turn": 1 if parent < 0 else 2, "hash_ids": ids,
    }  # fmt: skip


BAILIAN = [
    chat(159, -1, 61.114, 40, 20, [1, 2, 3]),
    chat(7, -1, 61.5, 32, 5, [9, 10]),
    chat(160, 159, 71.5, 80, 8, [1, 2, 4, 5, 6]),
    chat(162, 159, 80.0, 64, 8, [1, 2, 4, 11]),
    chat(161, 160, 90.0, 96, 8, [1, 2, 4, 5, 6, 7]),
    chat(200, 55, 95.0, 20, 8, [12]),
]


def test_a_bailian_trace_has_the_sessions_that_parents_make(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "qwen.jsonl", BAILIAN))
    first, second, orphan = check_trace(trace)
    assert trace.understood == (
        "Qwen-Bailian usage trace: 6 requests, 3 sessions, no clients named, 1 type, blocks of 16 tokens,"
        " arrivals in seconds"
    )
    assert (first.name, second.name, orphan.name) == ("chat 159", "chat 7", "chat 200")
    assert [(turn.prompt_tokens, turn.after, turn.delay_us) for turn in first.turns] == [
        (40, -1, 0),
        (80, 0, 10_386_000),
        (64, 0, 18_886_000),
        (96, 1, 18_500_000),
    ]
    assert trace.block_tokens == 16
    (repair,) = trace.repairs
    assert repair.example == "line 6: parent_chat_id is 55"


def test_an_answer_that_the_next_prompt_quotes_is_known(tmp_path: Path) -> None:
    first, *_ = check_trace(read_trace(write(tmp_path / "qwen.jsonl", BAILIAN)))
    asked, answered, *_ = first.turns
    assert quotes(answered, asked)
    assert shared_blocks(asked, answered) == 2
    assert len(asked.output_keys) == 60 // 16 - 40 // 16


def test_sessions_can_be_left_as_they_were_recorded(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "qwen.jsonl", BAILIAN), sessions="open")
    sessions = check_trace(trace)
    assert [(s.at, s.name, len(s.turns)) for s in sessions][:3] == [
        (0, "chat 159", 1),
        (386_000, "chat 7", 1),
        (10_386_000, "chat 159", 1),
    ]


def turn(prompt: int, output: int, ids: list[int], **more: object) -> dict[str, Any]:
    return {"input_length": prompt, "output_length": output, "hash_ids": ids, **more}


DYNAMO = [
    turn(2048, 128, [1, 2, 3, 4], session_id="a", timestamp=1000),
    turn(1024, 64, [9, 10], session_id="b", timestamp=1010),
    turn(2560, 128, [1, 2, 3, 4, 5], session_id="a", delay_ms=50),
    turn(1536, 64, [9, 10, 11], session_id="b", timestamp=1060),
    turn(3072, 1, [1, 2, 3, 4, 5, 6], session_id="a", delay=12.5),
    turn(512, 9, [1], timestamp=1100),
]


def test_turns_of_a_dynamo_session_wait_for_the_answer_and_their_delay(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "dynamo.jsonl", DYNAMO))
    a, b, alone = check_trace(trace)
    assert [(t.after, t.delay_us) for t in a.turns] == [(-1, 0), (0, 50_000), (1, 12_500)]
    assert [(t.after, t.delay_us) for t in b.turns] == [(-1, 0), (0, 50_000)]
    assert (a.at, b.at, alone.at, alone.name) == (0, 10_000, 100_000, "")
    assert trace.repairs == ()
    assert trace.understood.startswith("Mooncake JSON lines: 6 requests, 2 sessions, no clients named")
    assert any("closed loop" in label for label in trace.labels)


def test_a_later_turn_without_time_or_delay_is_named(tmp_path: Path) -> None:
    bad = [{"session_id": "a", "input_length": 5, "output_length": 1, "hash_ids": []}]
    with pytest.raises(TraceError, match=r"line 1: Object missing required field `timestamp`"):
        read_trace(write(tmp_path / "d.jsonl", bad), form="mooncake")


def test_mooncake_rows_in_seconds_stay_mooncake_rows(tmp_path: Path) -> None:
    rows = [turn(1100, 7, [0, i, -i], timestamp=i / 4) for i in range(1, 9)]
    trace = read_trace(write(tmp_path / "s.jsonl", rows))
    assert (trace.block_tokens, trace.duration_us) == (512, 1_750_000)
    assert trace.understood.endswith("blocks of 512 tokens, arrivals in seconds")
    other = read_trace(tmp_path / "s.jsonl", time_unit="ms")
    assert other.duration_us == 1_750


def test_rows_with_another_block_size_are_refused_with_the_option_that_reads_them(tmp_path: Path) -> None:
    rows = [turn(256, 7, [0, i, i, i], timestamp=i / 4) for i in range(9)]
    path = write(tmp_path / "s.jsonl", rows)
    with pytest.raises(TraceError, match=r"--option block_tokens=64"):
        read_trace(path)
    assert read_trace(path, block_tokens=64).duration_us == 2_000_000


def test_rows_without_ids_have_lengths_only(tmp_path: Path) -> None:
    rows = [{"timestamp": 1234500.0 + i / 2, "input_length": 256, "output_length": 128} for i in range(3)]
    trace = read_trace(write(tmp_path / "guidellm.jsonl", rows))
    assert trace.duration_us == 1_000_000
    assert [turn.keys for s in trace.sessions() for turn in s.turns] == [(), (), ()]


def test_prompts_of_a_session_without_ids_begin_with_what_was_said(tmp_path: Path) -> None:
    rows = [
        {"session_id": "s", "timestamp": 0, "input_length": 100, "output_length": 60},
        {"session_id": "s", "timestamp": 10, "input_length": 200, "output_length": 60},
        {"session_id": "s", "timestamp": 20, "input_length": 90, "output_length": 60},
    ]
    trace = read_trace(write(tmp_path / "s.jsonl", rows), block_tokens=16)
    (only,) = check_trace(trace)
    first, second, third = only.turns
    assert quotes(second, first)
    assert shared_blocks(second, third) == 0  # too short to hold the history
    (plain,) = read_trace(tmp_path / "s.jsonl", block_tokens=16, history="off").sessions()
    assert plain.turns[1].keys == ()


def test_milliseconds_that_make_an_absurd_rate_are_doubted(tmp_path: Path) -> None:
    rows = [turn(600, 7, [0, i], timestamp=i // 3) for i in range(99)]
    trace = read_trace(write(tmp_path / "s.jsonl", rows))
    assert any("time_unit=s" in label for label in trace.labels)


def test_turns_of_aiperf_that_state_what_is_new_are_made_whole(tmp_path: Path) -> None:
    rows = [
        turn(1100, 100, [0, 1, 2], session_id="a", timestamp=0.0),
        turn(600, 50, [10, 11], session_id="a", delay=12219.3),
        turn(300, 50, [12], session_id="a", delay=7563.0),
        turn(1100, 100, [0, 1, 5], session_id="b", timestamp=0.0),
    ]
    trace = read_trace(write(tmp_path / "dataset.jsonl", rows))
    a, b = check_trace(trace)
    assert [(t.prompt_tokens, t.after, t.delay_us) for t in a.turns] == [
        (1100, -1, 0),
        (1800, 0, 12_219_300),
        (2150, 1, 7_563_000),
    ]
    assert quotes(a.turns[1], a.turns[0])
    assert quotes(a.turns[2], a.turns[1])
    assert shared_blocks(a.turns[0], b.turns[0]) == 2
    assert "turns state what is new" in trace.understood
    plain, _ = read_trace(tmp_path / "dataset.jsonl", turns="whole").sessions()
    assert [t.prompt_tokens for t in plain.turns] == [1100, 600, 300]
    told, _ = read_trace(write(tmp_path / "d.jsonl", DYNAMO[:2]), turns="new").sessions()
    assert told.turns[0].prompt_tokens == 2048
