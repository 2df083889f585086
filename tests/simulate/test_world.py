"""The simulated world: nothing is lost, closed form equals step by step, faults end in known ways."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.keys import seed_key, token_keys
from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from fairlead.report.run import CANCELLED, DONE, FAILED, OUTCOMES, REJECTED, UNFINISHED, Requests, Run
from fairlead.simulate.runner import simulate
from fairlead.simulate.settings import ENGINE, GATEWAY, Fault, Settings
from fairlead.simulate.world import World
from fairlead.trace.generators import generate
from fairlead.trace.generators.attack import with_attacker
from fairlead.trace.model import Session, Trace, Turn

RUNS = settings(max_examples=40, deadline=None)
BLOCK = 16


def turn(content: Sequence[int], output: int, **more: Any) -> Turn:
    """Return a turn whose prompt has so many blocks' contents, and half a block more."""
    tokens = [value for value in content for _ in range(BLOCK)]
    return Turn(len(tokens) + BLOCK // 2, output, token_keys(tokens, BLOCK, seed_key("m")), **more)


def trace_of(sessions: Sequence[Session], weights: dict[str, float] | None = None) -> Trace:
    ordered = sorted(sessions, key=lambda session: session.at)
    clients = {session.client: 1.0 for session in ordered}
    return Trace(
        name="hand-made",
        block_tokens=BLOCK,
        sessions=lambda: iter(ordered),
        requests=sum(len(session.turns) for session in ordered),
        duration_us=ordered[-1].at if ordered else 0,
        clients=clients | (weights or {}),
        identity="hand-made",
    )


TURNS = st.lists(
    st.builds(
        turn,
        st.lists(st.integers(0, 2), min_size=1, max_size=12),
        st.integers(1, 90),
        delay_us=st.sampled_from([0, 0, 1_000, 400_000]),
    ),
    min_size=1,
    max_size=3,
).map(lambda turns: [each._replace(after=i - 1) for i, each in enumerate(turns)])
TRACES = st.lists(
    st.builds(Session, st.integers(0, 2_000_000), st.sampled_from("abc"), TURNS), min_size=1, max_size=25
).map(lambda sessions: trace_of(sessions, {}))
SMALL = {"kv_tokens": 40 * BLOCK, "max_num_seqs": 4, "max_num_batched_tokens": 64, "interval_us": 100_000}
ORDERS = ["fcfs", "lpm", "vtc", "dlpm:quantum=300", "dlpm:quantum=300,on_no_fit=skip"]
ENGINES = ["llama-3.1-8b-h100", "qwen3-32b-rtx-pro-6000"]
FAULTS = [(), (Fault(0, 500_000, 700_000),), (Fault(0, 300_000),)]
SETTINGS = st.builds(
    Settings,
    policy=st.sampled_from(POLICIES.names()),
    order=st.sampled_from(ORDERS),
    workers=st.integers(1, 3),
    topology=st.sampled_from([GATEWAY, ENGINE]),
    engine=st.sampled_from(ENGINES),
    exact_cache=st.booleans(),
    stale_us=st.sampled_from([0, 0, 30_000]),
    cancel_share=st.sampled_from([0.0, 0.3]),
    client_timeout_us=st.sampled_from([0, 1_500_000]),
    report_tokens=st.sampled_from([0, 7, 32]),
    faults=st.sampled_from(FAULTS),
    **{name: st.just(value) for name, value in SMALL.items()},
)


def rows(requests: Requests) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(requests, name) for name in Requests.__dataclass_fields__), strict=True))


def facts(run: Run) -> dict[str, Any]:
    """Everything that does not depend on how the time between events is passed."""
    series = run.series
    return {
        "rows": rows(run.requests),
        "service": [list(each) for each in series.service],
        "queued": [list(each) for each in series.queued],
        "kv": [list(each) for each in series.kv_used],
        "gap": run.fairness.worst_gap,
        "steps": run.steps,
        "duration": run.duration_us,
    }


@RUNS
@given(trace=TRACES, chosen=SETTINGS)
def test_closed_form_equals_step_by_step_to_the_microsecond(trace: Trace, chosen: Settings) -> None:
    worlds = [World(trace, replace(chosen, fast_forward=many)) for many in (True, False)]
    fast, slow = (facts(world.run()) for world in worlds)
    # A client that begins to wait finds the others' service as of their engines' last wake, so the measured
    # gap may differ by what was decoded since. Nothing else may.
    del fast["gap"], slow["gap"]
    assert fast == slow
    for world in worlds:
        world.dispatcher.check()


def some_world(seed: int) -> tuple[Trace, Settings]:
    """Return what the strategies above draw, a hundred times as fast."""
    draw = Random(seed)
    sessions = []
    for _ in range(draw.randint(1, 30)):
        turns = [
            turn(
                [draw.randint(0, 2) for _ in range(draw.randint(1, 12))],
                draw.randint(1, 90),
                delay_us=draw.choice([0, 0, 1_000, 400_000]),
                after=i - 1,
            )
            for i in range(draw.choice([1, 1, 2, 3]))
        ]
        at = draw.choice([0, draw.randint(0, 40_000), draw.randint(0, 2_000_000)])
        sessions.append(Session(at, draw.choice("abc"), turns))
    chosen = Settings(
        policy=draw.choice(POLICIES.names()),
        order=draw.choice(ORDERS),
        workers=draw.randint(1, 3),
        topology=draw.choice([GATEWAY, ENGINE]),
        engine=draw.choice(ENGINES),
        exact_cache=draw.random() < 0.5,
        stale_us=draw.choice([0, 0, 30_000]),
        cancel_share=draw.choice([0.0, 0.3]),
        client_timeout_us=draw.choice([0, 1_500_000]),
        report_tokens=draw.choice([0, 7, 32]),
        faults=draw.choice(FAULTS),
        **SMALL,  # type: ignore[arg-type]
    )
    return trace_of(sessions, {}), chosen


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_closed_form_equals_step_by_step_in_many_small_worlds(first: int) -> None:
    for seed in range(first, first + 50):
        trace, chosen = some_world(seed)
        fast, slow = (facts(World(trace, replace(chosen, fast_forward=many)).run()) for many in (True, False))
        del fast["gap"], slow["gap"]
        assert fast == slow, f"seed {seed}"


@RUNS
@given(trace=TRACES, chosen=SETTINGS)
def test_every_request_ends_in_one_known_way_and_nothing_is_left(trace: Trace, chosen: Settings) -> None:
    world = World(trace, chosen)
    run = world.run()
    requests = run.requests
    counts = {name: list(requests.outcome).count(i) for i, name in enumerate(OUTCOMES)}
    # With a worker that dies for good and no other, what is parked waits until its client hangs up.
    dead = chosen.workers == 1 and any(not fault.for_us for fault in chosen.faults)
    if not dead:
        assert not counts["unfinished"]
        assert len(requests) + world.clients.abandoned == trace.requests
    for row, outcome in enumerate(requests.outcome):
        if outcome == DONE:
            assert (
                requests.arrived[row] < requests.sent[row] + 1 <= requests.first[row] <= requests.ended[row]
            )
            assert 0 <= requests.cached[row] < requests.prompt[row]
            assert requests.output[row] > 0
    dispatcher = world.dispatcher
    dispatcher.check()
    assert dispatcher.arrived == len(requests)
    assert len(dispatcher.requests) == counts["unfinished"]


@RUNS
@given(trace=TRACES, order=st.sampled_from(ORDERINGS.names()), topology=st.sampled_from([GATEWAY, ENGINE]))
def test_service_delivered_is_the_work_that_engines_did(trace: Trace, order: str, topology: str) -> None:
    run = World(trace, Settings(order=order, workers=2, topology=topology, interval_us=100_000)).run()
    requests = run.requests
    assert not run.preemptions
    extend, output = [0] * len(run.clients), [0] * len(run.clients)
    for client, prompt, cached, tokens in zip(
        requests.client, requests.prompt, requests.cached, requests.output, strict=True
    ):
        extend[client] += prompt - cached
        output[client] += tokens
    assert [each[-1] for each in run.series.service] == [
        e + 2 * o for e, o in zip(extend, output, strict=True)
    ]
    assert run.computed_tokens == sum(extend)


class Blind:
    """Stands for a dispatcher's ``arrive`` and keeps what it was told of each request."""

    def __init__(self, arrive: Callable[..., Any]) -> None:
        self.arrive = arrive
        self.seen: list[Any] = []

    def __call__(self, at: int, request: Any) -> Any:
        self.seen.append(request)
        return self.arrive(at, request)


@pytest.mark.pure_only("replaces a method")
def test_no_policy_can_reach_the_true_output_length() -> None:
    """Two workloads that differ only in output lengths: what arrives at the dispatcher is the same."""
    told = []
    for tokens in (30, 60):
        sessions = [Session(i * 1000, "abc"[i % 3], [turn([i % 5, 1], tokens + i)]) for i in range(30)]
        world = World(trace_of(sessions), Settings(workers=2))
        blind = Blind(world.dispatcher.arrive)
        world.dispatcher.arrive = blind  # type: ignore[method-assign]
        world.run()
        told.append(blind.seen)
    assert told[0] == told[1]
    assert len(told[0]) == 30
    lengths = {30 + i for i in range(30)}
    for request in told[0]:
        assert request.max_tokens is None
        numbers = [value for value in request if isinstance(value, int) and value > 1]
        assert (
            lengths.isdisjoint(numbers[1:] if request.rid > 1 else numbers)
            or request.prompt_tokens in lengths
        )


def test_turns_come_after_the_answers_that_release_them() -> None:
    tree = [
        turn([1], 5),
        turn([1, 2], 5, after=0, delay_us=10_000),
        turn([1, 3], 5, after=0, delay_us=20_000),
        turn([1, 3, 4], 5, after=2),
    ]
    run = World(trace_of([Session(7, "a", tree)]), Settings(workers=1)).run()
    requests = run.requests
    assert list(requests.arrived[:3]) == [7, requests.ended[0] + 10_000, requests.ended[0] + 20_000]
    assert requests.arrived[3] == requests.ended[2]
    # Each finds the one block that its parent had computed.
    assert list(requests.cached) == [0, 16, 16, 32]


def test_a_turn_without_an_answer_ends_its_session() -> None:
    chain = [turn([1] * 50, 5), turn([1], 5, after=0), turn([1], 5, after=1)]
    world = World(trace_of([Session(0, "a", chain)]), Settings(workers=1, **SMALL))
    run = world.run()
    assert list(run.requests.outcome) == [FAILED]
    assert world.clients.abandoned == 2


def test_a_worker_that_dies_loses_only_what_was_being_answered() -> None:
    sessions = [Session(i * 20_000, "a", [turn([i, i], 60)]) for i in range(60)]
    options = Settings(
        workers=2, policy="round_robin", faults=(Fault(1, 600_000, 400_000),), detect_us=50_000
    )
    run = World(trace_of(sessions), options).run()
    outcomes = list(run.requests.outcome)
    lost = [row for row, outcome in enumerate(outcomes) if outcome == FAILED]
    assert lost
    assert set(outcomes) == {DONE, FAILED}
    for row in lost:
        assert run.requests.first[row] <= 600_000, "what had no token yet is tried on the other worker"
        assert run.requests.worker[row] == 1
    later = [w for w, sent in zip(run.requests.worker, run.requests.sent, strict=True) if sent > 1_100_000]
    assert 1 in later, "it takes work again once it is back"


def test_what_is_on_its_way_to_a_worker_that_dies_arrives_once() -> None:
    """The worker is back before that arrives, and what was sent again in its place comes after it."""
    trace = trace_of([Session(0, "a", [turn([1], 5)])])
    chosen = Settings(workers=1, hop_us=10_000, faults=(Fault(0, 5_000, 2_000),))
    run = World(trace, chosen).run()
    assert list(run.requests.outcome) == [DONE]
    assert run.requests.sent[0] == 5_000
    assert run.requests.first[0] > 15_000
    none = World(trace, replace(chosen, faults=(Fault(0, 5_000),), queue_timeout_us=3_000_000)).run()
    assert list(none.requests.outcome) == [FAILED]


def test_a_queue_that_is_full_rejects_and_a_timeout_cancels() -> None:
    sessions = [Session(i, "ab"[i % 2], [turn([i] * 10, 80)]) for i in range(40)]
    full = World(trace_of(sessions), Settings(workers=1, **SMALL, max_queued=5)).run()
    assert REJECTED in full.requests.outcome
    slow = World(trace_of(sessions), Settings(workers=1, **SMALL, client_timeout_us=900_000)).run()
    assert set(slow.requests.outcome) == {DONE, CANCELLED}
    ended = zip(slow.requests.ended, slow.requests.arrived, strict=True)
    assert max(end - arrived for end, arrived in ended) == 900_000


def test_stopping_early_leaves_the_rest_unfinished() -> None:
    sessions = [Session(i * 100_000, "a", [turn([i], 50)]) for i in range(40)]
    run = World(trace_of(sessions), Settings(workers=1, until_us=2_000_000)).run()
    assert UNFINISHED in run.requests.outcome
    assert max(run.requests.arrived) <= 2_000_000


@pytest.mark.parametrize("order", ["dlpm:quantum=2000", "vtc"])
def test_the_measured_gap_stays_inside_the_bound_under_attack(order: str) -> None:
    trace = generate("shared-prefix", {"rate": 400.0}, requests=400, clients=4)
    attacked = with_attacker(trace, "more", 2.0, seed=1)
    for topology, workers in ((ENGINE, 1), (GATEWAY, 2)):
        chosen = Settings(order=order, workers=workers, topology=topology, kv_tokens=60_000)
        run = simulate(attacked, chosen, reachable=0.0)
        assert 0 < run.fairness.worst_gap <= run.fairness.bound
    unfair = simulate(attacked, replace(chosen, order="fcfs"), reachable=0.0)
    assert unfair.fairness.worst_gap > run.fairness.worst_gap


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    trace = generate("shared-prefix", {"rate": 300.0}, requests=400)
    runs = [facts(World(trace, Settings(policy="random", seed=seed, workers=3)).run()) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
