"""Traces made of traces: every one stays lazy, deterministic and sound."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.trace.clients import RULES, assign_clients
from fairlead.trace.model import Session, Trace, TraceError, Turn
from fairlead.trace.transform import cap_tokens, gamma_arrivals, limit, split, stretch

TURN = st.tuples(st.integers(1, 200), st.integers(1, 50), st.integers(0, 5))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """A few sessions of chained or branching turns, without keys."""
    sessions = []
    at = draw(st.integers(0, 5))
    for number in range(draw(st.integers(1, 8))):
        turns: list[Turn] = []
        for index, (prompt, output, delay) in enumerate(draw(st.lists(TURN, min_size=1, max_size=5))):
            after = draw(st.integers(-1, index - 1))
            turns.append(Turn(prompt, output, after=after, delay_us=delay))
        sessions.append(Session(at, f"c{number % 3}", tuple(turns), f"s{number}"))
        at += draw(st.integers(0, 10**7))
    return made(sessions)


def made(sessions: list[Session], block_tokens: int = 16) -> Trace:
    return Trace(
        name="made",
        block_tokens=block_tokens,
        sessions=lambda: iter(sessions),
        requests=sum(len(s.turns) for s in sessions),
        duration_us=sessions[-1].at - sessions[0].at,
        clients={s.client: 2.0 for s in sessions},
        misbehaving=frozenset({sessions[0].client}),
        labels=("made by hand",),
        identity="made",
    )


def single(
    at: int, prompt: int = 10, keys: tuple[int, ...] = (), client: str = "all", name: str = ""
) -> Session:
    return Session(at, client, (Turn(prompt, 5, keys),), name)


def check(trace: Trace, source: Trace) -> None:
    sessions = list(trace.sessions())
    assert sessions == list(trace.sessions())
    assert [s.at for s in sessions] == sorted(s.at for s in sessions)
    assert trace.requests == sum(len(s.turns) for s in sessions)
    assert trace.duration_us == sessions[-1].at - sessions[0].at
    assert trace.clients.keys() == {s.client for s in sessions}
    assert trace.misbehaving <= trace.clients.keys()
    assert trace.labels[: len(source.labels)] == source.labels
    assert all(turn.after < index for s in sessions for index, turn in enumerate(s.turns))
    changed = sessions != list(source.sessions())
    assert not changed or trace.identity != source.identity


TRANSFORMS: list[Callable[[Trace], Trace]] = [
    lambda trace: limit(trace, 4),
    lambda trace: gamma_arrivals(trace, 3.0, 2.0, 7),
    lambda trace: cap_tokens(trace, max_prompt_tokens=190),
    lambda trace: cap_tokens(trace, max_total_tokens=200),
    *(lambda trace, rule=rule: assign_clients(trace, rule, 3, skew=1.0) for rule in RULES),
]


@given(traces(), st.sampled_from(TRANSFORMS))
def test_every_transform_keeps_its_promises(source: Trace, transform: Callable[[Trace], Trace]) -> None:
    source = made([*source.sessions(), single(10**9)])  # one that no cap leaves out
    trace = transform(source)
    check(trace, source)
    assert trace.identity == transform(source).identity


@given(traces(), st.sampled_from([0.25, 0.5, 2.0, 3.5]))
def test_stretching_moves_session_starts_only(source: Trace, factor: float) -> None:
    trace = stretch(source, factor)
    assert [s._replace(at=0) for s in trace.sessions()] == [s._replace(at=0) for s in source.sessions()]
    assert [s.at for s in trace.sessions()] == [round(s.at * factor) for s in source.sessions()]
    assert trace.duration_us == pytest.approx(source.duration_us * factor, abs=1)
    assert trace.identity not in (source.identity, stretch(source, factor + 1).identity)


@given(traces(), st.integers(1, 30))
def test_a_limit_keeps_the_first_requests(source: Trace, requests: int) -> None:
    trace = limit(source, requests)
    assert trace.requests == min(requests, source.requests)
    kept = [turn for s in trace.sessions() for turn in s.turns]
    assert kept == [turn for s in source.sessions() for turn in s.turns][: len(kept)]


@given(traces(), st.floats(0.1, 0.9), st.integers(0, 5))
def test_the_parts_of_a_split_are_the_whole(source: Trace, share: float, seed: int) -> None:
    source = made([*source.sessions(), *(single(10**9 + i, name=f"s{1000 + i}") for i in range(200))])
    tune, kept = split(source, share, seed)
    check(tune, source)
    check(kept, source)
    together = sorted([*tune.sessions(), *kept.sessions()], key=lambda s: int(s.name[1:]))
    assert together == list(source.sessions())
    assert tune.identity != kept.identity


def test_a_split_has_its_share() -> None:
    source = made([single(i) for i in range(2_000)])
    tune, kept = split(source, 0.3)
    assert 500 < tune.requests < 700
    assert tune.requests + kept.requests == 2_000
    assert "part: tuning, about 30% of the sessions, seed 1" in tune.labels
    assert "part: kept aside, about 70% of the sessions, seed 1" in kept.labels


def test_turns_that_follow_from_a_long_one_go_with_it() -> None:
    turns = (
        Turn(10, 1),
        Turn(99, 1, after=0),
        Turn(10, 1, after=1),
        Turn(11, 1, after=0),
        Turn(12, 1, after=3),
    )
    trace = cap_tokens(made([Session(0, "a", turns)]), max_prompt_tokens=50)
    (only,) = trace.sessions()
    assert [(turn.prompt_tokens, turn.after) for turn in only.turns] == [(10, -1), (11, 0), (12, 1)]
    (repair,) = trace.repairs
    assert (repair.count, repair.example) == (2, "session 0 at 0 s, turn 1: 99 tokens of prompt, 1 of output")
    assert any("2 of 5 left out" in label for label in trace.labels)


def test_the_cap_on_the_total_counts_the_output() -> None:
    trace = cap_tokens(made([single(0, prompt=5), single(1, prompt=6)]), max_total_tokens=10)
    assert trace.requests == 1


def test_a_cap_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(TraceError, match="no request is left after: cap 3 None"):
        cap_tokens(made([single(0)]), max_prompt_tokens=3)


@pytest.mark.parametrize("cv", [0.0, 1.0, 3.0])
def test_gamma_arrivals_have_the_stated_rate_and_burstiness(cv: float) -> None:
    trace = gamma_arrivals(made([single(0) for _ in range(20_000)]), 50.0, cv)
    gaps = [b.at - a.at for a, b in pairwise(trace.sessions())]
    assert mean(gaps) == pytest.approx(20_000, rel=0.08)
    assert pstdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.08, abs=0.001)


def test_transforms_take_no_session_before_it_is_asked_for() -> None:
    taken = 0

    def sessions() -> Iterator[Session]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield single(number)

    source = made([single(i) for i in range(100)])
    source = Trace(
        name="counted", block_tokens=16, sessions=sessions, requests=100, duration_us=source.duration_us
    )
    trace = assign_clients(stretch(gamma_arrivals(limit(source, 50), 1.0), 2.0), "session", 4)
    taken = 0
    walk = trace.sessions()
    assert taken == 0
    next(walk)
    assert taken == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda trace: limit(trace, 0),
        lambda trace: stretch(trace, 0),
        lambda trace: stretch(trace, float("inf")),
        lambda trace: gamma_arrivals(trace, 0),
        lambda trace: gamma_arrivals(trace, 1, -1),
        lambda trace: split(trace, 1),
        lambda trace: cap_tokens(trace, max_prompt_tokens=0),
        lambda trace: assign_clients(trace, "prefx"),
        lambda trace: assign_clients(trace, "prefix", 0),
        lambda trace: assign_clients(trace, "prefix", 8, skew=-1),
    ],
)
def test_values_out_of_range_are_refused(wrong: Callable[[Trace], object]) -> None:
    with pytest.raises(TraceError):
        wrong(made([single(0)]))
