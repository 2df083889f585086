"""An engine's blocks under our keys: exactly those that prompts would have, never one too many."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.keys import blake2b_digest, seed_key, token_keys
from fairlead.core.prefix import PrefixIndex
from fairlead.gateway.kv_view import Forgot, Gained, IncompatibleError, KvView, Lost
from fairlead.gateway.kv_wire import WireError, decode_batch
from tests.gateway.kv_fakes import CLEARED, removed, stored
from tests.gateway.test_kv_wire import batch

BLOCK = 4


def view(**options: Any) -> KvView:
    return KvView("m", BLOCK, blake2b_digest, **options)


def feed(target: KvView, *events: Any) -> list[Gained | Lost | Forgot]:
    return [change for event in decode_batch(batch(*events)) for change in target.apply(event)]


def prompt_keys(tokens: list[int], lora: str = "", salt: str = "") -> list[int]:
    return token_keys(tokens, BLOCK, seed_key("m", lora, salt))


def held(target: KvView) -> set[int]:
    return {key for chain in target.chains() for key in chain.keys}


def test_blocks_get_the_keys_of_the_prompt_they_come_from() -> None:
    tokens = list(range(12))
    keys = prompt_keys(tokens)
    one = view()
    assert feed(one, stored([71, 72], tokens[:8])) == [Gained(keys[:2], None)]
    assert feed(one, stored([b"c"], tokens[8:], parent=72)) == [Gained(keys[2:], keys[1])]
    assert list(one.chains()) == [Gained(keys, None)]
    assert feed(one, removed([b"c", 72, 5])) == [Lost([keys[2], keys[1]])]
    assert feed(one, CLEARED) == [Forgot()]
    assert len(one) == 0


def test_an_engine_block_may_be_several_of_ours() -> None:
    keys = prompt_keys(list(range(16)))
    one = view()
    assert feed(one, stored([1, 2], range(16))) == [Gained(keys, None)]
    assert feed(one, removed([2])) == [Lost(keys[2:])]


def test_each_copy_of_a_block_is_evicted_by_itself() -> None:
    keys = prompt_keys(list(range(8)))
    one = view()
    feed(one, stored([1], range(4)))
    assert feed(one, stored([1, 2], range(8))) == [Gained(keys[1:], keys[0])]
    assert feed(one, removed([1])) == []
    assert feed(one, removed([1])) == [Lost(keys[:1])]


def test_adapters_and_salts_have_keys_of_their_own() -> None:
    tokens = list(range(8))
    salted = stored([1, 2], tokens, extra_keys=[["pepper"], None])
    tuned = stored([3, 4], tokens, lora_id=1, lora_name="ada", extra_keys=[["ada"], ["ada"]])
    both = stored([5, 6], tokens, lora_id=1, lora_name="ada", extra_keys=[["ada", "pepper"], ["ada"]])
    one = view()
    assert feed(one, salted) == [Gained(prompt_keys(tokens, salt="pepper"), None)]
    assert feed(one, tuned) == [Gained(prompt_keys(tokens, lora="ada"), None)]
    assert feed(one, both) == [Gained(prompt_keys(tokens, "ada", "pepper"), None)]
    assert held(one).isdisjoint(prompt_keys(tokens))


@pytest.mark.parametrize(
    "more",
    [
        {"extra_keys": [[["image", 0]], None]},  # an image in the first block
        {"extra_keys": [None, [["image", 5]]]},  # in the second
        {"extra_keys": [["salt", "embedding"], None]},
        {"extra_keys": [None, ["digest"]]},  # a later block has no salt, so this is something else
        {"lora_id": 4, "extra_keys": None},  # an adapter without a name
        {"token_ids": [[1, 2]] * 8},  # pairs of tokens
        {"token_ids": [-1] * 8},
        {"token_ids": list(range(7))},
    ],
)
def test_what_more_than_tokens_decides_never_matches(more: dict[str, Any]) -> None:
    one = view()
    assert feed(one, stored([1, 2], range(8), **{"block_size": BLOCK} | more)) == []
    assert feed(one, stored([3], range(4), parent=2)) == [], "nor does what continues it"
    assert held(one) == set()
    assert one.counts.foreign == 3
    assert feed(one, removed([1, 2, 3])) == []
    assert len(one) == 0


def test_blocks_elsewhere_do_not_count() -> None:
    one = view()
    assert feed(one, stored([1], range(4), medium="CPU")) == []
    assert feed(one, stored([1], range(4), kind="x", kv_cache_spec_kind="sliding_window")) == []
    feed(one, stored([1], range(4)))
    assert feed(one, stored([9], range(4, 8), group_idx=1)) == [], "groups fill alike: one is enough"
    assert feed(one, removed([1], medium="CPU"), removed([1], group_idx=1)) == []
    assert held(one) == set(prompt_keys(list(range(4))))


def test_a_child_of_an_unknown_block_is_an_orphan() -> None:
    one = view()
    feed(one, stored([1], range(4)))
    assert one.since_orphan == 1
    assert feed(one, stored([3], range(4), parent=2)) == []
    assert (one.since_orphan, one.counts.orphans, len(one)) == (0, 1, 1)


def test_sizes_that_never_fit_are_an_error_and_an_odd_block_is_not() -> None:
    with pytest.raises(IncompatibleError, match="6 tokens"):
        feed(view(), stored([1], range(6)))
    one = view()
    feed(one, stored([1], range(4)))
    assert feed(one, stored([2], range(4, 7), parent=1)) == []
    assert one.counts.foreign == 1


def test_the_cap_forgets_the_oldest() -> None:
    one = view(max_blocks=2)
    first = prompt_keys(list(range(12)))[0]
    assert feed(one, stored([1, 2, 3], range(12)))[-1] == Lost([first])
    assert (len(one), one.counts.dropped) == (2, 1)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    """Prompts over few tokens, so that they share prefixes, computed and evicted in any order."""
    prompt = st.lists(st.integers(0, 1), min_size=1, max_size=5)
    return draw(st.lists(st.tuples(st.sampled_from(["compute", "compute", "evict"]), prompt), max_size=30))


@given(histories())
def test_any_history_leaves_exactly_the_blocks_that_are_left(history: list[tuple[str, list[int]]]) -> None:
    """Against a naive engine that lists the copies of every block it holds."""
    one = view()
    copies: dict[tuple[int, ...], int] = {}
    told: set[int] = set()

    def tell(*events: Any) -> None:
        for change in feed(one, *events):
            if isinstance(change, Gained):
                assert told.isdisjoint(change.keys)
                told.update(change.keys)
            elif isinstance(change, Lost):
                assert told.issuperset(change.keys)
                told.difference_update(change.keys)

    for what, prompt in history:
        chain = [tuple(prompt[: length + 1]) for length in range(len(prompt))]
        if what == "compute":
            cached = next((n for n, block in enumerate(chain) if block not in copies), len(chain))
            fresh = chain[cached:] or chain[-1:]  # a full hit still computes its last block
            for block in fresh:
                copies[block] = copies.get(block, 0) + 1
            parent = fresh[0][:-1]
            tokens = [token for block in fresh for token in [block[-1]] * BLOCK]
            tell(stored([hash(b) for b in fresh], tokens, hash(parent) if parent else None))
        elif chain[-1] in copies:
            leaf = max((b for b in copies if b[: len(chain)] == chain[-1]), key=len)
            copies[leaf] -= 1
            if not copies[leaf]:
                del copies[leaf]
            tell(removed([hash(leaf)]))
    expected = {prompt_keys([t for t in block for _ in range(BLOCK)])[-1] for block in copies}
    assert told == held(one) == expected


def test_the_cap_counts_our_blocks_however_large_an_engine_block_is() -> None:
    one = view(max_blocks=10)
    for number in range(20):
        feed(one, stored([number], range(number * 100, number * 100 + 6 * BLOCK)))
    assert len(one) == 1
    assert len(held(one)) == 6
    feed(one, stored([77], range(50 * BLOCK)))
    assert (len(one), held(one)) == (0, set())
    feed(one, *(stored([n], range(4), extra_keys=[["image"]]) for n in range(100, 130)))
    assert len(one) == 10, "foreign blocks count too"


NUMBERS = st.sampled_from([0, 1, 2, 3, -1, 2**32, 2**63, -(2**63)])
NAMES = st.one_of(NUMBERS, st.sampled_from([b"", b"a", b"x" * 64]))
ODD_STORED = st.builds(
    stored,
    st.lists(NAMES, max_size=4),
    st.lists(
        st.one_of(NUMBERS, st.booleans(), st.none(), st.floats(), st.tuples(NUMBERS, NUMBERS)), max_size=16
    )
    | st.sampled_from([list(range(4)), list(range(8)), list(range(16))]),
    st.none() | NAMES,
    block_size=st.sampled_from([1, BLOCK, 2 * BLOCK, 2**20]),
    extra_keys=st.none()
    | st.lists(st.none() | st.lists(st.sampled_from(["a", "", 1, None]), max_size=2), max_size=4),
    lora_id=st.none() | NUMBERS,
    lora_name=st.sampled_from([None, "", "a", "x" * 10_000]),
    group_idx=st.sampled_from([None, 0, 1, -1]),
)
ODD_EVENTS = st.one_of(
    ODD_STORED, ODD_STORED, st.builds(removed, st.lists(NAMES, max_size=4)), st.just(CLEARED)
)


@given(st.lists(ODD_EVENTS, max_size=30))
def test_whatever_an_engine_says_of_its_blocks_our_books_of_them_hold(events: list[Any]) -> None:
    """Parents that nobody stored, names stored twice with other tokens, numbers out of all ranges."""
    one, index = view(max_blocks=6), PrefixIndex()
    index.add(0, 6, precise=True)
    for event in events:
        with suppress(IncompatibleError, WireError):
            for change in feed(one, event):
                if isinstance(change, Gained):
                    index.stored(0, change.keys, change.parent)
                elif isinstance(change, Lost):
                    index.evicted(0, change.keys)
                else:
                    index.clear(0, precise=True)
        index.check()
        assert len(held(one)) <= 6
        assert len(one) <= 6
