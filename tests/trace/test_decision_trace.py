"""A decision log as a workload."""

from pathlib import Path

import pytest

from fairlead.core import events as ev
from fairlead.core.commands import Cancel
from fairlead.core.model import Request
from fairlead.trace.decision_files import DecisionLog
from fairlead.trace.decisions import Setup
from fairlead.trace.files import sample
from fairlead.trace.model import Session, Trace, TraceError, Turn
from fairlead.trace.reading import READERS, read_trace
from tests.core.driver import make_dispatcher


def arrived(
    at: int, rid: int, client: str, prompt: int, keys: tuple[int, ...] = (), **more: object
) -> ev.Arrived:
    return ev.Arrived(at, Request(rid, client, prompt, keys, arrived_us=at, **more))  # type: ignore[arg-type]


STORY: list[ev.Event] = [
    ev.Tick(900),
    arrived(1000, 1, "ann", 40, (11, 12), max_tokens=9),
    arrived(1500, 2, "bob", 16, (21,), session="s"),
    ev.FirstToken(1600, 1),
    ev.Progressed(1700, 1, 3),
    ev.Finished(1800, 1, 43, 0, 5),  # the worker's figures win
    arrived(2000, 3, "cyd", 33, (31, 32)),  # rejected
    ev.Progressed(2100, 2, 2),
    ev.Progressed(2200, 2, 4),
    ev.Finished(2300, 2),  # no usage: what was seen
    arrived(2500, 4, "ann", 20, (41,)),
    ev.Progressed(2600, 4, 7),
    ev.Cancelled(2700, 4),
    arrived(3000, 5, "ann", 20),  # still waits at the end
]  # fmt: skip


def written(path: Path, events: list[ev.Event], max_bytes: int = 2**20, files: int = 4) -> Path:
    dispatcher = make_dispatcher(weights={"ann": 3.0, "zoe": 2.0})
    log = DecisionLog(
        path, Setup.of(dispatcher, "marginal", "dlpm", 0), max_bytes=max_bytes, files=files, background=False
    )
    for event in events:
        log.add(event, [Cancel(4, "w")] if isinstance(event, ev.Cancelled) else ())
    log.close()
    return path


def read(path: Path) -> Trace:
    assert [name for name, reader in READERS.items() if reader.sniff(sample(path))] == ["decision-log"]
    return read_trace(path)


def test_arrivals_become_sessions_with_the_lengths_that_were_seen(tmp_path: Path) -> None:
    trace = read(written(tmp_path / "d.log", STORY))
    expected = [
        Session(0, "ann", (Turn(43, 5, [11, 12], max_tokens=9),)),
        Session(500, "bob", (Turn(16, 6, [21]),), "s"),
        Session(1500, "ann", (Turn(20, 7, [41]),)),
    ]
    assert list(trace.sessions()) == expected
    assert list(trace.sessions()) == expected, "any number of times"
    assert (trace.requests, trace.duration_us, trace.block_tokens) == (3, 1500, 16)
    assert trace.clients == {"ann": 3.0, "bob": 1.0}
    assert [(r.count, r.example) for r in trace.repairs] == [(1, "request 4"), (2, "request 3 of cyd")]


def test_blocks_of_bytes_are_rounded_and_never_exceed_the_prompt(tmp_path: Path) -> None:
    """In bytes mode a block stands for an average; a trace has whole tokens, and says so."""
    events: list[ev.Event] = []
    for rid in range(10):
        events.append(arrived(rid, rid, "ann", 62, (1, 2, 3, 4), block_tokens=15.5))
        events.append(ev.Finished(rid, rid, 62, 0, 1))
    trace = read(written(tmp_path / "d.log", events))
    assert trace.block_tokens == 16
    assert any("15.5 tokens on average, taken for 16" in label for label in trace.labels)
    for session in trace.sessions():
        assert session.turns[0].keys == [1, 2, 3]


def test_equal_logs_have_equal_identities(tmp_path: Path) -> None:
    path = written(tmp_path / "d.log", STORY)
    before = read(path).identity
    assert read(path).identity == before
    assert read(written(tmp_path / "e.log", STORY[:-1])).identity != before


def test_a_log_without_its_beginning_is_still_a_workload(tmp_path: Path) -> None:
    events: list[ev.Event] = []
    for rid in range(300):
        events.append(arrived(rid, rid, "ann", 30, (1,)))
        events.append(ev.Finished(rid, rid, 30, 0, 4))
    path = written(tmp_path / "d.log", events, max_bytes=8192, files=2)
    trace = read(path)
    assert 0 < trace.requests < 300
    assert any("were rotated away" in label for label in trace.labels)
    sessions = list(trace.sessions())
    assert len(sessions) == trace.requests
    assert sessions[0].at == 0
    assert sessions[-1].at == trace.duration_us


def test_a_log_cut_off_by_a_crash_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "d.log", STORY)
    path.write_bytes(path.read_bytes()[:-4])
    trace = read(path)
    assert trace.requests == 3
    assert "breaks off" in trace.repairs[-1].rule


def test_a_log_without_any_known_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="known length"):
        read_trace(written(tmp_path / "d.log", [arrived(1, 1, "ann", 5)]), form="decision-log")
