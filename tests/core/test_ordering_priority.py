"""Strict priority on examples computed by hand, and against sorting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_ordering_examples import Bench, make


def bench_of(**weights: float) -> Bench:
    bench = Bench(make("priority"))
    for client, weight in weights.items():
        bench.ordering.set_weight(client, weight)
    return bench


def test_the_highest_weight_goes_first_however_late_it_comes() -> None:
    bench = bench_of(b=2.0, c=2.5)
    for client in "aabcb":
        bench.push(client, 10)
    assert [bench.admit() for _ in range(5)] == ["c", "b", "b", "a", "a"]


def test_equal_weights_go_by_arrival() -> None:
    bench = bench_of(a=3.0, b=3.0)
    for client in "abcba":
        bench.push(client, 10)
    assert [bench.admit() for _ in range(5)] == ["a", "b", "b", "a", "c"]


def test_a_changed_weight_moves_what_waits() -> None:
    bench = bench_of()
    for client in "aab":
        bench.push(client, 10)
    bench.ordering.set_weight("b", 1.5)
    assert bench.admit() == "b"
    bench.push("b", 10)
    bench.ordering.set_weight("b", 0.5)
    assert [bench.admit() for _ in range(3)] == ["a", "a", "b"]


@given(
    st.lists(st.sampled_from("abcd"), max_size=30),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.1, 0.5, 1.0, 1.000001, 7.0])),
)
def test_equals_sorting_by_weight_then_arrival(clients: list[str], weights: dict[str, float]) -> None:
    bench = bench_of(**weights)
    for client in clients:
        bench.push(client, 10)
    expected = sorted(clients, key=lambda client: -weights.get(client, 1.0))
    assert [bench.admit() for _ in clients] == expected


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        bench_of(a=weight)
