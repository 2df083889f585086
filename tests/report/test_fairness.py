"""Shares, Jain's index and windows against their definitions."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.report.fairness import capped_jain, fair_shares, jain, look_through_windows

amounts = st.lists(st.floats(0, 1e9), min_size=1, max_size=12)


def test_jain_is_one_for_equals_and_one_over_n_for_a_monopoly() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([5, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == jain([]) == 1


@given(amounts)
def test_jain_is_its_formula(values: list[float]) -> None:
    squares = sum(x * x for x in values)
    if squares > 1e-200:
        assert jain(values) == pytest.approx(sum(values) ** 2 / (len(values) * squares))


def test_shares_give_small_demands_in_full_and_split_the_rest_by_weight() -> None:
    assert fair_shares([10, 100, 100], [1, 1, 1], 90) == [10, 40, 40]
    assert fair_shares([10, 100, 100], [1, 1, 3], 90) == [10, 20, 60]
    assert fair_shares([1, 2], [1, 1], 90) == [1, 2]


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 5)), min_size=1, max_size=8),
    st.integers(0, 4000),
)
def test_shares_are_max_min_fair(clients: list[tuple[int, int]], capacity: int) -> None:
    demands, weights = [float(d) for d, _ in clients], [float(w) for _, w in clients]
    shares = fair_shares(demands, weights, capacity)
    assert all(s <= d + 1e-6 for s, d in zip(shares, demands, strict=True))
    assert sum(shares) == pytest.approx(min(capacity, sum(demands)), abs=1e-6)
    levels = [s / w for s, w in zip(shares, weights, strict=True)]
    for share, demand, level in zip(shares, demands, levels, strict=True):
        if share < demand - 1e-6:  # who did not get all has as much by weight as anybody
            assert level == pytest.approx(max(levels), abs=1e-6)


def test_a_client_that_wanted_little_and_got_it_does_not_look_starved() -> None:
    service, weights = [10.0, 100.0, 100.0], [1.0, 1.0, 1.0]
    assert capped_jain(service, [10, 500, 500], weights) == pytest.approx(1)
    assert capped_jain(service, [500, 500, 500], weights) < 0.8
    assert capped_jain([0, 0], [0, 0], [1, 1]) == 1


def test_two_windows_by_hand() -> None:
    # 30 s samples, so that a window is two of them. Ann is served 300, then 600; Ben 300, then nothing.
    service = [[150.0, 300.0, 600.0, 900.0], [150.0, 300.0, 300.0, 300.0]]
    demand = [[300.0, 600.0, 900.0, 1200.0], [300.0, 600.0, 900.0, 1200.0]]
    found = look_through_windows(service, demand, [1.0, 1.0], 30_000_000, 120_000_000)
    assert found.seconds == 60
    # got (300, 300), (450, 150), (600, 0); came 600, 600, 600 to each
    assert found.gaps == pytest.approx([0, 300 / 60, 600 / 60])
    assert found.jains == pytest.approx([1.0, jain([450, 150]), 0.5])
    said = found.as_json()
    assert said["variance"] == pytest.approx(statistics.pvariance([0, 5, 10]), abs=1e-3)
    assert (said["max"], said["mean"], said["windows"]) == (10, 5, 3)


def test_a_gap_is_no_larger_than_what_the_client_wanted() -> None:
    found = look_through_windows([[600.0], [60.0]], [[600.0], [120.0]], [1.0, 1.0], 60_000_000, 60_000_000)
    assert found.gaps == [1.0]


def test_weights_divide_service() -> None:
    found = look_through_windows([[600.0], [300.0]], [[900.0], [900.0]], [2.0, 1.0], 60_000_000, 60_000_000)
    assert found.gaps == [0.0]
    assert found.jains == pytest.approx([1])


def test_windows_end_by_the_last_arrival_and_there_may_be_none() -> None:
    service, demand = [[float(k) for k in range(200)]], [[float(k) for k in range(200)]]
    assert len(look_through_windows(service, demand, [1.0], 1_000_000, 100_000_000).gaps) == 41
    assert look_through_windows(service, demand, [1.0], 1_000_000, 500_000).gaps == []
    assert look_through_windows([], [], [], 1_000_000, 10**9).as_json()["max"] is None
