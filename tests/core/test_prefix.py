"""Block keys and the prefix index: one test for each thing they promise."""

import gc
import subprocess
import sys
from hashlib import blake2b
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.keys import byte_keys, chain_keys, seed_key, token_keys
from fairlead.core.model import BLOCK_KEY_BITS
from fairlead.core.prefix import PrefixIndex
from fairlead.core.prefix.holders import BlockRun
from fairlead.core.prefix.tree import Claim, Segment


def prompt(letters: str) -> list[int]:
    return chain_keys((letter.encode() for letter in letters), seed=7)


def run(index: PrefixIndex, slot: int, letters: str) -> None:
    claim = index.claim(slot, prompt(letters))
    index.start(claim)
    index.end(claim)


def parts() -> int:
    return sum(isinstance(o, Segment | BlockRun) for o in gc.get_objects())


def segments(index: PrefixIndex, slot: int) -> int:
    return sum(1 for _ in index._trees[slot].segments())


# -- keys


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 9))
def test_equal_keys_mean_equal_prefixes(one: bytes, other: bytes, size: int) -> None:
    """The k-th keys are equal exactly if the first k blocks are."""
    pairs = zip(byte_keys(one, size, 3), byte_keys(other, size, 3), strict=False)
    for k, (a, b) in enumerate(pairs, start=1):
        assert (a == b) == (one[: k * size] == other[: k * size])


def test_keys_cover_full_blocks_only_and_fit_their_bits() -> None:
    """A rest shorter than a block has no key; keys have at most 60 bits."""
    keys = byte_keys(bytes(1000), 16, seed_key("m"))
    assert len(keys) == 62
    assert len(set(keys)) == 62
    assert all(0 <= key < 1 << BLOCK_KEY_BITS for key in keys)
    assert byte_keys(b"", 16, 0) == []
    assert byte_keys(bytes(15), 16, 0) == []


def test_token_keys_are_byte_keys_of_packed_ids() -> None:
    """A token is four little-endian bytes, so that other programs can compute the same keys."""
    ids = [1, 2**32 - 1, 70_000, 4, 5]
    packed = b"".join(i.to_bytes(4, "little") for i in ids)
    assert token_keys(ids, 2, 9) == byte_keys(packed, 8, 9)
    assert len(token_keys(ids, 2, 9)) == 2


def test_the_hash_is_an_argument() -> None:
    """Each block is hashed with the key before it, and cut to 60 bits."""

    def digest(block: bytes, previous: int) -> int:
        return int.from_bytes(blake2b(block + str(previous).encode()).digest()[:9], "big")

    first = digest(b"ab", 5) & (1 << 60) - 1
    assert byte_keys(b"abcd", 2, 5, digest) == [first, digest(b"cd", first) & (1 << 60) - 1]


def test_model_lora_and_salt_seed_the_keys() -> None:
    """Any of the three keeps prompts apart, and they do not run into each other."""
    seeds = {seed_key(*parts) for parts in [("ab", "", ""), ("a", "b", ""), ("a", "", "b"), ("", "a", "b")]}
    assert len(seeds) == 4
    assert not set(byte_keys(bytes(64), 8, seed_key("m"))) & set(byte_keys(bytes(64), 8, seed_key("m", "x")))


@pytest.mark.parametrize("size", [0, -1])
def test_a_block_has_a_size(size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        byte_keys(b"abc", size, 0)
    with pytest.raises(ValueError, match="at least one"):
        token_keys([1], size, 0)


def test_keys_are_the_same_in_every_process() -> None:
    """Neither the hash seed of the process nor anything else of it matters."""
    code = "from fairlead.core.keys import *; print(byte_keys(b'fairlead' * 9, 8, seed_key('m', 'l', 's')))"
    here = str(byte_keys(b"fairlead" * 9, 8, seed_key("m", "l", "s")))
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


# -- requests


def test_a_match_names_every_holder_once_longest_first() -> None:
    """Steps are (blocks, bitmap); slots without the first block are in none."""
    index = PrefixIndex()
    for slot, letters in enumerate(["abcd", "abcd", "ab", "abx", "y"]):
        index.add(slot, 100)
        run(index, slot, letters)
    assert index.match(prompt("abcdef")) == [(4, 0b00011), (2, 0b01100)]
    assert index.match(prompt("abxyz")) == [(3, 0b01000), (2, 0b00111)]
    assert index.match(prompt("q")) == []
    assert index.match([]) == []


def test_a_waiting_request_is_held_but_not_ready() -> None:
    """Routing sees where a prefix will be; ordering sees what is there."""
    index = PrefixIndex()
    index.add(3, 100)
    claim = index.claim(3, prompt("abc"))
    assert index.match(prompt("abcd")) == [(3, 1 << 3)]
    assert index.ready(3, prompt("abcd")) == 0
    assert (index.cached(3), index.pinned(3), index.assigned(3)) == (0, 0, 3)
    assert index.start(claim) == 0
    assert index.ready(3, prompt("abcd")) == 3
    assert (index.cached(3), index.pinned(3), index.assigned(3)) == (3, 3, 3)
    index.end(claim)
    assert (index.cached(3), index.pinned(3), index.assigned(3)) == (3, 0, 0)
    index.check()


def test_eviction_is_least_recently_used_and_leaf_first() -> None:
    """A used prefix outlives a newer unused one, and blocks go from the end of a prompt."""
    index = PrefixIndex()
    index.add(0, 8)
    run(index, 0, "abcd")
    run(index, 0, "wxyz")
    run(index, 0, "ab")
    run(index, 0, "pq")
    assert index.ready(0, prompt("abcd")) == 2
    assert index.ready(0, prompt("wxyz")) == 4
    run(index, 0, "pqrs")
    assert index.ready(0, prompt("wxyz")) == 2
    assert index.ready(0, prompt("abcd")) == 2
    assert index.cached(0) == 8


def test_running_requests_are_never_evicted_waiting_ones_are() -> None:
    """Only pinned blocks exceed the capacity; a queue elsewhere does not protect what an engine caches."""
    index = PrefixIndex()
    index.add(0, 4)
    run(index, 0, "abcd")
    waiting = index.claim(0, prompt("abcd"))
    running = index.claim(0, prompt("wxyzuv"))
    index.start(running)
    assert index.cached(0) == 6
    assert index.ready(0, prompt("abcd")) == 0
    assert index.match(prompt("abcd")) == [(4, 1)]
    index.end(running)
    assert index.cached(0) == 4
    assert index.start(waiting) == 0
    index.check()


def test_abandoning_undoes_a_claim_and_nothing_else() -> None:
    """What others made ready or claim stays; the rest is gone, started or not."""
    index = PrefixIndex()
    index.add(0, 100)
    run(index, 0, "ab")
    for started in (False, True):
        other = index.claim(0, prompt("abc"))
        mine = index.claim(0, prompt("abcdef"))
        if started:
            assert index.start(mine) == 2
        index.abandon(mine)
        assert index.match(prompt("abcdef")) == [(3, 1)]
        assert index.ready(0, prompt("abcdef")) == 2
        index.abandon(other)
        assert index.match(prompt("abcdef")) == [(2, 1)]
        index.check()


def test_work_of_one_request_survives_that_another_is_abandoned() -> None:
    """Both ran on the same prefix and one ended: the prefix was computed."""
    index = PrefixIndex()
    index.add(0, 100)
    one, two = index.claim(0, prompt("abx")), index.claim(0, prompt("aby"))
    index.start(one)
    assert index.start(two) == 2
    index.end(two)
    index.abandon(one)
    assert index.ready(0, prompt("abx")) == 2
    assert index.ready(0, prompt("aby")) == 3
    index.check()


def test_a_split_behind_what_is_cached_keeps_only_the_cached_half_evictable() -> None:
    """A waiting request extends a cached run, another leaves it where the cached part ends."""
    index = PrefixIndex()
    index.add(0, 100)
    run(index, 0, "ab")
    longer = index.claim(0, prompt("abcd"))
    index.claim(0, prompt("abx"))
    index.check()
    assert index.start(longer) == 2
    index.check()


def test_a_conversation_stays_one_segment() -> None:
    """Turn after turn, also where turns overlap in time or a side branch came and went."""
    index = PrefixIndex()
    index.add(0, 60)
    for turn in range(1, 20):
        run(index, 0, "abc" * turn)
    assert segments(index, 0) == 1
    first, second = index.claim(0, prompt("xy")), index.claim(0, prompt("xyz"))
    index.start(first)
    index.start(second)
    index.end(first)
    index.end(second)
    assert segments(index, 0) == 2
    run(index, 0, "abc" * 10 + "q")
    assert segments(index, 0) == 4
    index.resize(0, 31)
    run(index, 0, "abc" * 10 + "q")
    assert segments(index, 0) == 1
    assert len(index) == 31
    index.check()


def test_a_claim_moves_in_one_direction() -> None:
    """Starting twice, ending what does not run and any use of what is over are errors."""
    index = PrefixIndex()
    index.add(0, 9)
    claim = index.claim(0, prompt("ab"))
    with pytest.raises(ValueError, match="only a running claim can end"):
        index.end(claim)
    index.start(claim)
    with pytest.raises(ValueError, match="only a queued claim can start"):
        index.start(claim)
    index.end(claim)
    with pytest.raises(ValueError, match="cannot abandon"):
        index.abandon(claim)
    assert repr(claim) == "<Claim slot=0 2 blocks over>"


def test_empty_prompts_are_requests_too() -> None:
    """A prompt shorter than a block has no keys."""
    index = PrefixIndex()
    index.add(0, 0)
    run(index, 0, "")
    assert index.ready(0, []) == 0
    assert len(index) == 0
    index.check()


def test_slots_are_checked() -> None:
    index = PrefixIndex()
    index.add(0, 5)
    with pytest.raises(ValueError, match="in use"):
        index.add(0, 5)
    for slot, capacity in ((-1, 5), (1, -5)):
        with pytest.raises(ValueError, match="negative"):
            index.add(slot, capacity)
    with pytest.raises(ValueError, match="negative"):
        index.resize(0, -1)
    with pytest.raises(KeyError):
        index.claim(1, prompt("a"))
    with pytest.raises(ValueError, match="takes no events"):
        index.stored(0, prompt("a"), None)
    with pytest.raises(ValueError, match="takes no events"):
        index.evicted(0, prompt("a"))
    assert repr(index) == "<PrefixIndex slots=1 blocks=0>"


def test_memory_is_bounded() -> None:
    """Invariant 9: whatever is sent, an idle slot holds no more than its capacity, in no more segments."""
    index = PrefixIndex()
    rng = Random(1)
    for slot in range(4):
        index.add(slot, 50)
    live: list[Claim] = []
    for _ in range(1500):
        letters = "abcd"[: rng.randrange(5)] + "".join(rng.choices("xyz", k=rng.randrange(12)))
        live.append(index.claim(rng.randrange(4), prompt(letters)))
        index.start(live[-1])
        if len(live) > 8:
            index.end(live.pop(rng.randrange(len(live))))
    for claim in live:
        index.end(claim)
    assert all(index.cached(slot) <= 50 for slot in range(4))
    assert len(index) <= 4 * 50
    assert all(segments(index, slot) <= 50 for slot in range(4))
    index.check()


@pytest.mark.parametrize("precise", [False, True])
def test_a_dropped_slot_leaves_nothing_behind(precise: bool) -> None:
    """Blocks, links and claims; claims end without effect, and memory is free without the collector."""
    index = PrefixIndex()
    index.add(0, 100)
    run(index, 0, "abcdef")
    gc.collect()
    gc.disable()
    try:
        before = parts()
        index.add(1, 100, precise)
        for letters in ("abcxyz", "abq", "rst"):
            run(index, 1, letters)
        if precise:
            index.stored(1, prompt("abcxyz"), None)
        claims = [index.claim(1, prompt("abz")) for _ in range(3)]
        index.start(claims[0])
        index.drop(1)
        assert index.match(prompt("abcxyz")) == [(3, 1)]
        assert len(index) == 6
        index.end(claims[0])
        assert index.start(claims[1]) == 0
        index.end(claims[1])
        index.abandon(claims[2])
        index.check()
        del claims
        assert parts() == before
    finally:
        gc.enable()
    index.add(1, 100)
    assert index.ready(1, prompt("abc")) == 0


def test_clearing_keeps_what_requests_use() -> None:
    """A worker that lost its cache still runs and awaits its requests."""
    index = PrefixIndex()
    index.add(0, 100)
    run(index, 0, "xyz")
    waiting, running = index.claim(0, prompt("abcd")), index.claim(0, prompt("abc"))
    index.start(running)
    index.clear(0, precise=True)
    assert index.match(prompt("xyz")) == []
    assert index.match(prompt("abcd")) == [(4, 1)]
    assert index.ready(0, prompt("abcd")) == 3
    index.end(running)
    assert index.ready(0, prompt("abcd")) == 0
    index.abandon(waiting)
    assert len(index) == 0
    index.check()


@pytest.mark.parametrize("seed", range(40))
def test_keys_that_do_not_chain_break_nothing(seed: int) -> None:
    """Collisions cost accuracy for the prompts concerned, never an exception or a leak."""
    rng = Random(seed)
    index = PrefixIndex()
    for slot in range(3):
        index.add(slot, rng.choice([8, 30, 100]), precise=slot == 2 and seed % 2 == 0)
    few = range(rng.choice([2, 3, 5, 9]))
    live: list[Claim] = []
    for _ in range(300):
        keys = rng.choices(few, k=rng.randrange(14))
        index.match(keys)
        index.ready(rng.randrange(3), keys)
        live.append(index.claim(rng.randrange(3), keys))
        index.start(live[-1])
        if seed % 2 == 0 and rng.random() < 0.3:
            index.stored(2, keys, rng.choice([None, *few]))
            index.evicted(2, rng.choices(few, k=3))
        if len(live) > 5:
            leave = index.end if rng.random() < 0.7 else index.abandon
            leave(live.pop(rng.randrange(len(live))))
    for slot in range(3):
        index.drop(slot)
    assert len(index) == 0
    assert not index._holders.root.children


# -- precise sources


def test_exact_events_are_the_truth_once_a_request_ended() -> None:
    """What a request used counts while it runs; afterwards only what was reported."""
    index = PrefixIndex()
    index.add(0, 100, precise=True)
    claim = index.claim(0, prompt("abcdef"))
    index.start(claim)
    index.stored(0, prompt("abc"), None)
    assert index.ready(0, prompt("abcdef")) == 6
    index.end(claim)
    assert index.ready(0, prompt("abcdef")) == 3
    assert index.match(prompt("abcdef")) == [(3, 1)]
    assert index.cached(0) == 3


def test_a_hole_hides_what_is_behind_it_until_it_is_filled() -> None:
    """The match is the number of leading blocks held, and notices name what a hole hides."""
    stored: list[int] = []
    evicted: list[int] = []
    index = PrefixIndex(lambda _, keys: stored.extend(keys), lambda _, keys: evicted.extend(keys))
    index.add(0, 100, precise=True)
    keys, branch = prompt("abcdef"), prompt("abcxy")
    index.stored(0, keys, None)
    index.stored(0, branch[3:], branch[2])
    index.evicted(0, [keys[1]])
    assert index.match(keys) == [(1, 1)]
    assert sorted(evicted) == sorted({*keys[1:], *branch[1:]})
    index.evicted(0, [keys[4]])
    stored.clear()
    index.stored(0, [keys[1]], keys[0])
    assert index.match(keys) == [(4, 1)]
    assert index.match(branch) == [(5, 1)]
    assert sorted(stored) == sorted({keys[1], keys[2], keys[3], *branch[1:]})
    index.check()


def test_repeated_unknown_and_malformed_events_are_harmless() -> None:
    """Sources repeat themselves, miss things, and may be wrong."""
    index = PrefixIndex()
    index.add(0, 100, precise=True)
    keys = prompt("abcd")
    index.stored(0, keys, None)
    index.stored(0, keys, None)
    index.stored(0, [], None)
    index.evicted(0, prompt("zzz"))
    index.stored(0, [1, 2, 3, 2, 1], None)
    index.stored(0, [4, 5], 5)
    index.stored(0, [6, 7], 6)
    index.evicted(0, [5, 6])
    index.check()
    assert index.match(keys) == [(4, 1)]
    index.evicted(0, [1])
    index.evicted(0, [keys[3], keys[3]])
    index.check()
    assert index.match(keys) == [(3, 1)]


def test_a_source_that_loses_removals_is_started_afresh() -> None:
    """Invariant 9 for precise slots: reports are bounded by a multiple of the capacity."""
    evicted: list[int] = []
    index = PrefixIndex(on_evicted=lambda _, keys: evicted.extend(keys))
    index.add(0, 5, precise=True)
    keys = prompt("a" * 21)
    for parent, key in pairwise([None, *keys]):
        assert key is not None
        index.stored(0, [key], parent)
    assert len(index) == 0
    assert set(evicted) == set(keys)
    index.check()


# -- notices


def test_notices_name_what_changed_after_it_did() -> None:
    """The first block that a start makes ready; each block that is evicted."""
    index: PrefixIndex
    heard: list[tuple[str, int, list[int], int]] = []
    keys, other = prompt("abcd"), prompt("wxyz")
    index = PrefixIndex(
        lambda slot, k: heard.append(("stored", slot, list(k), index.ready(slot, keys))),
        lambda slot, k: heard.append(("evicted", slot, list(k), index.ready(slot, keys))),
    )
    index.add(5, 4)
    run(index, 5, "ab")
    run(index, 5, "abcd")
    run(index, 5, "wxyz")
    assert heard == [
        ("stored", 5, [keys[0]], 2),
        ("stored", 5, [keys[2]], 4),
        ("evicted", 5, keys, 0),
        ("stored", 5, [other[0]], 0),
    ]
