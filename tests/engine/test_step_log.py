"""The log of a real engine's steps, written by a scheduler that is made up here."""

import io
from pathlib import Path

import pytest

from fairlead.engine.fit_tables import read_steps
from fairlead.engine.step_log import LoggedStep, StepNotes, read_step_log
from fairlead.engine.steptime import Work


class OneRequest:
    """What an engine knows of a request."""

    def __init__(self, prompt: int) -> None:
        self.num_computed_tokens = 0
        self.num_tokens = prompt


class Scheduler:
    """Computes what the test says, and tells its notes; time is what the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.file = io.StringIO()
        self.requests: dict[str, OneRequest] = {}
        self.notes = StepNotes(self.file, lambda: self.now)

    def arrives(self, rid: str, prompt: int, cached: int = 0) -> None:
        self.requests[rid] = OneRequest(prompt)
        self.requests[rid].num_computed_tokens = cached
        self.notes.arrived(rid)

    def begins(self, **tokens: int) -> None:
        for rid, count in tokens.items():
            self.requests[rid].num_computed_tokens += count
        self.notes.scheduled(tokens, self.requests, self.now)

    def ends(self, finished: str = "", **tokens: int) -> None:
        for rid in tokens:
            request = self.requests[rid]
            request.num_tokens += request.num_computed_tokens >= request.num_tokens
        for rid in finished.split():
            del self.requests[rid]
        self.notes.ended(tokens, self.requests)

    def step(self, lasts: float, finished: str = "", **tokens: int) -> None:
        self.begins(**tokens)
        self.now += lasts
        self.ends(finished, **tokens)

    def preempts(self, rid: str) -> None:
        self.requests[rid].num_computed_tokens = 0
        self.notes.preempted(rid)


@pytest.fixture
def engine() -> Scheduler:
    return Scheduler()


def written(engine: Scheduler, folder: Path) -> list[LoggedStep]:
    path = folder / "steps.csv"
    path.write_text(engine.file.getvalue())
    return read_step_log(path)


def test_a_prompt_in_chunks_then_a_decode(engine: Scheduler, tmp_path: Path) -> None:
    engine.now = 5.0
    engine.arrives("a", 100, cached=32)
    engine.step(0.010, a=50)
    engine.step(0.008, a=18)
    engine.step(0.004, "a", a=1)
    first, second, third = written(engine, tmp_path)
    assert first == LoggedStep(
        Work(0, 0, 50, 50 * (64 + 50)), 10_000, 5e6, [("a", 5_000_000)], [("a", 32)], [], []
    )
    assert second.work == Work(0, 0, 18, 18 * (2 * 82 + 18))
    assert second.admitted == []
    assert third.work == Work(1, 100, 0, 0)
    assert third.finished == ["a"]
    assert third.step_us == pytest.approx(4_000)


def test_a_last_chunk_of_one_token_is_no_decode(engine: Scheduler, tmp_path: Path) -> None:
    engine.arrives("a", 33, cached=32)
    engine.step(0.001, a=1)
    engine.step(0.001, "a", a=1)
    assert [step.work for step in written(engine, tmp_path)] == [Work(0, 0, 1, 65), Work(1, 33, 0, 0)]


def test_time_between_steps_counts_while_there_is_work(engine: Scheduler, tmp_path: Path) -> None:
    engine.arrives("a", 10)
    engine.step(0.010, a=10)
    engine.now += 0.002  # host code
    engine.step(0.010, "a", a=1)
    engine.now += 60.0  # nothing to do
    engine.arrives("b", 10)
    engine.step(0.010, "b", b=10)
    times = [step.step_us for step in written(engine, tmp_path)]
    assert times == pytest.approx([10_000, 12_000, 10_000])


def test_a_preempted_request_is_admitted_again_and_prefills(engine: Scheduler, tmp_path: Path) -> None:
    engine.arrives("a", 10)
    engine.arrives("b", 20)
    engine.step(0.001, a=10, b=20)
    engine.preempts("b")
    engine.step(0.001, a=1)
    engine.step(0.001, "b", a=1, b=21)
    steps = written(engine, tmp_path)
    assert steps[0].admitted == [("a", 0), ("b", 0)]
    assert steps[1].preempted == ["b"]
    assert steps[1].work == Work(1, 10, 0, 0)
    assert steps[2].admitted == [("b", 0)]
    assert steps[2].work == Work(1, 11, 21, 21 * 21)


def test_a_step_may_be_scheduled_before_the_last_one_ended(engine: Scheduler, tmp_path: Path) -> None:
    """Asynchronous scheduling: rows come in order, and each lasts from one end to the next."""
    engine.arrives("a", 10)
    engine.begins(a=10)
    engine.now += 0.001
    engine.begins(a=1)
    engine.now += 0.009
    engine.ends(a=10)
    engine.now += 0.004
    engine.ends("a", a=1)
    first, second = written(engine, tmp_path)
    assert (first.work, second.work) == (Work(0, 0, 10, 100), Work(1, 10, 0, 0))
    assert first.step_us == pytest.approx(10_000)
    assert second.step_us == pytest.approx(4_000)


def test_nothing_scheduled_is_no_step(engine: Scheduler, tmp_path: Path) -> None:
    engine.arrives("a", 10)
    engine.step(0.001)
    engine.step(0.001, "a", a=10)
    (step,) = written(engine, tmp_path)
    assert step.arrived == [("a", 0)]


def test_rows_reach_the_file_when_the_engine_has_nothing_to_do(tmp_path: Path) -> None:
    engine = Scheduler()
    path = tmp_path / "steps.csv"
    with path.open("w", newline="") as file:
        engine.notes = StepNotes(file, lambda: engine.now)
        engine.arrives("a", 10)
        engine.step(0.001, "a", a=10)
        assert len(read_step_log(path)) == 1


def test_the_log_is_a_table_to_fit(engine: Scheduler, tmp_path: Path) -> None:
    engine.arrives("a", 10)
    engine.step(0.010, a=10)
    engine.step(0.003, "a", a=1)
    steps = written(engine, tmp_path)
    assert [sample.work for sample in read_steps(tmp_path / "steps.csv")] == [step.work for step in steps]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("decode_seqs,step_us\n1,2\n")
    with pytest.raises(ValueError, match="not a step log"):
        read_step_log(path)
