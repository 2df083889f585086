"""Differential: the policies against their definitions written naively, on random fleets and histories."""

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from . import routing_naive as naive
from .routing_fleet import PlainFleet, match, place, policy, request

SCORED = {
    "lmetric": (naive.lmetric, naive.lmetric_score, {"detector": False}),
    "marginal": (naive.marginal, naive.marginal_score, {}),
}


@st.composite
def fleets(draw):
    """Small numbers make ties likely; pools of different sizes, some over-full."""
    size = draw(st.integers(1, 9))
    small = st.integers(0, 3)
    return [
        naive.Worker(
            slot,
            batch_size=draw(small),
            queued=draw(st.integers(0, 1)),
            pending_prefill_tokens=100 * draw(small),
            kv_used=500 * draw(small),
            kv_cached=500 * draw(small),
            kv_tokens=draw(st.sampled_from([1_000, 1_300, 500_000])),
            context=400 * draw(small),
            hit_rate=draw(st.sampled_from([0.0, 0.25, 1.0])),
            matched=draw(st.sampled_from([0, 0, 100, 199])),
            candidate=draw(st.booleans()) or draw(st.booleans()),
        )
        for slot in range(size)
    ]


def plain(workers):
    fleet = PlainFleet(len(workers))
    for name in (
        "batch_size",
        "queued",
        "pending_prefill_tokens",
        "kv_used",
        "kv_cached",
        "kv_tokens",
        "context",
        "hit_rate",
    ):
        setattr(fleet, name, [getattr(w, name) for w in workers])
    fleet.candidates = [w.slot for w in workers if w.candidate]
    return fleet, match(fleet, [w.matched for w in workers])


@pytest.mark.parametrize("name", SCORED)
@settings(max_examples=200, deadline=None)
@given(workers=fleets(), last=st.integers(-1, 9))
def test_scores_and_choice_are_those_of_the_definition(name, workers, last):
    choose, score, given_params = SCORED[name]
    fleet, m = plain(workers)
    assume(fleet.candidates)  # without any, nobody asks
    tested = policy(name, **given_params)
    last = min(last, len(workers) - 1)  # slots never become fewer
    tested.last = last
    choice = tested.choose(request(200), m, fleet, 0)
    expected = choose(workers, 200, last)
    assert choice.slot == expected
    assert list(choice.scores) == pytest.approx([score(workers[s], 200) for s in fleet.candidates])


@pytest.mark.parametrize("name", ["d2lpm", "fair_lmetric"])
@pytest.mark.parametrize("seed", range(20))
def test_a_history_of_deficits_is_that_of_the_algorithm(name, seed):
    """All workers may take work all the time: then refills are the paper's, to the letter."""
    rng = random.Random(seed)
    size, quantum = rng.randrange(1, 6), rng.choice([1, 30, 500, 5_000])
    tested = policy(name, quantum=quantum)
    reference = naive.D2lpm(quantum, by_product=name == "fair_lmetric")
    reference.weights["bob"] = 3
    tested.set_weight("bob", 3)
    workers = [naive.Worker(slot) for slot in range(size)]
    for rid in range(150):
        for w in workers:
            w.batch_size, w.queued, w.pending_prefill_tokens = (
                rng.randrange(3),
                rng.randrange(2),
                50 * rng.randrange(3),
            )
            w.matched = rng.choice([0, 0, 60, 99])
        client, last = rng.choice(["ann", "bob", "cyd"]), tested.last
        fleet, m = plain(workers)
        expected = reference.route(client, workers, 100, last)
        assert place(tested, fleet, request(100, client=client, rid=rid), m) == expected
        reference.assigned(client, expected, 100 - workers[expected].matched)
        if rng.random() < 0.5:
            output = rng.randrange(1, 80)
            reference.decoded(client, expected, output)
            tested.decoded(client, expected, output)
        tested.check()
    for (client, slot), left in reference.deficits.items():
        assert tested.books.left(client, slot) == left
