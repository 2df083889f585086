"""Percentiles against the standard library, histograms against the samples that they count."""

import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.report.distribution import curve, describe, describe_histogram, field_names, percentile

samples = st.lists(st.integers(0, 10**9), min_size=2, max_size=60)


@given(samples)
def test_percentiles_are_those_of_the_inclusive_method(values: list[int]) -> None:
    ordered = sorted(values)
    expected = statistics.quantiles(ordered, n=100, method="inclusive")
    for percent in (1, 50, 75, 95, 99):
        assert percentile(ordered, percent) == pytest.approx(expected[percent - 1])


@given(samples)
def test_a_description_has_the_mean_and_the_deviation_of_the_whole_sample(values: list[int]) -> None:
    found = describe("ttft", sorted(values))
    assert found["mean_ttft_ms"] == pytest.approx(statistics.fmean(values) / 1000, abs=1e-3)
    assert found["median_ttft_ms"] == pytest.approx(statistics.median(values) / 1000, abs=1e-3)
    assert found["p50_ttft_ms"] == found["median_ttft_ms"]
    assert found["std_ttft_ms"] == pytest.approx(statistics.pstdev(values) / 1000, abs=1e-3)


@given(st.lists(st.sampled_from([100, 250, 300, 10_000]), min_size=1, max_size=60))
def test_a_histogram_is_described_as_the_sample_that_it_counts(values: list[int]) -> None:
    by_count, by_value = describe_histogram("itl", Counter(values)), describe("itl", sorted(values))
    assert by_count == pytest.approx(by_value, abs=1e-3)


def test_zero_counts_do_not_exist() -> None:
    assert describe_histogram("itl", {5: 0, 7000: 2})["mean_itl_ms"] == 7


def test_nothing_measured_is_none_and_not_zero() -> None:
    names = field_names("tpot")
    assert "p99.9_tpot_ms" in names
    assert describe("tpot", []) == describe_histogram("tpot", {}) == dict.fromkeys(names)
    assert curve([]) == []


def test_a_curve_goes_from_the_least_to_the_most_in_201_points() -> None:
    values = curve([1000 * k for k in range(11)])
    assert len(values) == 201
    assert (values[0], values[100], values[-1]) == (0, 5, 10)
    assert values == sorted(values)
