"""The client that sends too much: how much it adds, of what kind, and that it shares with nobody."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.trace.generators import GENERATORS, generate
from fairlead.trace.generators.attack import KINDS, Kind, with_attacker
from fairlead.trace.model import Session, Trace, TraceError, Turn
from fairlead.trace.reachable import reachable
from tests.trace.shapes import check_trace, quotes, shared_blocks


def demand(turns: Sequence[Turn]) -> int:
    return sum(turn.prompt_tokens + 2 * turn.output_tokens for turn in turns)


def split(trace: Trace, name: str = "attacker") -> tuple[list[Session], list[Session]]:
    sessions = check_trace(trace)
    return [s for s in sessions if s.client != name], [s for s in sessions if s.client == name]


def total(sessions: list[Session]) -> int:
    return sum(demand(session.turns) for session in sessions)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GENERATORS.names())
def test_an_attacker_adds_its_share_and_leaves_the_others_alone(name: str, kind: Kind) -> None:
    clean = generate(name, seed=2, requests=300)
    trace = with_attacker(clean, kind, 0.8, factor=2.0)
    others, own = split(trace)
    assert others == list(clean.sessions())
    largest = max(demand(session.turns) for session in own)
    assert abs(total(own) - 0.8 * total(others)) <= largest
    assert list(trace.sessions()) == list(trace.sessions())
    theirs = {key for s in others for turn in s.turns for key in (*turn.keys, *turn.output_keys)}
    assert not theirs & {key for s in own for turn in s.turns for key in (*turn.keys, *turn.output_keys)}
    assert trace.misbehaving == {"attacker"}
    assert trace.clients == {**clean.clients, "attacker": 1.0}
    assert trace.identity != clean.identity
    assert any("attacker" in label for label in trace.labels)


def test_more_is_the_same_kind_of_request() -> None:
    clean = generate("multi-turn", requests=400)
    _, own = split(with_attacker(clean, "more", 0.5))
    shapes = [
        [turn._replace(keys=(), output_keys=()) for turn in session.turns] for session in clean.sessions()
    ]
    for session in own:
        assert [turn._replace(keys=(), output_keys=()) for turn in session.turns] in shapes


def test_copies_hit_a_cache_as_often_as_the_originals() -> None:
    clean = generate("shared-prefix", requests=3_000)
    doubled = with_attacker(clean, "more", 1.0)
    assert reachable(doubled) == pytest.approx(reachable(clean), abs=0.02)


def test_a_share_above_one_copies_sessions_that_share_nothing() -> None:
    clean = generate("vtc-overload", requests=50)
    _, own = split(with_attacker(clean, "more", 3.0))
    keys = [key for session in own for turn in session.turns for key in turn.keys]
    assert len(own) == pytest.approx(150, abs=1)
    assert len(set(keys)) == len(keys)


def test_longer_means_long_prefixes_that_repeat_as_the_originals_do() -> None:
    clean = generate("shared-prefix:groups=1,spread=0", requests=400, clients=1)
    others, own = split(with_attacker(clean, "longer", 0.6, factor=3.0))
    prompts = [turn for session in own for turn in session.turns]
    assert {turn.prompt_tokens for turn in prompts} == {1_000 + 2_000}
    assert shared_blocks(prompts[0], prompts[1]) == (2_000 + 800) // 16
    assert len(own) == pytest.approx(400 * 0.6 * 1_400 / 3_400, abs=1)
    assert all(session.turns[0].prompt_tokens == 1_000 for session in others)


@pytest.mark.parametrize("name", ["tree-of-thoughts", "multi-turn", "agents"])
@pytest.mark.parametrize("kind", KINDS)
def test_follow_ups_of_an_attacker_quote_the_answers_before_them(name: str, kind: Kind) -> None:
    # A block that holds a whole turn makes prompts without a key of their own.
    for block in (16, 700):
        clean = generate(name, {"block_tokens": block}, requests=200)
        _, own = split(with_attacker(clean, kind, 2.0, factor=3.0))
        follow_ups = [
            (turn, session.turns[turn.after]) for session in own for turn in session.turns if turn.after >= 0
        ]
        assert len(follow_ups) > 20
        assert all(quotes(turn, parent) for turn, parent in follow_ups)


def test_prefixes_stay_apart_where_keys_are_small_neighbouring_numbers() -> None:
    def sessions() -> Iterator[Session]:
        for number in range(200):
            yield Session(number, "a", [Turn(32, 8, (number % 50 + 1, 1_000 + number))])

    clean = Trace(
        name="numbered",
        block_tokens=16,
        sessions=sessions,
        requests=200,
        duration_us=199,
        clients={"a": 1.0},
    )
    _, own = split(with_attacker(clean, "longer", 2.0, factor=20.0))
    assert len({session.turns[0].keys[0] for session in own}) > 5


def test_complex_answers_are_longer_and_make_follow_ups_longer() -> None:
    clean = generate("multi-turn:length_cv=0,turns=2", requests=300, clients=1)
    _, own = split(with_attacker(clean, "complex", 1.0, factor=3.0))
    assert {turn.output_tokens for session in own for turn in session.turns} == {600}
    assert {turn.prompt_tokens for s in own for turn in s.turns if turn.after == 0} == {500 + 600 + 100}


def test_branches_of_one_state_still_share_their_prompt_when_stretched() -> None:
    trace = with_attacker(generate("tree-of-thoughts", requests=90), "complex", 1.0, factor=2.0)
    for session in split(trace)[1]:
        for one, other in zip(session.turns[::2], session.turns[1::2], strict=False):
            assert one.after == other.after
            assert one.keys == other.keys
            assert not set(one.output_keys) & set(other.output_keys)


def test_an_attack_may_begin_later() -> None:
    clean = generate("shared-prefix", requests=1_000)
    begin = clean.duration_us // 2
    others, own = split(with_attacker(clean, "more", 0.8, at=begin))
    assert min(session.at for session in own) >= begin
    late = [session for session in others if session.at >= begin]
    assert total(own) == pytest.approx(0.8 * total(late), rel=0.01)


def test_two_attackers_can_be_at_work() -> None:
    one = with_attacker(generate("judge", requests=120), "more", 0.5)
    two = with_attacker(one, "longer", 0.5, name="second", factor=2.0)
    assert two.misbehaving == {"attacker", "second"}
    _, own = split(two, "second")
    assert abs(total(own) - 0.5 * total(check_trace(one))) <= max(demand(s.turns) for s in own)


@settings(max_examples=25)
@given(
    st.sampled_from(GENERATORS.names()),
    st.sampled_from(KINDS),
    st.floats(0.3, 3.0),
    st.floats(1.0, 8.0),
    st.integers(1, 40),
)
def test_any_attack_leaves_a_sound_trace(
    name: str, kind: Kind, share: float, factor: float, block: int
) -> None:
    clean = generate(name, {"block_tokens": block}, requests=60)
    check_trace(with_attacker(clean, kind, share, factor=factor))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "mroe"}, "unknown attack 'mroe'.*did you mean 'more'"),
        ({"share": 0}, "share"),
        ({"factor": 0.5}, "factor"),
        ({"at": -1}, "time"),
        ({"name": "client-0"}, "already has a client called 'client-0'"),
        ({"at": 10**15}, "too short"),
    ],
)
def test_impossible_attacks_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        with_attacker(generate("judge", requests=20), **given)  # type: ignore[arg-type]
