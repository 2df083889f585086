"""Prompts made of block keys."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.replay.prompts import Measure, TextPrompts, TokenPrompts, Vocabulary, token_sample
from fairlead.trace.model import Turn

KEYS = st.lists(st.integers(0, 2**60 - 1), max_size=6, unique=True)
WIDE = Vocabulary(5, 60_000)


@settings(max_examples=60)
@given(KEYS, st.integers(1, 40), st.integers(1, 64))
def test_token_prompts_have_the_exact_length_and_stay_in_the_vocabulary(
    keys: list[int], rest: int, block: int
) -> None:
    prompts = TokenPrompts(block, Vocabulary(1000, 1999), "")
    turn = Turn(len(keys) * block + rest, 1, keys)
    ids = json.loads(prompts.of(turn, "0/0"))
    assert len(ids) == turn.prompt_tokens
    assert all(1000 <= token <= 1999 for token in ids)


@settings(max_examples=60)
@given(KEYS, KEYS, KEYS, st.integers(8, 32), st.integers(0, 20), st.integers(0, 20))
def test_prompts_are_equal_exactly_as_far_as_their_keys(
    shared: list[int], one: list[int], other: list[int], block: int, more: int, less: int
) -> None:
    other = [key for key in other if key not in one]
    prompts = TokenPrompts(block, WIDE, "")
    turns = [
        Turn(len(keys) * block + rest, 1, keys)
        for keys, rest in ((shared + one, more), (shared + other, less))
    ]
    if not all(turn.prompt_tokens for turn in turns):
        return
    first, second = (json.loads(prompts.of(turn, f"{i}/0")) for i, turn in enumerate(turns))
    equal = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    matched = min(len(first), len(second)) if equal is None else equal
    assert matched // block == len(shared)


def test_a_name_decides_what_is_a_requests_own_and_a_salt_everything() -> None:
    turn = Turn(100, 1, (7, 8))
    plain, salted = TokenPrompts(16, WIDE, ""), TokenPrompts(16, WIDE, "s")
    assert plain.of(turn, "1/0") == TokenPrompts(16, WIDE, "").of(turn, "1/0")
    ids, others, salty = (
        json.loads(p.of(turn, n)) for p, n in ((plain, "1/0"), (plain, "2/0"), (salted, "1/0"))
    )
    assert ids[:32] == others[:32]
    assert ids[32:] != others[32:]
    assert ids[:16] != salty[:16]


def test_keys_beyond_the_prompt_are_ignored() -> None:
    prompts = TokenPrompts(16, WIDE, "")
    assert len(json.loads(prompts.of(Turn(20, 1, (1, 2, 3)), "0/0"))) == 20


@pytest.mark.parametrize("measure", [Measure(), Measure(1.25, 1.0), Measure(0.4), Measure(7.3, 12.0)])
@settings(max_examples=30)
@given(keys=KEYS, rest=st.integers(0, 40))
def test_text_prompts_are_as_long_as_measured_and_share_prefixes(
    measure: Measure, keys: list[int], rest: int
) -> None:
    prompts = TextPrompts(16, measure, "")
    tokens = max(1, len(keys) * 16 + rest)
    text = json.loads(prompts.of(Turn(tokens, 1, keys), "0/0"))
    estimate = measure.tokens_a_word * len(text.split()) + measure.extra
    assert abs(estimate - tokens) <= measure.tokens_a_word + measure.extra
    longer = json.loads(prompts.of(Turn(tokens + 64, 1, [*keys, 2**60, 2**60 + 1]), "1/0"))
    common = max(0, round((len(keys) * 16 - measure.extra) / measure.tokens_a_word))
    assert text.split()[:common] == longer.split()[:common]


def test_the_sample_shows_the_highest_id() -> None:
    assert json.loads(token_sample(Vocabulary(3, 9), 64))[0] == 9
    assert min(json.loads(token_sample(Vocabulary(3, 9), 64))) == 3
    assert len(json.loads(token_sample(Vocabulary(3, 9), 64))) == 64
