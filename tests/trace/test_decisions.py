"""The decision log: its format, its files, and what becomes of them."""

import os
import stat
import threading
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core import events as ev
from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reasons, Reject
from fairlead.core.model import Limits, Request
from fairlead.core.ordering import ORDERINGS
from fairlead.core.params import PolicyError
from fairlead.core.routing import POLICIES
from fairlead.trace import decisions
from fairlead.trace.decision_files import DecisionLog, recording
from fairlead.trace.decision_reader import LogReader
from fairlead.trace.decisions import LogError, Setup, decode, decode_outcome, encode, encode_outcome
from tests.core.driver import WEIGHTS, make_dispatcher


def setup() -> Setup:
    return Setup.of(make_dispatcher(weights=WEIGHTS), "marginal", "dlpm", 0)


def ticks(log: DecisionLog, count: int, start: int = 0) -> None:
    for at in range(start, start + count):
        log.add(ev.Tick(at), ())


def written(path: Path, count: int = 10, **options: int) -> Path:
    log = DecisionLog(path, setup(), background=False, **options)
    ticks(log, count)
    log.close()
    return path


def times(path: Path) -> list[int]:
    return [entry.event.at for entry in LogReader(path)]


# --- records ---------------------------------------------------------------------------------------

INTEGERS = st.integers(0, 2**62)
KEYS = st.lists(st.integers(0, 2**60 - 1), max_size=5)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
MAYBE = st.none() | st.integers(0, 2**31)
REQUESTS = st.builds(
    Request, INTEGERS, TEXT, INTEGERS, KEYS, st.integers(1, 64) | st.floats(0.1, 64), MAYBE, TEXT, INTEGERS,
    st.booleans(), st.integers(1, 2**31), st.booleans(),
)  # fmt: skip
LIMITS = st.builds(Limits, INTEGERS, INTEGERS, INTEGERS)
EVENTS = {
    ev.Arrived: st.builds(ev.Arrived, INTEGERS, REQUESTS),
    ev.FirstToken: st.builds(ev.FirstToken, INTEGERS, INTEGERS),
    ev.Progressed: st.builds(ev.Progressed, INTEGERS, INTEGERS, INTEGERS),
    ev.Finished: st.builds(ev.Finished, INTEGERS, INTEGERS, MAYBE, MAYBE, MAYBE),
    ev.Failed: st.builds(ev.Failed, INTEGERS, INTEGERS, st.booleans(), TEXT),
    ev.Refused: st.builds(ev.Refused, INTEGERS, INTEGERS, INTEGERS, TEXT),
    ev.Cancelled: st.builds(ev.Cancelled, INTEGERS, INTEGERS, TEXT),
    ev.WorkerUp: st.builds(ev.WorkerUp, INTEGERS, TEXT, LIMITS, st.booleans()),
    ev.WorkerDown: st.builds(ev.WorkerDown, INTEGERS, TEXT, TEXT, st.booleans()),
    ev.WorkerGone: st.builds(ev.WorkerGone, INTEGERS, TEXT),
    ev.WorkerChanged: st.builds(ev.WorkerChanged, INTEGERS, TEXT, st.none() | LIMITS, MAYBE, MAYBE),
    ev.CacheStored: st.builds(ev.CacheStored, INTEGERS, TEXT, KEYS, MAYBE),
    ev.CacheEvicted: st.builds(ev.CacheEvicted, INTEGERS, TEXT, KEYS),
    ev.CacheCleared: st.builds(ev.CacheCleared, INTEGERS, TEXT, st.booleans()),
    ev.Tick: st.builds(ev.Tick, INTEGERS),
}
SLOTS = st.lists(st.integers(0, 99), max_size=4)
REASONS = st.builds(Reasons, TEXT, st.lists(NUMBERS | st.just(inf), max_size=4), SLOTS, INTEGERS, NUMBERS)
COMMANDS = {
    Dispatch: st.builds(Dispatch, INTEGERS, TEXT, INTEGERS, REASONS),
    Reject: st.builds(Reject, INTEGERS, TEXT, TEXT, INTEGERS),
    Fail: st.builds(Fail, INTEGERS, TEXT),
    Cancel: st.builds(Cancel, INTEGERS, TEXT),
}


def test_the_log_knows_every_event_and_command_with_all_their_fields() -> None:
    assert set(EVENTS) == set(get_args(ev.Event))
    assert set(COMMANDS) == set(get_args(Command))
    for logged, real in (
        (decisions._Request, Request), (decisions._Arrived, ev.Arrived), (decisions._Reasons, Reasons),
        (decisions._CacheStored, ev.CacheStored), (decisions._CacheEvicted, ev.CacheEvicted),
    ):  # fmt: skip
        assert logged._fields == real._fields


@given(event=st.one_of(*EVENTS.values()), commands=st.lists(st.one_of(*COMMANDS.values()), max_size=3))
def test_a_record_is_read_as_it_was_written(event: ev.Event, commands: list[Command]) -> None:
    line = encode([(event, commands)])
    assert line.count(b"\n") == 1
    got, outcome = decode(line)
    assert (type(got), repr(got)) == (type(event), repr(event)), "repr tells 1 from 1.0"
    assert outcome == encode_outcome(commands)
    assert repr(list(decode_outcome(outcome))) == repr(commands)


def test_a_record_can_be_read_by_eye() -> None:
    request = Request(7, "ann", 33, [1, 2], 16, None, "s", 5, True)
    reasons = Reasons("lmetric", (3.5, inf), (0, 1), 16, -4)
    assert encode([(ev.Arrived(5, request), [Dispatch(7, "w1", 1, reasons)]), (ev.Tick(6), ())]) == (
        b'["Arrived",[5,[7,"ann",33,"AQAAAAAAAAACAAAAAAAAAA==",16,null,"s",5,true,1,true]],'
        b'[["Dispatch",7,"w1",1,["lmetric",[3.5,null],[0,1],16,-4]]]]\n'
        b'["Tick",[6]]\n'
    )


def test_a_refusal_is_recorded_and_passed_on(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d", setup(), background=False)

    def step(event: ev.Event) -> list[Command]:
        raise KeyError("w1")

    with pytest.raises(KeyError):
        recording(step, log)(ev.Tick(3))
    log.close()
    (entry,) = LogReader(tmp_path / "d")
    assert decode_outcome(entry.outcome) == "KeyError: 'w1'"


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[\n", b'["Tock",[1]]\n', b'["Tick",["x"]]\n', b'["Tick"]\n', b"\xff\n"]
)
def test_a_line_that_is_no_record_is_refused(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path / "d", 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(LogError, match="line 3 is no record"):
        times(path)


# --- what a dispatcher is made from ----------------------------------------------------------------


@pytest.mark.parametrize("routing", POLICIES.names())
@pytest.mark.parametrize("ordering", ORDERINGS.names())
def test_a_setup_makes_the_dispatcher_again(routing: str, ordering: str) -> None:
    made = Setup.of(make_dispatcher(routing, ordering, weights=WEIGHTS), routing, ordering, 5)
    again = made.dispatcher()
    assert Setup.of(again, routing, ordering, 5) == made
    assert again.routing.context.rng.getstate() == make_dispatcher(seed=5).routing.context.rng.getstate()  # type: ignore[attr-defined]


def test_a_setup_holds_parameters_that_were_not_given() -> None:
    made = Setup.of(make_dispatcher(), "marginal", "dlpm:quantum=7", 0)
    assert made.ordering.params == {**ORDERINGS.resolve("dlpm"), "quantum": 7}


def test_a_policy_with_parameters_that_exclude_each_other_is_made_again() -> None:
    spec = "linear:preset=llm-d,kv_weight=9"
    made = Setup.of(make_dispatcher(), spec, "fcfs", 0).dispatcher()
    assert made.routing.values == POLICIES.resolve("linear", {"preset": "llm-d", "kv_weight": 9})  # type: ignore[attr-defined]


def test_what_this_version_does_not_have_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "d")
    text = path.read_text()
    for old, new, error, word in (
        ('["marginal",', '["magic",', PolicyError, "magic"),
        ('"quantum":', '"quantity":', PolicyError, "quantity"),
        ('"max_clients":', '"max_planets":', LogError, "max_planets"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(error, match=word):
            LogReader(path).header.setup.dispatcher()
    path.write_text(text.replace('decision_log":1', 'decision_log":2'))
    with pytest.raises(LogError, match="version 2; this fairlead reads version 1"):
        LogReader(path)


# --- files -----------------------------------------------------------------------------------------


def test_a_thread_writes_the_same_as_the_caller(tmp_path: Path) -> None:
    written(tmp_path / "a", 1000)
    log = DecisionLog(tmp_path / "b", setup())
    ticks(log, 1000)
    log.close()
    rest = [(tmp_path / name).read_bytes().partition(b"\n")[2] for name in "ab"]
    assert rest[0] == rest[1]
    assert rest[0].count(b"\n") == 1000


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "d", 2000, max_bytes=2**14)
    for part in LogReader(path).paths:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600


@pytest.mark.parametrize("files", [1, 2, 5])
def test_files_are_bounded_in_size_and_number(tmp_path: Path, files: int) -> None:
    path = written(tmp_path / "d", 5000, max_bytes=4096, files=files)
    found = sorted(tmp_path.iterdir())
    assert len(found) == files
    assert all(file.stat().st_size <= 4096 for file in found)
    log = LogReader(path)
    assert [p.name for p in log.paths] == [*[f"d.{n}" for n in range(files - 1, 0, -1)], "d"]
    assert log.missing > 0
    assert times(path) == list(range(log.missing, 5000)), "what is left is whole and in order"


def test_any_file_of_a_run_stands_for_all_of_them(tmp_path: Path) -> None:
    path = written(tmp_path / "d", 500, max_bytes=4096, files=9)
    assert len(LogReader(path).paths) > 2
    for part in LogReader(path).paths:
        assert times(part) == list(range(500))


def test_a_record_larger_than_a_file_gets_one_of_its_own(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d", setup(), max_bytes=4096, files=9, background=False)
    ticks(log, 3)
    log.add(ev.CacheEvicted(3, "w", range(2000)), ())
    ticks(log, 3, 4)
    log.close()
    assert times(tmp_path / "d") == list(range(7))
    assert len(LogReader(tmp_path / "d").paths) == 3


def test_runs_in_one_file_are_kept_apart(tmp_path: Path) -> None:
    """A restart rotates; each run is read alone, whole if it is still there."""
    path = written(tmp_path / "d", 20)
    written(path, 30)
    assert times(path) == list(range(30))
    assert times(tmp_path / "d.1") == list(range(20))


@pytest.mark.parametrize("name", ["d", "d.1", "d.3"])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("precious\n")
    with pytest.raises(OSError, match="in the way of the decision log"):
        DecisionLog(tmp_path / "d", setup(), files=4)
    assert path.read_text() == "precious\n"
    (tmp_path / "d.4").write_text("precious\n")
    if name != "d":
        path.unlink()
        written(tmp_path / "d", 2000, max_bytes=4096, files=4)
        assert (tmp_path / "d.4").read_text() == "precious\n", "beyond the names of the log"


def test_a_log_in_use_is_not_taken_over(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d", setup())
    with pytest.raises(OSError, match="written by another process"):
        DecisionLog(tmp_path / "d", setup())
    ticks(log, 5)
    log.close()
    assert times(tmp_path / "d") == list(range(5))


# --- what goes wrong -------------------------------------------------------------------------------


def test_a_record_cut_off_by_a_crash_is_left_out_and_told(tmp_path: Path) -> None:
    path = written(tmp_path / "d", 500, max_bytes=4096, files=9)
    whole = path.read_bytes()
    for cut in (1, 5):
        path.write_bytes(whole[:-cut])
        log = LogReader(path)
        assert [entry.event.at for entry in log] == list(range(499))
        assert log.truncated == f"{path} line {len(whole.splitlines())}"
    path.write_bytes(whole)
    log = LogReader(path)
    assert len(list(log)) == 500
    assert not log.truncated
    before = tmp_path / "d.1"
    before.write_bytes(before.read_bytes()[:-3])
    with pytest.raises(LogError, match="cut off, and more files follow"):
        times(path)


def test_a_hole_between_files_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "d", 500, max_bytes=4096, files=9)
    (tmp_path / "d.1").rename(tmp_path / "x")
    with pytest.raises(LogError, match="of the run is missing"):
        LogReader(path)
    lines = (tmp_path / "x").read_bytes().splitlines(keepends=True)
    (tmp_path / "d.1").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(LogError, match="begins at record"):
        times(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hello", b'{"fairlead_decision_log":', b'{"fairlead_decision_log":1}\n']
)
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d"
    path.write_bytes(content)
    with pytest.raises(LogError):
        LogReader(path)


def test_a_record_that_cannot_be_written_ends_the_log(tmp_path: Path) -> None:
    told: list[str] = []
    log = DecisionLog(tmp_path / "d", setup(), on_failure=told.append)
    ticks(log, 10)
    log.flush()
    log.add(ev.CacheEvicted(10, "w", [-1]), ())
    ticks(log, 300, 11)
    log.close()
    assert len(told) == 1
    assert "cannot be encoded" in told[0]
    assert times(tmp_path / "d") == list(range(10))


def test_a_disk_that_is_full_ends_the_log_and_nothing_else(tmp_path: Path) -> None:
    told: list[str] = []
    log = DecisionLog(tmp_path / "d", setup(), on_failure=told.append)
    log._files._file.close()
    log._files._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")
    ticks(log, 20_000)
    log.close()
    assert len(told) == 1
    assert "No space left" in told[0]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_not_a_file_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A device that was renamed away would be missed."""
    make(tmp_path / "d")
    with pytest.raises(OSError, match="needs a file"):
        DecisionLog(tmp_path / "d", setup())
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def drained(log: DecisionLog) -> list[tuple[bytearray, int]]:
    return [log._chunks.get_nowait() for _ in range(log._chunks.qsize())]  # type: ignore[misc]


def test_a_disk_that_is_too_slow_ends_the_log_before_memory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead.trace.decision_files._MOST_BEHIND", 10_000)
    monkeypatch.setattr("fairlead.trace.decision_files._CHUNK", 2000)
    told: list[str] = []
    go_on = threading.Event()
    log = DecisionLog(tmp_path / "d", setup(), on_failure=told.append)
    monkeypatch.setattr(log._files, "write", lambda lines, records: go_on.wait(20))
    ticks(log, 5000)
    assert len(log._chunk) + len(log._pending) < 2000
    assert len(told) == 1
    assert "does not keep up" in told[0]
    assert sum(len(chunk[0]) for chunk in drained(log)) <= 10_000
    go_on.set()
    log.close()
