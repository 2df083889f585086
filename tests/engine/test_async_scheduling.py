"""Steps that are scheduled while the one before them runs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.model import RequestId
from fairlead.engine.model import Engine
from fairlead.simulate.world.enginerun import IDLE, EngineRun
from tests.engine.test_model import JOBS, engine_of, job, jobs_of, run

RUNS = settings(max_examples=60, deadline=None)


def ahead(**options) -> Engine:
    return engine_of(**{"blocks": 64, "budget": 64, "async_scheduling": True, **options})


def admitted(engine: Engine) -> list[RequestId]:
    result = engine.step(0)
    return [admission.rid for admission in result.admitted] if result else []


def test_who_comes_during_a_step_is_admitted_by_the_step_after_the_next() -> None:
    engine = ahead()
    job(1, 8, 9).submit(engine)
    assert admitted(engine) == [1]
    job(2, 8, 9, first=2).submit(engine)
    assert engine.load.waiting == 1
    assert admitted(engine) == []
    assert admitted(engine) == [2]


def test_who_comes_to_an_idle_engine_does_not_wait() -> None:
    engine = ahead()
    job(1, 8, 2).submit(engine)
    run(engine)
    job(2, 8, 2, first=2).submit(engine)
    assert admitted(engine) == [2]


def test_who_comes_during_the_last_step_does_not_wait_either() -> None:
    """Nothing could be scheduled in advance, so the next step is scheduled when the last one has ended."""
    engine = ahead()
    job(1, 8, 1).submit(engine)
    assert admitted(engine) == [1]
    job(2, 8, 1, first=2).submit(engine)
    assert admitted(engine) == [2]


def test_a_place_in_the_batch_is_free_one_step_after_its_request_ended() -> None:
    engine = ahead(seqs=2)
    for rid, output in ((1, 2), (2, 9), (3, 9)):
        job(rid, 8, output, first=rid).submit(engine)
    assert admitted(engine) == [1, 2]
    result = engine.step(0)
    assert result.finished == [1]
    assert (engine.load.running, engine.load.waiting) == (1, 1)
    assert admitted(engine) == []
    engine.check()
    assert admitted(engine) == [3]


def test_blocks_of_an_ended_request_go_first_when_there_are_none() -> None:
    """Two grow in 6 blocks. The younger ends when the older needs the seventh, and nobody is preempted."""
    engine = ahead(blocks=6, seqs=2, budget=32)
    for rid, output in ((1, 12), (2, 5)):
        job(rid, 8, output, first=rid).submit(engine)
    results = run(engine)
    assert [rid for result in results for rid in result.preempted] == []
    assert [rid for result in results for rid in result.finished] == [2, 1]
    engine.check()
    assert engine.pool.used == 0


def test_a_request_can_be_cancelled_before_the_engine_looked_at_it() -> None:
    engine = ahead()
    job(1, 8, 3).submit(engine)
    engine.step(0)
    job(2, 8, 3, first=2).submit(engine)
    assert engine.cancel(2)
    assert 2 not in engine
    engine.check()
    assert [rid for result in run(engine) for rid in result.finished] == [1]


def story(
    drawn, arrivals: list[int], *, fast_forward: bool, in_order: bool = False, **options
) -> list[tuple[int, list[int], list[int], list[int]]]:
    """Return when each first token came, each end and, if told of, each eviction, in virtual time."""
    running = EngineRun(ahead(**options), fast_forward=fast_forward, in_order=in_order)
    coming = sorted(zip(arrivals, jobs_of(drawn), strict=True), key=lambda pair: pair[0])
    told = []
    while coming or running.wake_us != IDLE:
        if coming and (running.wake_us == IDLE or coming[0][0] <= running.wake_us):
            now, each = coming.pop(0)
            running.receive(now)
            each.submit(running.engine, now)
            running.start(now)
            continue
        now = running.wake_us
        result = running.wake(now)
        if result.first or result.finished or result.evicted:
            told.append((now, sorted(result.first), sorted(result.finished), sorted(result.evicted)))
    running.engine.check()
    return told


@RUNS
@given(
    drawn=JOBS,
    blocks=st.integers(16, 40),
    seqs=st.integers(1, 6),
    budget=st.integers(6, 40),
    data=st.data(),
)
def test_many_steps_at_once_are_the_same_as_one_by_one(drawn, blocks, seqs, budget, data):
    moments = st.lists(st.integers(0, 200_000), min_size=len(drawn), max_size=len(drawn))
    arrivals = sorted(data.draw(moments))
    options = {"blocks": blocks, "seqs": seqs, "budget": budget}
    one_by_one = story(drawn, arrivals, fast_forward=False, **options)
    assert story(drawn, arrivals, fast_forward=True, **options) == one_by_one
    assert sum(len(first) for _, first, _, _ in one_by_one) == len(drawn)
    # Where nobody is told of blocks, arrivals need not end what is under way.
    options["list_blocks"] = False
    one_by_one = story(drawn, arrivals, fast_forward=False, **options)
    assert story(drawn, arrivals, fast_forward=True, in_order=True, **options) == one_by_one
    assert sum(len(finished) for _, _, finished, _ in one_by_one) == len(drawn)
