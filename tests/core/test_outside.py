"""Figures from outside are bounded where they enter, whatever is said."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.outside import MOST_TOKENS, MOST_US, Usage, amount, usage, whole

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**400),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
)


@given(anything)
def test_a_whole_number_is_none_or_within_its_bounds(value: object) -> None:
    found = whole(value, 100, -5)
    assert found is None or (type(found) is int and -5 <= found <= 100 and found == value)


@given(anything)
def test_an_amount_is_none_or_a_finite_float_within_its_bounds(value: object) -> None:
    found = amount(value, 2.5)
    assert found is None or (type(found) is float and 0 <= found <= 2.5)


@given(anything, anything, anything)
def test_usage_is_possible_or_not_believed(prompt: object, cached: object, output: object) -> None:
    (p, c, o), wrong = usage(prompt, cached, output, 1000, 50)
    assert p is None or 1 <= p <= 1000
    assert c is None or (p is not None and 0 <= c <= p)
    assert o is None or 0 <= o <= 50
    if (p, o) != (prompt, output):
        assert wrong


def test_examples() -> None:
    assert whole(5.0) == 5
    assert whole(True) is None
    assert whole(float("nan")) is None
    assert whole(10**400) is None
    assert amount(10**400, MOST_US) is None
    assert amount(3, MOST_US) == 3.0
    assert usage(10, 4, 7) == (Usage(10, 4, 7), False)
    assert usage(-100_000, 0, 7) == (Usage(None, None, 7), True)
    assert usage(10, 1_000_000, 7) == (Usage(10, None, 7), True)
    assert usage(10**26, None, 2**63) == (Usage(None, None, None), True)
    assert usage(None, None, None) == (Usage(), False)
    assert usage(MOST_TOKENS + 1, None, 1, MOST_TOKENS) == (Usage(None, None, 1), True)
