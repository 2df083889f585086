"""Tokens and filler text."""

from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.engine.text import MEDIAN_TOKENS, Wish, compose
from fairlead.engine.tokens import BYTES_PER_TOKEN, END, decode, encode, from_ids, render_chat, token_bytes

RUNS = settings(max_examples=100, deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@RUNS
@given(TEXT)
def test_text_survives_its_tokens(text):
    tokens = encode(text)
    assert decode(tokens) == text
    assert len(tokens) == -(-len(text.encode()) // BYTES_PER_TOKEN)
    assert b"".join(map(token_bytes, tokens)).decode() == text


@RUNS
@given(TEXT, TEXT)
def test_different_texts_have_different_tokens(one, other):
    assert (encode(one) == encode(other)) == (one == other)


@RUNS
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool", "x"]), TEXT)), TEXT)
def test_a_conversation_is_a_prefix_of_its_continuation(talk, answer):
    before = render_chat(talk)
    after = render_chat([*talk, ("assistant", answer), ("user", "more")])
    assert after[: len(before)] == before
    answered = before + encode(answer)
    assert after[: len(answered) + 1] == from_ids([*answered, END])


@RUNS
@given(st.text("\x00\x01\xf8\xff", max_size=8))
def test_special_tokens_are_never_text(text):
    assert END not in encode(text)


def test_roles_are_told_apart() -> None:
    prompts = {tuple(render_chat([(role, "x")])) for role in ("system", "user", "assistant", "tool", "other")}
    assert len(prompts) == 5
    assert render_chat([("developer", "x")]) == render_chat([("system", "x")])
    assert decode(render_chat([("user", "hi")], b"[1]")) == "<|system|>[1]<|user|>hi<|end|><|assistant|>"


def test_ids_beyond_32_bits_are_refused() -> None:
    with pytest.raises(OverflowError):
        from_ids([2**32])


@RUNS
@given(st.integers(0, 2**64 - 1), st.integers(1, 600), st.integers(0, 50), st.booleans())
def test_answers_keep_their_limits(prompt, most, least, ignore_eos):
    wish = Wish(most, min(least, most), ignore_eos)
    answer = compose(prompt, wish)
    assert wish.min_tokens <= answer.tokens <= most
    assert len(answer.text) == (answer.tokens - answer.ends) * BYTES_PER_TOKEN
    assert (answer.finish_reason == "stop") == answer.ends
    assert answer.tokens == most or answer.ends
    assert not (ignore_eos and answer.ends)
    assert answer == compose(prompt, wish)
    answer.text.decode("ascii")


@RUNS
@given(st.integers(0, 100), st.integers(0, 40), st.sampled_from(["the", "fair", ". ", "zzz", "a"]))
def test_stop_strings_end_the_text_before_them(prompt, least, stop):
    """Never before ``min_tokens``; what is kept is the beginning of the text without the stop."""
    full = compose(prompt, Wish(80, least, ignore_eos=True))
    cut = compose(prompt, Wish(80, least, ignore_eos=True, stop=(stop,)))
    assert full.text.startswith(cut.text)
    at = full.text.find(stop.encode())
    while at >= 0 and at + len(stop) <= least * BYTES_PER_TOKEN:
        at = full.text.find(stop.encode(), at + 1)
    if at < 0:
        assert cut == full
    else:
        end = at + len(stop)
        assert cut == (full.text[:at], -(-end // BYTES_PER_TOKEN), "stop", False)


def test_lengths_vary_around_their_median() -> None:
    lengths = [compose(prompt, Wish(100_000)).tokens for prompt in range(1_000)]
    assert MEDIAN_TOKENS * 0.9 < median(lengths) < MEDIAN_TOKENS * 1.1
    assert min(lengths) < 60
    assert max(lengths) > 800
