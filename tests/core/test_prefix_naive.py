"""The prefix index against a naive one that keeps a set of blocks for each worker."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fairlead.core.keys import chain_keys
from fairlead.core.prefix import PrefixIndex
from fairlead.core.prefix.tree import Claim

SLOTS = 3


def prompt(letters: str) -> list[int]:
    return chain_keys((letter.encode() for letter in letters), seed=1)


class NaiveClaim:
    def __init__(self, slot: int, keys: list[int], claim: Claim) -> None:
        self.slot = slot
        self.keys = keys
        self.claim = claim
        self.running = False


class NaiveSlot:
    def __init__(self, capacity: int, precise: bool) -> None:
        self.capacity = capacity
        self.precise = precise
        self.used: dict[int, tuple[int, int]] = {}  # cached block -> (last use, minus its depth)
        self.held: dict[int, int | None] = {}  # block that an event reported -> its parent
        self.claims: list[NaiveClaim] = []

    def reported(self, key: int) -> bool:
        node: int | None = key
        while node is not None:
            if node not in self.held:
                return False
            node = self.held[node]
        return True

    def pinned(self) -> set[int]:
        return {key for claim in self.claims if claim.running for key in claim.keys}

    def assigned(self) -> set[int]:
        return {key for claim in self.claims for key in claim.keys}

    def is_ready(self, key: int) -> bool:
        return key in self.used or key in self.pinned() or (self.precise and self.reported(key))

    def holds(self, key: int) -> bool:
        return self.is_ready(key) or key in self.assigned()

    def cached(self) -> int:
        mine = len(self.used.keys() | self.pinned())
        return max(mine, len(self.held)) if self.precise else mine

    def use(self, keys: list[int], now: int, known: bool) -> None:
        for depth, key in enumerate(keys):
            if known or key in self.used:
                self.used[key] = (now, -depth)

    def evict(self) -> None:
        pinned = self.pinned()
        limit = 0 if self.precise else self.capacity
        while len(self.used.keys() | pinned) > limit and self.used.keys() - pinned:
            del self.used[min(self.used.keys() - pinned, key=self.used.__getitem__)]


def lead(keys: list[int], test: "Sequence[bool]") -> int:
    return next((at for at, found in enumerate(test) if not found), len(keys))


class World:
    """The index and its naive twin, and waiting requests that follow the index's notices."""

    def __init__(self) -> None:
        self.index = PrefixIndex(self.on_stored, self.on_evicted)
        self.slots: dict[int, NaiveSlot] = {}
        self.claims: list[NaiveClaim] = []
        self.prompts: dict[tuple[int, ...], None] = {}
        self.watched: dict[tuple[int, tuple[int, ...]], int] = {}
        self.now = 0

    # What a queue does: look again only at what a notice names.
    def on_stored(self, slot: int, keys: Sequence[int]) -> None:
        for (where, which), matched in self.watched.items():
            if where == slot and matched < len(which) and which[matched] in keys:
                self.watched[where, which] = self.index.ready(slot, list(which))

    def on_evicted(self, slot: int, keys: Sequence[int]) -> None:
        for (where, which), matched in self.watched.items():
            if where == slot and matched and which[matched - 1] in keys:
                self.watched[where, which] = self.index.ready(slot, list(which))

    def add(self, slot: int, capacity: int, precise: bool) -> None:
        self.slots[slot] = NaiveSlot(capacity, precise)
        self.index.add(slot, capacity, precise)
        for keys in self.prompts:
            self.watched[slot, keys] = 0

    def drop(self, slot: int) -> None:
        del self.slots[slot]
        self.index.drop(slot)
        self.watched = {where: matched for where, matched in self.watched.items() if where[0] != slot}
        for claim in [c for c in self.claims if c.slot == slot]:
            self.claims.remove(claim)
            if claim.running:
                self.index.end(claim.claim)
            else:
                self.index.abandon(claim.claim)

    def clear(self, slot: int, precise: bool) -> None:
        naive = self.slots[slot]
        naive.used.clear()
        naive.held.clear()
        naive.precise = precise
        self.index.clear(slot, precise)

    def resize(self, slot: int, capacity: int) -> None:
        self.slots[slot].capacity = capacity
        self.slots[slot].evict()
        self.index.resize(slot, capacity)

    def claim(self, slot: int, keys: list[int]) -> None:
        claim = NaiveClaim(slot, keys, self.index.claim(slot, keys))
        self.claims.append(claim)
        self.slots[slot].claims.append(claim)
        if tuple(keys) not in self.prompts:
            self.prompts[tuple(keys)] = None
            for each in self.slots:
                self.watched[each, tuple(keys)] = self.index.ready(each, keys)

    def start(self, claim: NaiveClaim) -> None:
        slot = self.slots[claim.slot]
        expected = lead(claim.keys, [slot.is_ready(key) for key in claim.keys])
        claim.running = True
        slot.evict()
        assert self.index.start(claim.claim) == expected

    def leave(self, claim: NaiveClaim, worked: bool) -> None:
        self.now += 1
        self.claims.remove(claim)
        slot = self.slots[claim.slot]
        slot.claims.remove(claim)
        if claim.running:
            slot.use(claim.keys, self.now, known=worked)
        slot.evict()
        if claim.running and worked:
            self.index.end(claim.claim)
        else:
            self.index.abandon(claim.claim)

    def stored(self, slot: int, keys: list[int], parent: int | None) -> None:
        naive = self.slots[slot]
        for above, key in pairwise([parent, *keys]):
            assert key is not None
            naive.held.setdefault(key, above)
        if len(naive.held) > 4 * naive.capacity:
            naive.held.clear()
        self.index.stored(slot, keys, parent)

    def evicted(self, slot: int, keys: list[int]) -> None:
        for key in keys:
            self.slots[slot].held.pop(key, None)
        self.index.evicted(slot, keys)

    def compare(self) -> None:
        self.index.check()
        for slot, naive in self.slots.items():
            assert self.index.pinned(slot) == len(naive.pinned())
            assert self.index.assigned(slot) == len(naive.assigned())
            assert self.index.cached(slot) == naive.cached()
        for known in list(self.prompts)[-20:]:
            keys = list(known)
            found: dict[int, int] = {}
            steps = self.index.match(keys)
            assert all(blocks > after for (blocks, _), (after, _) in pairwise(steps))
            for blocks, bitmap in steps:
                for slot in range(SLOTS):
                    if bitmap >> slot & 1:
                        assert slot not in found
                        found[slot] = blocks
            for slot, naive in self.slots.items():
                ready = lead(keys, [naive.is_ready(key) for key in keys])
                assert self.index.ready(slot, keys) == ready
                assert self.watched[slot, known] == ready
                assert found.get(slot, 0) == lead(keys, [naive.holds(key) for key in keys])


PROMPTS = st.text("ab", max_size=9)
SLOT = st.integers(0, SLOTS - 1)
CAPACITY = st.integers(0, 14)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.add(0, 8, precise=False)
        self.world.add(1, 8, precise=True)

    def pick(self, data: st.DataObject, running: bool | None = None) -> NaiveClaim | None:
        claims = [c for c in self.world.claims if running is None or c.running is running]
        return data.draw(st.sampled_from(claims)) if claims else None

    @rule(slot=SLOT, letters=PROMPTS, starts=st.booleans())
    def claim(self, slot: int, letters: str, starts: bool) -> None:
        if slot in self.world.slots:
            self.world.claim(slot, prompt(letters))
            if starts:
                self.world.start(self.world.claims[-1])

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        claim = self.pick(data, running=False)
        if claim is not None:
            self.world.start(claim)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        claim = self.pick(data, running=True)
        if claim is not None:
            self.world.leave(claim, worked=True)

    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        claim = self.pick(data)
        if claim is not None:
            self.world.leave(claim, worked=False)

    @rule(letters=PROMPTS, first=st.integers(0, 8), slot=SLOT)
    def stored(self, letters: str, first: int, slot: int) -> None:
        if slot in self.world.slots and self.world.slots[slot].precise:
            keys = prompt(letters)
            first = min(first, len(keys))
            self.world.stored(slot, keys[first:], keys[first - 1] if first else None)

    @rule(letters=PROMPTS, first=st.integers(0, 8), many=st.integers(1, 4), slot=SLOT)
    def evicted(self, letters: str, first: int, many: int, slot: int) -> None:
        if slot in self.world.slots and self.world.slots[slot].precise:
            self.world.evicted(slot, prompt(letters)[first : first + many])

    @rule(slot=SLOT, capacity=CAPACITY)
    def resize(self, slot: int, capacity: int) -> None:
        if slot in self.world.slots:
            self.world.resize(slot, capacity)

    @rule(slot=SLOT, precise=st.booleans())
    def clear(self, slot: int, precise: bool) -> None:
        if slot in self.world.slots:
            self.world.clear(slot, precise)

    @rule(slot=SLOT, capacity=CAPACITY, precise=st.booleans())
    def replace(self, slot: int, capacity: int, precise: bool) -> None:
        if slot in self.world.slots:
            self.world.drop(slot)
        self.world.add(slot, capacity, precise)

    @precondition(lambda self: len(self.world.slots) > 1)
    @rule(slot=SLOT)
    def drop(self, slot: int) -> None:
        if slot in self.world.slots:
            self.world.drop(slot)

    @invariant()
    def same(self) -> None:
        self.world.compare()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(6))
def test_long_random_runs_agree_with_the_naive_index(seed: int) -> None:
    """Longer histories with deeper trees than hypothesis reaches; compared every few steps."""
    rng = Random(seed)
    world = World()
    for slot in range(SLOTS):
        world.add(slot, capacity=rng.randint(10, 60), precise=slot == 1)
    roots = ["".join(rng.choices("ab", k=12)) for _ in range(3)]
    for step in range(500):
        slot = rng.randrange(SLOTS)
        letters = rng.choice(roots)[: rng.randint(0, 12)] + "".join(rng.choices("abc", k=rng.randint(0, 8)))
        keys = prompt(letters)
        action = rng.random()
        if action < 0.4:
            world.claim(slot, keys)
            if rng.random() < 0.6:
                world.start(world.claims[-1])
        elif action < 0.75 and world.claims:
            world.leave(rng.choice(world.claims), worked=rng.random() < 0.8)
        elif action < 0.78:
            world.resize(slot, rng.randint(0, 60))
        elif action < 0.8:
            world.clear(slot, precise=rng.random() < 0.5)
        elif world.slots[slot].precise and keys:
            first = rng.randrange(len(keys))
            if rng.random() < 0.6:
                first = rng.choice((0, first))
                world.stored(slot, keys[first:], keys[first - 1] if first else None)
            else:
                world.evicted(slot, keys[first:])
        if not step % 5:
            world.compare()
