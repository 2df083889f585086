"""Mooncake's JSON lines and LLMServingSim's: lengths, block ids, arrival times."""

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.trace.grid import grid_us, spread_evenly
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reading import read_trace
from tests.trace.shapes import check_trace, shared_blocks


def line(timestamp: float, prompt: int, output: int, ids: list[int]) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": prompt, "output_length": output, "hash_ids": ids}


def write(path: Path, rows: list[dict[str, Any]], end: str = "\n") -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return path


def many(count: int) -> list[dict[str, Any]]:
    """Sound lines, enough for a single broken one to be below the limit."""
    return [line(10 * i, 600, 5, [0, 1000 + i]) for i in range(count)]


def rules(trace: Trace) -> dict[str, int]:
    return {repair.rule: repair.count for repair in trace.repairs}


def test_lengths_blocks_and_milliseconds_of_a_mooncake_file(tmp_path: Path) -> None:
    rows = [line(1000, 1100, 7, [0, 1, 2]), line(1500, 1024, 9, [0, 5]), line(2500, 300, 1, [6])]
    trace = read_trace(write(tmp_path / "t.jsonl", rows))
    first, second, third = check_trace(trace)
    assert (trace.block_tokens, trace.requests, trace.duration_us) == (512, 3, 1_500_000)
    assert [s.at for s in (first, second, third)] == [0, 500_000, 1_500_000]
    assert [len(s.turns[0].keys) for s in (first, second, third)] == [2, 2, 0]  # partial blocks have no key
    assert shared_blocks(first.turns[0], second.turns[0]) == 1
    assert [(s.turns[0].prompt_tokens, s.turns[0].output_tokens) for s in (first, second, third)] == [
        (1100, 7),
        (1024, 9),
        (300, 1),
    ]
    assert trace.repairs == ()


def test_seconds_and_blocks_of_16_tokens_are_recognised(tmp_path: Path) -> None:
    rows = [line(0.25, 40, 3, [0, 1]), line(0.75, 33, 3, [0, 2])]
    trace = read_trace(write(tmp_path / "t.jsonl", rows))
    assert (trace.block_tokens, trace.duration_us) == (16, 500_000)
    one, other = check_trace(trace)
    assert shared_blocks(one.turns[0], other.turns[0]) == 1


def test_an_id_behind_two_prefixes_gets_a_key_for_each(tmp_path: Path) -> None:
    rows = [line(0, 1024, 1, [1, 9]), line(1, 1024, 1, [2, 9]), line(2, 1024, 1, [1, 9])]
    trace = read_trace(write(tmp_path / "t.jsonl", rows))
    one, two, three = (session.turns[0].keys for session in check_trace(trace))
    assert one == three
    assert one[1] != two[1]
    (repair,) = trace.repairs
    assert (repair.count, repair.example) == (1, "line 2: id 9 follows two different prefixes")


def test_unsorted_arrivals_are_sorted_and_counted(tmp_path: Path) -> None:
    rows = [line(5, 10, 1, [0]), line(3, 20, 1, [0]), line(9, 30, 1, [0])]
    trace = read_trace(write(tmp_path / "t.jsonl", rows))
    assert [(s.at, s.turns[0].prompt_tokens) for s in check_trace(trace)] == [
        (0, 20),
        (2_000, 10),
        (6_000, 30),
    ]
    (repair,) = trace.repairs
    assert (repair.count, repair.example) == (1, "line 2: 0.002 s before its predecessor")


def test_zero_lengths_count_as_one_token(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "t.jsonl", [line(0, 0, 0, []), line(1, 5, 1, [3])]))
    assert check_trace(trace)[0].turns[0][:2] == (1, 1)
    assert rules(trace) == {"lengths of 0: counted as 1 token": 2}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"input_length": -3}, "input_length is -3, negative"),
        ({"output_length": -1}, "output_length is -1, negative"),
        ({"timestamp": -5}, "timestamp is -5, negative"),
        ({"input_length": "many"}, "Expected `int`, got `str` - at `$.input_length`"),
        ({"input_length": 10**12}, "beyond any context length"),
        ({"timestamp": 1e300}, "out of range"),
        ({"hash_ids": None}, "`$.hash_ids`"),
    ],
)
def test_a_broken_line_is_left_out_below_the_limit_and_refused_above(
    tmp_path: Path, bad: dict[str, Any], says: str
) -> None:
    rows = many(200)
    rows[16] |= bad
    trace = read_trace(write(tmp_path / "t.jsonl", rows))
    assert trace.requests == 199
    (repair,) = trace.repairs
    assert (repair.rule, repair.count) == ("broken lines: left out", 1)
    assert repair.example.startswith("line 17: ")
    assert says in repair.example

    with pytest.raises(TraceError) as refused:
        read_trace(write(tmp_path / "few.jsonl", rows[10:20]), form="mooncake")
    assert "few.jsonl: line 7: " in str(refused.value)
    assert says in str(refused.value)
    assert "mend or remove" in str(refused.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    rows = many(200)
    del rows[3]["output_length"]
    (repair,) = read_trace(write(tmp_path / "t.jsonl", rows)).repairs
    assert repair.example == "line 4: Object missing required field `output_length`"


def test_a_last_line_that_breaks_off_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", many(3), end="")
    path.write_bytes(path.read_bytes()[:-9])
    trace = read_trace(path)
    assert trace.requests == 2
    assert rules(trace) == {"the last line breaks off: left out": 1}


def test_hash_ids_that_do_not_fit_the_prompt_are_mended_in_few_lines(tmp_path: Path) -> None:
    rows = many(400)
    rows[5]["hash_ids"] = [0, 1, 2, 3]
    rows[6] |= {"input_length": 2048, "hash_ids": [0]}
    rows[7] |= {"input_length": 2048, "hash_ids": [0]}
    trace = read_trace(write(tmp_path / "t.jsonl", rows))
    sessions = check_trace(trace)
    assert shared_blocks(sessions[6].turns[0], sessions[7].turns[0]) == 1
    assert rules(trace) == {
        "more hash ids than the prompt has blocks: cut off": 1,
        "fewer hash ids than full blocks: the rest shares nothing": 2,
    }


def test_a_file_with_other_blocks_is_refused_with_the_size_that_fits(tmp_path: Path) -> None:
    rows = [line(i, 64 * 4, 1, [0, 1, 2, 3]) for i in range(10)]
    path = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(TraceError, match="block_tokens=64"):
        read_trace(path)
    assert read_trace(path, block_tokens=64).block_tokens == 64


def test_arrivals_on_a_grid_are_spread_inside_each_point_and_the_label_says_so(tmp_path: Path) -> None:
    stamps = [3000 * (i // 4) - (1 if i >= 4 else 0) for i in range(60)]
    path = write(tmp_path / "t.jsonl", [line(t, 100, 1, [0]) for t in stamps])
    trace = read_trace(path)
    assert [s.at for s in check_trace(trace)] == [750_000 * i for i in range(60)]
    assert any("rounded to 3 s" in label for label in trace.labels)
    raw = read_trace(path, spread="off")
    assert [s.at for s in check_trace(raw)][:5] == [0, 0, 0, 0, 2_999_000]
    assert raw.identity != trace.identity


@given(st.lists(st.integers(0, 10**8), min_size=11, max_size=50, unique=True))
def test_a_grid_is_only_seen_where_nearly_all_times_lie_on_it(times: list[int]) -> None:
    grid = grid_us(array("q", times))
    off = [t for t in times if grid and abs(t - round(t / grid) * grid) > 5_000]
    assert len(off) <= 0.01 * len(times)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-3_000, 3_000)), min_size=1, max_size=40))
def test_spreading_keeps_every_arrival_within_its_point_and_the_order(points: list[tuple[int, int]]) -> None:
    grid = 3_000_000
    at = array("q", (max(0, point * grid + jitter) for point, jitter in points))
    spread = spread_evenly(at, grid)
    assert [time // grid for time in spread] == [round(time / grid) for time in at]
    assert len(set(spread)) == len(at)
    order = sorted(range(len(at)), key=at.__getitem__)
    assert [spread[i] for i in order] == sorted(spread)
