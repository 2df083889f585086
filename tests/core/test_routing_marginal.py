"""Marginal cost, by examples worked out by hand.

``PlainFleet`` expects 125 tokens of output. A request that is to get none leaves the decoding out.
"""

import pytest

from .routing_fleet import PlainFleet, chosen, match, place, policy, request


def scores(fleet, prompt=1_000, tokens=None, limit=0):
    req = request(prompt)._replace(max_tokens=limit)
    return list(policy("marginal").choose(req, match(fleet, tokens), fleet, 0).scores)


def test_pending_adds_and_extend_is_weighed_by_who_it_slows():
    """w0: 500 + 200*(1 + 4/8) = 800; w1: 0 + 1000*1 = 1000."""
    fleet = PlainFleet(2, batch_size=[4, 0], pending_prefill_tokens=[500, 0])
    assert scores(fleet, tokens=[800, 0]) == [800, 1_000]


def test_a_warm_worker_is_left_later_than_with_lmetric():
    """(500 + 200)*5 = 3500 > 1000*1 sends LMetric away; 800 + 125*262.5*4/2000 = 866 < 1000 stays."""
    fleet = PlainFleet(2, batch_size=[4, 0], pending_prefill_tokens=[500, 0])
    m = match(fleet, [800, 0])
    assert chosen(policy("lmetric"), fleet, request(1_000), m) == 1
    assert chosen(policy("marginal"), fleet, request(1_000), m) == 0
    assert scores(fleet, tokens=[800, 0], limit=None) == [800 + 65.625, 1_000]


def test_who_decodes_beside_much_context_decodes_slowly():
    """125 tokens of output wait for 400,000 of context: 125 * 400,000 / 2,000 = 25,000, and 10 to compute."""
    fleet = PlainFleet(2, context=[400_000, 0])
    assert scores(fleet, tokens=[990, 0], limit=None) == pytest.approx([25_010, 1_000])
    assert scores(fleet, tokens=[990, 0], limit=10) == pytest.approx([2_010, 1_000])


def test_many_long_answers_weigh_more_than_a_few_long_prompts():
    """w0: 10*(1 + 40/8) + 125*(1000 + 262.5*40)/2000; w1: 10*(1 + 10/8) + 125*(5000 + 262.5*10)/2000."""
    fleet = PlainFleet(2, batch_size=[40, 10], context=[1_000, 5_000])
    assert scores(fleet, prompt=10, limit=None) == pytest.approx([60 + 718.75, 22.5 + 476.5625])


def test_longer_answers_are_longer_in_the_pool_too():
    """200 + 62.5 tokens a sequence for 125 of output, 200 + 5 for 10."""
    fleet = PlainFleet(1, batch_size=[8])
    assert scores(fleet, prompt=100, limit=125) == pytest.approx([200 + 125 * 262.5 * 8 / 2_000])
    assert scores(fleet, prompt=100, limit=10) == pytest.approx([200 + 10 * 205 * 8 / 2_000])


def test_eviction_costs_twice_the_hit_rate_of_what_goes():
    """600 of 1000 tokens must evict: (1000 + 2*0.5*600)*(1 + 4/8) = 2400; nothing hits, nothing lost."""
    fleet = PlainFleet(2, batch_size=[4, 4], kv_cached=[499_600, 499_600], hit_rate=[0.5, 0.0])
    assert scores(fleet) == [2_400, 1_500]


@pytest.mark.parametrize(
    ("cached", "cost"), [(499_000, 1_000), (499_001, 1_001), (500_000, 2_000), (600_000, 2_000)]
)
def test_what_evicts_is_between_nothing_and_all_that_is_computed(cached, cost):
    assert scores(PlainFleet(1, kv_cached=[cached], hit_rate=[0.5])) == [cost]


def test_tokens_beyond_the_pool_are_added():
    """kv 499 500 + 1000 - 500 000 = 500 over; with 600 matched only 400 are added, and fit."""
    fleet = PlainFleet(2, kv_used=[499_500, 499_500])
    assert scores(fleet, tokens=[0, 600]) == [1_500, 400]


def test_pools_differ():
    fleet = PlainFleet(2, kv_used=[4_000, 4_000], kv_tokens=[4_200, 400_000])
    assert scores(fleet) == [1_000 + 800, 1_000]


def test_of_those_that_wait_only_who_goes_first_counts():
    """Those ahead are taken to be as long as the request is.

    w0: 900 sent + 100 ahead + 300 beyond the pool + 1000*(1 + 2/8) + 125*(0 + 1*1000 + 262.5*2)/2000;
    w1: 700 sent + 1000*(1 + 4/8) + 125*(4000 + 262.5*4)/2000.
    """
    fleet = PlainFleet(
        2, running=[1, 4], queued=[1, 9], pending_prefill_tokens=[1_000, 10_000], kv_running=[499_200, 1_000]
    )
    fleet.context = [0, 4_000]
    fleet.before = [(1, 100), (0, 0)]
    fleet.waiting_tokens = lambda slot: (100, 9_300)[slot]
    # w0 has 500 000 - 499 200 - 100 = 700 tokens of room for 1 000.
    decoding = (125 * (1_000 + 525) / 2_000, 125 * (4_000 + 1_050) / 2_000)
    assert scores(fleet, limit=None) == pytest.approx(
        [1_000 + 300 + 1_250 + decoding[0], 700 + 1_500 + decoding[1]]
    )


def test_ties_go_to_the_smaller_batch_then_to_fewer_tokens_then_rotate():
    """100*(1 + 8/8) = 200 = 100 + 100*1."""
    fleet, silent = PlainFleet(2, batch_size=[8, 0], pending_prefill_tokens=[0, 100]), request(100)
    silent = silent._replace(max_tokens=0)
    assert chosen(policy("marginal"), fleet, silent, match(fleet)) == 1
    fleet, marginal = PlainFleet(4, kv_used=[9, 5, 7, 5]), policy("marginal")
    assert [place(marginal, fleet, request(100), match(fleet)) for _ in range(3)] == [1, 3, 1]


def test_a_prefix_that_many_ask_for_at_once_is_computed_on_every_idle_worker():
    """Who waits for the first of them would wait as long as for a copy, and decode beside more."""
    fleet, marginal, got = PlainFleet(4), policy("marginal"), [0] * 4
    for rid in range(16):
        cached = [990 if n else 0 for n in got]
        slot = place(marginal, fleet, request(1_000, rid=rid), match(fleet, cached))
        fleet.pending_prefill_tokens[slot] += 1_000 - cached[slot]
        fleet.batch_size[slot] += 1
        fleet.context[slot] += 1_000
        got[slot] += 1
    assert got == [4, 4, 4, 4]
