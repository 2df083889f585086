"""The ceiling of the hit rate, against examples by hand and a cache of whole texts."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.trace.generators import GENERATORS, generate
from fairlead.trace.generators.keys import EMPTY, Keys, Prompt
from fairlead.trace.model import Session, Trace, Turn
from fairlead.trace.reachable import Reach, reach, reachable


def of(turns: list[Turn], block: int = 10) -> Trace:
    def sessions() -> Iterator[Session]:
        yield from [Session(0, "a", [turn]) for turn in turns]

    return Trace(name="by hand", block_tokens=block, sessions=sessions, requests=len(turns), duration_us=0)


def test_a_repeated_prompt_is_cached_but_for_its_last_token() -> None:
    turn = Turn(30, 5, (1, 2, 3))
    assert reach(of([turn, turn])) == Reach(29 / 60, 2, whole=True)
    longer = Turn(35, 5, (1, 2, 3))
    assert reachable(of([longer, longer])) == 30 / 70


def test_an_answer_is_cached_but_for_its_last_token() -> None:
    follow_up = Turn(50, 1, (1, 2, 3, 4, 5))
    assert reachable(of([Turn(20, 21, (1, 2), (3, 4)), follow_up])) == 40 / 70
    assert reachable(of([Turn(20, 20, (1, 2), (3, 4)), follow_up])) == 30 / 70


def test_a_limit_is_kept_and_told() -> None:
    turn = Turn(30, 5, (1, 2, 3))
    assert reach(of([turn] * 5), limit=2) == Reach(29 / 60, 2, whole=False)
    assert reach(of([turn] * 2), limit=2).whole
    with pytest.raises(ValueError, match="at least one"):
        reach(of([turn]), limit=0)


def test_an_empty_trace_reaches_nothing() -> None:
    assert reach(of([])) == Reach(0.0, 0, whole=True)


def test_a_workload_that_shares_nothing_reaches_nothing() -> None:
    assert reachable(generate("vtc-overload")) == 0


def test_shared_prompts_reach_what_they_share() -> None:
    trace = generate("shared-prefix:groups=8,spread=0", requests=1_000)
    assert reachable(trace) == pytest.approx(800 * 992 / 1_000_000)


@pytest.mark.parametrize("name", [n for n in GENERATORS.names() if not n.startswith("vtc-")])
def test_families_that_share_have_something_to_reach(name: str) -> None:
    assert 0.3 < reachable(generate(name, requests=600)) < 1


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 25), st.integers(1, 12)), min_size=1, max_size=30),
)
def test_a_cache_of_texts_serves_as_much(block: int, asked: list[tuple[int, int, int]]) -> None:
    keys, word = Keys(block), 0
    known: list[tuple[Prompt, list[int]]] = [(EMPTY, [])]
    turns: list[Turn] = []
    cached: set[tuple[int, ...]] = set()
    hits = 0
    for parent, own, output in asked:
        before, text = known[parent % len(known)]
        prompt, answered = keys.grow(before, own), list(range(word, word + own + output))
        word += own + output
        said, whole = text + answered[:own], text + answered
        answer = keys.grow(prompt, output)
        turns.append(Turn(prompt.tokens, output, prompt.keys, answer.keys[len(prompt.keys) :]))
        ends = [end for end in range(block, len(said) + 1, block) if tuple(said[:end]) in cached]
        hits += min(max(ends, default=0), len(said) - 1)
        cached |= {tuple(whole[:end]) for end in range(block, len(whole), block)}
        known += [(prompt, said), (answer, whole)]
    assert reachable(of(turns, block)) == hits / sum(turn.prompt_tokens for turn in turns)
