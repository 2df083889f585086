"""Retries are a share of what arrives, and no client spends those of the others."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core import events as ev
from fairlead.core.commands import Dispatch, Fail
from fairlead.core.dispatcher import Settings
from fairlead.core.model import Limits, Request
from fairlead.core.retries import RetryBudget

from .driver import make_dispatcher


def spend(budget: RetryBudget, client: str) -> int:
    taken = 0
    while taken < 1000 and budget.take(client):
        taken += 1
    return taken


def test_without_a_limit_a_client_may_have_all() -> None:
    assert spend(RetryBudget(0.2, 100, 1.0, 10), "ann") == 100


def test_a_client_gets_half_and_another_half_of_the_rest() -> None:
    budget = RetryBudget(0.2, 100, 0.5, 10)
    assert [spend(budget, client) for client in ("ann", "ann", "bob", "cyd")] == [50, 0, 25, 12]


def test_what_arrives_earns_retries_back_for_whoever_asks() -> None:
    budget = RetryBudget(0.5, 10, 0.5, 10)
    assert spend(budget, "ann") == 5
    for _ in range(4):
        budget.earn("ann")
    assert spend(budget, "ann") == 2, "what it earned itself"
    for _ in range(40):
        budget.earn("bob")
    assert budget.left == 10
    assert spend(budget, "ann") == 5, "where nothing is missing, nobody owes"


@given(
    st.lists(st.tuples(st.sampled_from(["earn", "take"]), st.integers(0, 8)), max_size=200),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(0, 20),
    st.sampled_from([0.5, 1.0]),
)
def test_never_more_than_was_earned_and_saved(
    steps: list[tuple[str, int]], ratio: float, burst: int, share: float
) -> None:
    budget = RetryBudget(ratio, burst, share, 3)
    earned = taken = 0.0
    for what, number in steps:
        if what == "earn":
            budget.earn(f"c{number}")
            earned += ratio
        else:
            taken += budget.take(f"c{number}")
        assert taken <= burst + earned + 1e-6
        assert -1e-6 <= budget.left <= burst + ratio
        assert len(budget._spent) <= 3


@pytest.mark.parametrize(("share", "survives"), [(1.0, False), (0.5, True)])
def test_poison_of_one_client_leaves_another_its_retry(share: float, survives: bool) -> None:
    d = make_dispatcher(
        "round_robin", "fcfs", settings=Settings(retry_share=share, retry_ratio=0.0, retry_burst=20)
    )
    for name in ("w1", "w2"):
        d.step(ev.WorkerUp(0, name, Limits(8, 100_000, 1000)))
    rng = random.Random(1)
    for rid in range(1, 60):
        d.step(ev.Arrived(rid, Request(rid, "mallory", rng.randrange(1, 99))))
        while rid in d.requests:
            d.step(ev.Failed(rid, rid, retryable=True, reason="500"))
    d.step(ev.Arrived(60, Request(60, "ann", 10)))
    (after,) = d.step(ev.Failed(61, 60, retryable=True, reason="the worker died"))
    assert isinstance(after, Dispatch if survives else Fail)
    d.check()
