"""DualMap and BalanceRoute: examples computed by hand, and their definitions written naively."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fairlead
from fairlead.core.params import PolicyError
from fairlead.core.routing.hash_ring import HashRing
from fairlead.testing import check_dispatcher

from .rivals_naive import NaiveDualMap
from .routing_fleet import PlainFleet, chosen, match, place, policy, request

FAMILY = 1_000
"""Keys of one family of prompts begin with this many times its number."""


def prompt(family: int, blocks: int = 40, rid: int = 1, tail: int = 0):
    """A prompt of ``blocks`` blocks of 16 tokens; the last ``tail`` of them are its own."""
    keys = [FAMILY * family + i for i in range(blocks - tail)]
    keys += [10_000_000 + 100 * rid + i for i in range(tail)]
    return request(16 * blocks, rid=rid, keys=keys)


def pair(tested, fleet, req) -> set[int]:
    """The two candidates of a prompt: who takes it while the other has more to do."""
    found = {chosen(tested, fleet, req, match(fleet))}
    for slot in tuple(found):
        fleet.pending_prefill_tokens[slot] += 1
        found.add(chosen(tested, fleet, req, match(fleet)))
        fleet.pending_prefill_tokens[slot] -= 1
    return found


# ---------------------------------------------------------------------- the ring


def test_a_ring_moves_only_what_belonged_to_who_left() -> None:
    ids = [f"w{i}" for i in range(8)]
    ring = HashRing(128)
    ring.update(ids)
    points = [random.Random(n).getrandbits(64) for n in range(500)]
    before = [ring.owner(point) for point in points]
    assert len(set(before)) == 8
    ring.update([*ids[:3], "", *ids[4:]])
    after = [ring.owner(point) for point in points]
    assert all(a == b for a, b in zip(after, before, strict=True) if b != 3)
    assert 3 not in after
    ring.update(ids)
    assert [ring.owner(point) for point in points] == before


def test_rings_of_different_salt_are_independent() -> None:
    """Owners agree about as often as chance has it: 1 in 8."""
    ids = [f"w{i}" for i in range(8)]
    rings = HashRing(128, b"one"), HashRing(128, b"two")
    for ring in rings:
        ring.update(ids)
    points = [random.Random(n).getrandbits(64) for n in range(2_000)]
    same = sum(rings[0].owner(point) == rings[1].owner(point) for point in points)
    assert 0.08 < same / len(points) < 0.18


def test_the_first_of_a_ring_passes_over_who_may_not() -> None:
    ring = HashRing(16)
    ring.update(["a", "b", "c"])
    owner = ring.owner(12345)
    assert ring.first_of(12345, {0, 1, 2}) == owner
    assert ring.first_of(12345, {0, 1, 2} - {owner}) in {0, 1, 2} - {owner}
    assert ring.first_of(12345, set()) == -1


# ---------------------------------------------------------------------- DualMap


def test_dualmap_prompts_of_one_prefix_meet_on_two_workers_and_prefixes_spread() -> None:
    tested, fleet = policy("dualmap"), PlainFleet(16)
    for n in range(64):  # so that no prefix is too common
        place(tested, fleet, prompt(n, rid=n), match(fleet))
    pairs = [pair(tested, fleet, prompt(family)) for family in range(64)]
    assert all(len(two) == 2 for two in pairs)
    assert [pair(tested, fleet, prompt(family, blocks=90)) for family in range(64)] == pairs
    taken = Counter(slot for two in pairs for slot in two)
    assert len(taken) == 16
    assert max(taken.values()) <= 20, "8 of 128 on average"


def test_dualmap_affinity_within_the_objective_then_the_less_loaded_of_two_then_of_all() -> None:
    """35 us a token, 70 ms: 2,000 tokens. The prompt has 640, of which the warm worker caches 320."""
    tested, fleet = policy("dualmap", prefill_us=35, slo_ms=70), PlainFleet(8)
    for n in range(64):
        place(tested, fleet, prompt(n, rid=n), match(fleet))
    req = prompt(5)
    warm, cold = sorted(pair(tested, fleet, req))
    cached = [0] * 8
    cached[warm] = 320
    m = match(fleet, cached)
    fleet.pending_prefill_tokens[warm] = 2_000 - 320
    choice = tested.choose(req, m, fleet, 0)
    assert (choice.slot, choice.branch) == (warm, "dualmap: affinity")
    fleet.pending_prefill_tokens[warm] += 1
    choice = tested.choose(req, m, fleet, 0)
    assert (choice.slot, choice.branch) == (cold, "dualmap: less loaded of two")
    fleet.pending_prefill_tokens[cold] = 1_361
    choice = tested.choose(req, m, fleet, 0)
    assert choice.branch == "dualmap: least loaded of all"
    assert choice.slot not in (warm, cold)
    assert sorted(choice.scores) == [640] * 6 + [2_001] * 2


def test_dualmap_a_worker_without_place_is_too_slow() -> None:
    """As many sequences as it runs at once, or its KV pool full: then the other of the two, though cold."""
    req = prompt(5)
    for full in ({"batch_size": 256}, {"kv_used": 500_000 - 319}):
        tested, fleet = policy("dualmap"), PlainFleet(8)
        one, other = pair(tested, fleet, req)
        cached = [0] * 8
        cached[one] = 320
        assert chosen(tested, fleet, req, match(fleet, cached)) == one
        (name, value), *_ = full.items()
        getattr(fleet, name)[one] = value
        assert chosen(tested, fleet, req, match(fleet, cached)) == other
        getattr(fleet, name)[one] = value - 1
        assert chosen(tested, fleet, req, match(fleet, cached)) == one


def test_dualmap_of_two_equal_matches_takes_the_one_with_less_to_do() -> None:
    tested, fleet = policy("dualmap"), PlainFleet(8)
    req = prompt(5)
    one, other = pair(tested, fleet, req)
    fleet.pending_prefill_tokens[one] = 10
    assert chosen(tested, fleet, req, match(fleet, [320] * 8)) == other
    fleet.pending_prefill_tokens[other] = 20
    assert chosen(tested, fleet, req, match(fleet, [320] * 8)) == one


def test_dualmap_a_third_worker_that_is_warm_is_not_asked() -> None:
    tested, fleet = policy("dualmap"), PlainFleet(8)
    for n in range(64):
        place(tested, fleet, prompt(n, rid=n), match(fleet))
    req = prompt(5)
    two = pair(tested, fleet, req)
    cached = [0 if slot in two else 624 for slot in range(8)]
    assert chosen(tested, fleet, req, match(fleet, cached)) in two


def test_dualmap_tells_a_prefix_apart_by_what_follows_when_too_many_share_it() -> None:
    """On 8 workers 2 / 8 of the arrivals are the most. All of them share 32 blocks, and differ after them."""
    tested, fleet = policy("dualmap"), PlainFleet(8)
    used = Counter(
        place(tested, fleet, prompt(1, blocks=80, rid=n, tail=48), match(fleet)) for n in range(400)
    )
    assert len(used) == 8
    calm, fleet = policy("dualmap"), PlainFleet(8)
    used = set()
    for n in range(400):
        family = 1 if n % 5 == 0 else 100 + n
        slot = place(calm, fleet, prompt(family, blocks=80, rid=n, tail=48), match(fleet))
        if family == 1 and n > 50:
            used.add(slot)
    assert len(used) <= 2, "a fifth of the arrivals is not too many"


def test_dualmap_forgets_arrivals_after_the_window() -> None:
    tested, fleet = policy("dualmap", window_s=1), PlainFleet(8)
    for n in range(50):
        place(tested, fleet, prompt(1, blocks=80, rid=n, tail=48), match(fleet), now=0)
    tested.check()
    tested.tick(1_000_000)
    assert not tested.prefixes._counts
    tested.check()


def test_dualmap_short_prompts_go_where_least_is_to_do() -> None:
    tested, fleet = policy("dualmap"), PlainFleet(4, pending_prefill_tokens=[50, 20, 30, 40])
    short = request(48, keys=(1, 2, 3))
    assert chosen(tested, fleet, short, match(fleet)) == 1
    assert chosen(tested, fleet, short, match(fleet, [0, 0, 0, 16])) == 1
    assert chosen(tested, fleet, short, match(fleet, [0, 0, 0, 32])) == 3


def test_dualmap_a_worker_that_joins_or_leaves_moves_few_prefixes() -> None:
    tested, fleet = policy("dualmap"), PlainFleet(16)
    for n in range(64):
        place(tested, fleet, prompt(n, rid=n), match(fleet))
    before = [pair(tested, fleet, prompt(n)) for n in range(64)]
    fleet.ids[7] = ""
    fleet.candidates.remove(7)
    after = [pair(tested, fleet, prompt(n)) for n in range(64)]
    assert all(7 not in two for two in after)
    assert all(a == b for a, b in zip(after, before, strict=True) if 7 not in b)
    assert all(len(a & b) == 1 for a, b in zip(after, before, strict=True) if 7 in b)


def test_dualmap_without_an_objective_that_can_be_met_is_least_expected_ttft() -> None:
    tested = policy("dualmap", slo_ms=0)
    fleet = PlainFleet(6, pending_prefill_tokens=[9, 8, 7, 6, 5, 4])
    assert chosen(tested, fleet, prompt(1), match(fleet)) == 5


@pytest.mark.parametrize("seed", range(12))
def test_dualmap_equals_its_definition_over_a_history(seed: int) -> None:
    """Families that a few share, that many share, and that are too short; workers that may not take any."""
    rng = random.Random(seed)
    size, window_us = rng.randrange(1, 9), rng.choice([300_000, 3_000_000])
    slo_us, blocks = rng.choice([0, 20_000, 80_000]), rng.choice([1, 4])
    tested = policy(
        "dualmap",
        slo_ms=slo_us / 1_000,
        prefill_us=32,
        prefix_blocks=blocks,
        window_s=max(1, window_us / 1e6),
    )
    reference = NaiveDualMap(slo_us, 32, blocks, max(1_000_000, window_us), 3, 1_000)
    fleet, now = PlainFleet(size), 0
    for rid in range(150):
        now += rng.randrange(40_000)
        fleet.candidates = sorted(rng.sample(range(size), rng.randrange(1, size + 1)))
        fleet.pending_prefill_tokens = [100 * rng.randrange(20) for _ in range(size)]
        fleet.batch_size = [rng.randrange(4) for _ in range(size)]
        fleet.max_num_seqs = [3] * size
        fleet.kv_used, fleet.kv_tokens = [rng.choice([0, 300, 700]) for _ in range(size)], [1_000] * size
        req = prompt(
            rng.choice([1, 1, 1, 2, 3, rid + 10]), rng.choice([2, 12, 40]), rid, tail=rng.choice([0, 1])
        )
        cached = [rng.choice([0, 0, 16, 31]) for _ in range(size)]
        expected = reference.route(
            req.keys, req.prompt_tokens, fleet.ids, fleet.candidates, now, cached,
            fleet.pending_prefill_tokens, fleet.batch_size, fleet.kv_used, tested.last,
        )  # fmt: skip
        assert place(tested, fleet, req, match(fleet, cached), now) == expected
        reference.arrivals.append((now, req.keys))
        tested.check()


# ---------------------------------------------------------------------- BalanceRoute


def test_balance_route_example_of_the_paper_s_quantities() -> None:
    """Loads 100, 90, 70, 60 and M = 100: a prompt of 25 fits two workers; the emptier takes it."""
    tested, fleet = policy("balance_route"), PlainFleet(4, context=[100, 90, 70, 60])
    choice = tested.choose(request(25), match(fleet), fleet, 0)
    # F: 25 - 4 * 25, 25 - 4 * 15, 25, 25
    assert [-score for score in choice.scores] == [-75, -35, 25, 25]
    assert choice.slot == 3


def test_balance_route_of_those_it_fits_on_takes_the_one_with_most_free_sequences() -> None:
    tested = policy("balance_route")
    fleet = PlainFleet(4, context=[100, 90, 70, 60], batch_size=[1, 1, 2, 5])
    assert chosen(tested, fleet, request(25), match(fleet)) == 2
    fleet.max_num_seqs[3] = 300
    assert chosen(tested, fleet, request(25), match(fleet)) == 3


def test_balance_route_beyond_the_margin_the_least_loaded_takes_it() -> None:
    """80 fits nobody: F = 80 - 4 * (80 - margin), best where the margin is largest, whatever the batch."""
    tested = policy("balance_route")
    fleet = PlainFleet(4, context=[100, 90, 70, 60], batch_size=[1, 1, 2, 50])
    choice = tested.choose(request(80), match(fleet), fleet, 0)
    assert [-score for score in choice.scores] == [-240, -200, -120, -80]
    assert choice.slot == 3


def test_balance_route_counts_what_waits_for_a_worker_and_knows_no_cache() -> None:
    tested = policy("balance_route")
    fleet = PlainFleet(2, context=[50, 50], kv_used=[90, 10], kv_running=[50, 10])
    assert chosen(tested, fleet, request(100), match(fleet, [99, 0])) == 1


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    size=st.integers(0, 40),
    last=st.integers(-1, 7),
)
def test_balance_route_takes_most_off_the_sum_of_gaps(rows, size, last) -> None:
    """F is the fall of G * M - (sum of loads), computed here from the loads before and after."""
    assume(any(up for *_, up in rows))
    fleet = PlainFleet(len(rows), context=[10 * c for c, *_ in rows], batch_size=[b for _, _, b, _ in rows])
    fleet.kv_used = [10 * w for _, w, *_ in rows]
    fleet.candidates = [s for s, row in enumerate(rows) if row[3]]
    loads = [10 * (c + w) for c, w, *_ in rows]
    many = len(fleet.candidates)

    def gaps(loads: list[int]) -> int:
        return many * max(loads) - sum(loads)

    falls = []
    for slot in fleet.candidates:
        after = [load + size * (s == slot) for s, load in enumerate(loads)]
        falls.append(gaps(loads) - gaps(after))
    tested = policy("balance_route")
    tested.last = last = min(last, len(rows) - 1)
    choice = tested.choose(request(size, keys=(1,)), match(fleet), fleet, 0)
    assert [-score for score in choice.scores] == falls

    def rank(slot: int, fall: int) -> tuple[int, ...]:
        turn = (slot - last - 1) % len(rows)
        return -fall, fleet.batch_size[slot], loads[slot], turn

    assert choice.slot == min(zip(fleet.candidates, falls, strict=True), key=lambda c: rank(*c))[0]


# ---------------------------------------------------------------------- both


@pytest.mark.parametrize("name", ["dualmap", "dualmap:slo_ms=5,prefix_blocks=1,window_s=1", "balance_route"])
def test_keeps_the_promises_of_every_policy(name: str) -> None:
    check_dispatcher(lambda: fairlead.make_dispatcher(order="dlpm", policy=name))


@pytest.mark.parametrize("given_", [{"slo_ms": -1}, {"prefix_blocks": 0}, {"window_s": 0}, {"points": 0}])
def test_refuses_values_out_of_range(given_: dict[str, object]) -> None:
    (param,) = given_
    with pytest.raises(PolicyError, match=f"dualmap: parameter '{param}' takes"):
        policy("dualmap", **given_)
