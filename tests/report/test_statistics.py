"""Student's t against printed tables, intervals against the standard library, knees by hand."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.report.numbers import change
from fairlead.report.statistics import LoadPoint, knee, paired, student_t_cdf, student_t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1000, 1.96234)],
)
def test_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(expected, abs=1e-4)


@given(st.floats(0.001, 0.999), st.integers(1, 60))
def test_quantile_inverts_the_distribution(probability: float, degrees: int) -> None:
    t = student_t_quantile(probability, degrees)
    assert student_t_cdf(t, degrees) == pytest.approx(probability, abs=1e-9)


def test_impossible_degrees_and_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="degrees"):
        student_t_cdf(1.0, 0)
    with pytest.raises(ValueError, match="probability"):
        student_t_quantile(1.0, 3)


def test_a_paired_difference_by_hand() -> None:
    before, after = {1: 10.0, 2: 20.0, 3: 30.0, 9: 1.0}, {1: 8.0, 2: 17.0, 3: 26.0, 8: 5.0}
    found = paired(before, after)
    assert found is not None
    assert (found.pairs, found.before, found.after, found.mean) == (3, 20, 17, -3)
    half = 4.30265 * statistics.stdev([-2, -3, -4]) / math.sqrt(3)
    assert found.low == pytest.approx(-3 - half, abs=1e-4)
    assert found.high == pytest.approx(-3 + half, abs=1e-4)
    assert found.ratio == pytest.approx((0.8 * 17 / 20 * 26 / 30) ** (1 / 3))
    assert found.ratio is not None
    assert found.ratio_low is not None
    assert found.ratio_high is not None
    assert found.ratio_low < found.ratio < found.ratio_high < 1
    assert found.seen is True


def test_noise_shared_by_a_pair_cancels_and_other_noise_does_not() -> None:
    before = {1: 100.0, 2: 200.0, 3: 400.0, 4: 50.0}
    found = paired(before, {seed: value * 0.9 for seed, value in before.items()})
    assert found is not None
    assert found.seen
    assert change(found).startswith("\N{MINUS SIGN}10% (")
    mixed = paired(before, {1: 210.0, 2: 110.0, 3: 390.0, 4: 52.0})
    assert mixed is not None
    assert mixed.seen is False
    assert change(mixed).startswith("no difference seen (")


def test_one_pair_has_no_interval_and_none_no_difference() -> None:
    found = paired({1: 10.0}, {1: 5.0})
    assert found is not None
    assert (found.low, found.high, found.seen) == (None, None, None)
    assert change(found) == "\N{MINUS SIGN}50%"
    assert paired({1: 10.0}, {2: 5.0}) is None
    assert change(None) == ""


def test_shares_change_by_points_and_zeros_by_amounts() -> None:
    shares = paired({1: 0.5, 2: 0.5, 3: 0.5}, {1: 0.61, 2: 0.6, 3: 0.59}, as_ratio=False)
    assert change(shares) == "+10 points (+7.5 to +12)"
    assert change(paired({1: 0.0, 2: 0.0}, {1: 2000.0, 2: 2000.0})) == "+2,000 (+2,000 to +2,000)"
    assert (
        change(paired({1: 1.0, 2: 1.0}, {1: 4.0, 2: 4.0}))
        == "4.00\N{MULTIPLICATION SIGN} (4.00 to 4.00\N{MULTIPLICATION SIGN})"
    )


def points(*rows: tuple[float, float, float, bool]) -> list[LoadPoint]:
    return [LoadPoint(*row) for row in rows]


def test_a_knee_is_the_last_load_before_the_curve_breaks() -> None:
    slow = knee(points((0.9, 600, 0.9, False), (0.5, 100, 0.5, False), (0.7, 400, 0.7, False)))
    assert slow is not None
    assert (slow.load, slow.breaks_at) == (0.7, 0.9)
    assert "5 times" in slow.why
    flat = knee(points((0.5, 100, 5.0, False), (0.7, 110, 5.4, False)))
    assert flat is not None
    assert (flat.load, flat.why) == (0.5, "goodput stopped growing")
    full = knee(points((0.5, 100, 5.0, False), (0.7, 110, 7.0, True)))
    assert full is not None
    assert full.why == "saturated"


def test_a_curve_that_holds_has_no_knee() -> None:
    assert knee(points((0.5, 100, 5.0, False), (0.7, 200, 7.0, False), (0.9, 450, 8.6, False))) is None
    assert knee(points((0.0, 100, 5.0, False))) is None
    assert knee([]) is None
