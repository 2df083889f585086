"""kv-cache-tester's sessions: local ids, shared beginnings, answers that come back, sub-agents."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.trace.model import TraceError
from fairlead.trace.reading import read_trace
from fairlead.trace.spans import common_prefix, cut_spans
from tests.trace.shapes import check_trace, quotes, shared_blocks


def request(t: float, prompt: int, out: int, ids: range | list[int], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": prompt, "out": out, "hash_ids": list(ids), **more}


def session(*requests: dict[str, Any], tools: int = 0, system: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": "x", "block_size": 64, "hash_id_scope": "local", "tool_tokens": tools, "system_tokens": system,
        "requests": list(requests), **more,
    }  # fmt: skip


def folder(path: Path, *sessions: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for number, content in enumerate(sessions):
        (path / f"trace_{number:04}.json").write_text(json.dumps(content))
    return path


def test_a_request_follows_the_answer_before_it_by_its_think_time(tmp_path: Path) -> None:
    requests = (
        request(0, 640, 100, range(10), api_time=3.0, think_time=0.0),
        request(20, 1280, 64, range(20), think_time=12.5, api_time=4.0),
        request(50, 1344, 1, range(21)),
        request(1000, 1344, 1, range(21), think_time=900.0),
    )
    trace = read_trace(folder(tmp_path / "s", session(*requests)))
    (only,) = check_trace(trace)
    assert [(turn.after, turn.delay_us) for turn in only.turns] == [
        (-1, 0),
        (0, 12_500_000),
        (1, 26_000_000),  # not stated: 50 s - 20 s - 4 s of answering
        (2, 60_000_000),
    ]
    assert only.name == "trace_0000"
    assert any("think times cut at 60 s (1 of 4)" in label for label in trace.labels)
    (raw,) = read_trace(tmp_path / "s", max_think_s=0).sessions()
    assert raw.turns[3].delay_us == 900_000_000


def test_an_answer_comes_back_in_the_next_prompt_only_if_it_fits_there(tmp_path: Path) -> None:
    requests = (
        request(0, 650, 200, range(10)),  # 850 tokens afterwards: 13 blocks
        request(1, 960, 100, range(15)),
        request(2, 1000, 10, range(15)),  # too short to hold that answer
        request(3, 640, 10, range(100, 110)),  # a new context
    )
    ((a, b, c, d),) = [s.turns for s in check_trace(read_trace(folder(tmp_path / "s", session(*requests))))]
    assert list(a.output_keys) == list(b.keys[10:13])
    assert quotes(b, a)
    assert [len(turn.output_keys) for turn in (b, c, d)] == [0, 0, 0]
    assert shared_blocks(c, d) == 0


def test_sessions_share_what_their_counts_say_and_nothing_else(tmp_path: Path) -> None:
    first = session(request(0, 640, 1, range(10)), tools=256, system=128)
    same = session(request(0, 640, 1, range(10)), tools=256, system=128)
    tools = session(request(0, 640, 1, range(10)), tools=256, system=192)
    other = session(request(0, 640, 1, range(10)), tools=320, system=128)
    a, b, c, d = (
        s.turns[0] for s in check_trace(read_trace(folder(tmp_path / "s", first, same, tools, other)))
    )
    assert [shared_blocks(a, x) for x in (b, c, d)] == [6, 4, 0]


def test_ids_of_global_scope_are_shared(tmp_path: Path) -> None:
    both = [session(request(0, 640, 1, range(10)), hash_id_scope="global") for _ in range(2)]
    a, b = (s.turns[0] for s in check_trace(read_trace(folder(tmp_path / "s", *both))))
    assert shared_blocks(a, b) == 10


def test_a_sub_agent_starts_after_the_request_before_it_and_runs_beside_its_parent(tmp_path: Path) -> None:
    agent = {
        "t": 8.0, "type": "subagent", "tool_tokens": 64, "system_tokens": 0,
        "requests": [request(0, 128, 5, [50, 51]), request(2, 192, 5, [50, 51, 52], think_time=1.0)],
    }  # fmt: skip
    main = session(
        request(0, 640, 1, range(10), api_time=3.0), agent, request(9, 704, 1, range(11), think_time=4.0)
    )
    (only,) = check_trace(read_trace(folder(tmp_path / "s", main)))
    assert [(turn.prompt_tokens, turn.after, turn.delay_us) for turn in only.turns] == [
        (640, -1, 0),
        (128, 0, 5_000_000),
        (192, 1, 1_000_000),
        (704, 0, 4_000_000),
    ]


def test_a_tar_archive_and_a_folder_give_the_same_sessions(tmp_path: Path) -> None:
    contents = [session(request(0, 640 + i, 1, range(10)), tools=128) for i in range(5)]
    plain = folder(tmp_path / "s", *contents)
    (plain / "README.md").write_text("not a session")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number in (3, 1, 4, 0, 2):
            name = f"trace_{number:04}.json"
            data = (plain / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    one, other = read_trace(plain), read_trace(tmp_path / "s.tar")
    assert check_trace(one) == check_trace(other)
    assert [s.turns[0].prompt_tokens for s in one.sessions()] == [640, 641, 642, 643, 644]


def test_session_starts_are_made_up_by_rate_and_seed(tmp_path: Path) -> None:
    path = folder(tmp_path / "s", *(session(request(0, 64, 1, [1])) for _ in range(30)))
    starts = [s.at for s in read_trace(path, sessions_per_s=2.0).sessions()]
    assert starts == [s.at for s in read_trace(path, sessions_per_s=2.0).sessions()]
    assert starts != [s.at for s in read_trace(path, sessions_per_s=2.0, seed=2).sessions()]
    slow = read_trace(path, sessions_per_s=1.0)
    assert [s.at for s in slow.sessions()] == pytest.approx([2 * at for at in starts], abs=2)
    assert any("synthetic: Poisson, 1 sessions/s, seed 1" in label for label in slow.labels)


def test_faults_name_session_and_request(tmp_path: Path) -> None:
    bad = folder(tmp_path / "bad", session(request(0, 64, 1, [1]), {"t": 1.0, "in": 5}))
    with pytest.raises(TraceError, match="trace_0000: request 1: out is missing"):
        read_trace(bad)
    with pytest.raises(TraceError, match=r"trace_0000: request 1: think_time is -1, negative"):
        read_trace(
            folder(tmp_path / "neg", session(request(0, 64, 1, [1]), request(1, 64, 1, [1], think_time=-1.0)))
        )
    with pytest.raises(TraceError, match=r"trace_0001.json: block_size is 32, other sessions have 64"):
        read_trace(
            folder(
                tmp_path / "mix",
                session(request(0, 64, 1, [1])),
                session(request(0, 64, 1, [1]), block_size=32),
            )
        )
    cut = folder(tmp_path / "cut", session(request(0, 64, 1, [1])), session())
    (cut / "trace_0001.json").write_text('{"block_size": 64, "requests": [')
    with pytest.raises(TraceError, match=r"trace_0001.json: .*truncated"):
        read_trace(cut)


def test_requests_out_of_order_are_sorted(tmp_path: Path) -> None:
    mixed = session(request(5, 128, 1, [1, 2]), request(0, 64, 1, [1]))
    trace = read_trace(folder(tmp_path / "s", mixed))
    assert [turn.prompt_tokens for turn in check_trace(trace)[0].turns] == [64, 128]
    assert [repair.rule for repair in trace.repairs] == ["requests out of order: sorted"]


def test_a_context_that_returns_to_an_old_branch_finds_its_keys_again(tmp_path: Path) -> None:
    branches = session(
        request(0, 192, 1, [1, 2, 3]), request(1, 192, 1, [1, 8, 9]), request(2, 256, 1, [1, 2, 3, 4])
    )
    (a, b, c) = check_trace(read_trace(folder(tmp_path / "s", branches)))[0].turns
    assert (shared_blocks(a, b), shared_blocks(a, c)) == (1, 3)


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_the_common_prefix_is_what_a_walk_finds(one: list[int], other: list[int]) -> None:
    walked = 0
    while walked < min(len(one), len(other)) and one[walked] == other[walked]:
        walked += 1
    assert common_prefix(one, other) == walked


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 30), st.integers(0, 30))
def test_cutting_spans_is_slicing_what_they_hold(sizes: list[int], start: int, stop: int) -> None:
    spans = [(100 * i, 100 * i + size) for i, size in enumerate(sizes)]

    def held(spans: list[tuple[int, int]]) -> list[int]:
        return [at for first, last in spans for at in range(first, last)]

    assert held(cut_spans(spans, start, stop)) == held(spans)[start:stop]
    assert all(first < last for first, last in cut_spans(spans, start, stop))
