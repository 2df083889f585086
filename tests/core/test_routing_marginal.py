"""Marginal cost, by examples worked out by hand."""

import pytest

from .routing_fleet import PlainFleet, chosen, match, place, policy, request


def scores(fleet, prompt=1_000, tokens=None):
    return list(policy("marginal").choose(request(prompt), match(fleet, tokens), fleet, 0).scores)


def test_pending_adds_and_extend_is_weighed_by_the_root_of_the_batch():
    """w0: 500 + 200*sqrt(4) = 900; w1: 0 + 1000*sqrt(1) = 1000."""
    fleet = PlainFleet(2, batch_size=[3, 0], pending_prefill_tokens=[500, 0])
    assert scores(fleet, tokens=[800, 0]) == [900, 1_000]


def test_a_warm_worker_is_left_later_than_with_lmetric():
    """(500 + 200)*4 = 2800 > 1000*1 sends LMetric away where 900 < 1000 stays."""
    fleet = PlainFleet(2, batch_size=[3, 0], pending_prefill_tokens=[500, 0])
    m = match(fleet, [800, 0])
    assert chosen(policy("lmetric"), fleet, request(1_000), m) == 1
    assert chosen(policy("marginal"), fleet, request(1_000), m) == 0


def test_who_decodes_beside_much_context_decodes_slowly():
    """125 tokens of output wait for 400,000 of context: 125 * 400,000 / 5,000 = 10,000, and 10 to compute."""
    fleet = PlainFleet(2, context=[400_000, 0])
    m = match(fleet, [990, 0])
    assert list(policy("marginal").choose(request(1_000), m, fleet, 0).scores) == pytest.approx(
        [10_010, 1_000]
    )
    short = request(1_000)._replace(max_tokens=10)
    assert list(policy("marginal").choose(short, m, fleet, 0).scores) == pytest.approx([810, 1_000])


def test_eviction_costs_twice_the_hit_rate_of_what_goes():
    """600 of 1000 tokens must evict: (1000 + 2*0.5*600)*sqrt(4) = 3200; nothing hits, nothing lost."""
    fleet = PlainFleet(2, batch_size=[3, 3], kv_cached=[499_600, 499_600], hit_rate=[0.5, 0.0])
    assert scores(fleet) == [3_200, 2_000]


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
    """w0: 900 sent + 100 ahead + 1000*sqrt(1+1+1); w1: 700 sent + 0 ahead + 1000*sqrt(4+0+1)."""
    fleet = PlainFleet(
        2, running=[1, 4], queued=[1, 9], pending_prefill_tokens=[1_000, 10_000], kv_running=[499_200, 1_000]
    )
    fleet.context = [0, 4_000]
    fleet.before = [(1, 100), (0, 0)]
    fleet.waiting_tokens = lambda slot: (100, 9_300)[slot]
    # w0 has 500 000 - 499 200 - 100 = 700 tokens of room for 1 000.
    assert scores(fleet) == pytest.approx([1_000 + 300 + 1_000 * 3**0.5, 700 + 100 + 1_000 * 5**0.5])


def test_ties_go_to_the_smaller_batch_then_to_fewer_tokens_then_rotate():
    """100*sqrt(4) = 200 = 100 + 100*sqrt(1)."""
    fleet = PlainFleet(2, batch_size=[3, 0], pending_prefill_tokens=[0, 100])
    assert chosen(policy("marginal"), fleet, request(100), match(fleet)) == 1
    fleet, marginal = PlainFleet(4, kv_used=[9, 5, 7, 5]), policy("marginal")
    assert [place(marginal, fleet, request(100), match(fleet)) for _ in range(3)] == [1, 3, 1]
