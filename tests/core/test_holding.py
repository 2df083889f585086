"""Back-pressure: a worker that says it has no room gets nothing for a while, and others may."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core import events as ev
from fairlead.core.commands import Command, Dispatch, Reject
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.lifecycle import LifecycleError
from fairlead.core.model import Limits, Request

from .driver import Driver, make_dispatcher

SECOND = 1_000_000


def fleet(*names: str, ordering: str = "fcfs", sequences: int = 8, **more: object) -> Dispatcher:
    d = make_dispatcher("round_robin", ordering, settings=Settings(**more))  # type: ignore[arg-type]
    for name in names:
        d.step(ev.WorkerUp(0, name, Limits(sequences, 100_000, 1000)))
    return d


def arrive(d: Dispatcher, rid: int, at: int = 0, client: str = "ann") -> list[Command]:
    return d.step(ev.Arrived(at, Request(rid, client, 100, (rid,), arrived_us=at)))


def sent(commands: list[Command]) -> list[tuple[int, str]]:
    return [(c.rid, c.worker) for c in commands if isinstance(c, Dispatch)]


def test_another_worker_with_room_takes_it_at_once_and_nothing_is_charged_twice() -> None:
    d = fleet("w1", "w2")
    assert sent(arrive(d, 1)) == [(1, "w1")]
    assert sent(d.step(ev.Refused(10, 1, SECOND, "503"))) == [(1, "w2")]
    d.check()
    assert d.ledger.account("ann").charged == 100
    assert d.retries == 0
    assert sent(arrive(d, 2, 20)) == [(2, "w2")], "no new request goes to the worker that is held either"


def test_alone_it_waits_as_long_as_the_worker_says_and_keeps_its_place() -> None:
    d = fleet("w1", sequences=1)
    arrive(d, 1)
    arrive(d, 2, 5)
    assert d.step(ev.Refused(10, 1, SECOND)) == []
    assert d.step(ev.Tick(SECOND)) == []
    assert sent(d.step(ev.Tick(SECOND + 10))) == [(1, "w1")], "it came first, and goes first"
    d.check()


def test_refusals_cost_no_attempt_and_no_retry() -> None:
    d = fleet("w1", max_attempts=2, retry_burst=1, retry_ratio=0.0)
    arrive(d, 1)
    for number in range(1, 50):
        assert d.step(ev.Refused(number * SECOND, 1, SECOND // 2)) == []
        (again,) = d.step(ev.Tick(number * SECOND + SECOND // 2))
        assert isinstance(again, Dispatch)
        assert again.attempt == number + 1
    assert sent(d.step(ev.Failed(50 * SECOND, 1, retryable=True))) == [(1, "w1")], "its first failure"
    assert d.retries == 1


def test_it_ends_when_it_has_waited_for_too_long_in_all() -> None:
    d = fleet("w1", queue_timeout_us=3 * SECOND)
    arrive(d, 1)
    at = 0
    ended: list[Command] = []
    while not any(isinstance(c, Reject) for c in ended):
        ended = d.step(ev.Refused(at, 1, SECOND)) if 1 in d.requests and not d.queued else []
        at += SECOND // 4
        ended += d.step(ev.Tick(at))
        assert at < 10 * SECOND
    (end,) = ended
    assert isinstance(end, Reject)
    assert end.code == "queue_timeout"
    assert at == 3 * SECOND
    d.check()


def test_one_that_ran_past_its_time_is_not_queued_again() -> None:
    d = fleet("w1", queue_timeout_us=3 * SECOND)
    arrive(d, 1)
    d.step(ev.Refused(0, 1, SECOND))
    assert sent(d.step(ev.Tick(SECOND))) == [(1, "w1")]
    (end,) = d.step(ev.Refused(4 * SECOND, 1, SECOND))
    assert isinstance(end, Reject)
    d.check()


def test_what_waits_for_a_worker_without_room_goes_to_one_that_has_some() -> None:
    d = fleet("w1", "w2", sequences=1)
    for rid in range(1, 7):
        arrive(d, rid)
    assert d.fleet.queued == [2, 2]
    assert d.step(ev.Refused(10, 1, 30 * SECOND)) == []
    d.step(ev.Tick(100))
    assert d.fleet.queued == [0, 5]
    assert d.fleet.candidates == [1]
    d.check()


def test_a_long_queue_is_moved_in_pieces() -> None:
    d = fleet("w1", "w2", sequences=1)
    for rid in range(1, 1001):
        arrive(d, rid)
    d.step(ev.Refused(10, 1, 30 * SECOND))
    before = d.fleet.queued[0]
    d.step(ev.Tick(100))
    assert d.fleet.queued[0] == before - 64
    d.check()


def test_when_all_workers_refuse_each_is_asked_again_in_its_time_and_no_sooner() -> None:
    d = fleet("w1", "w2")
    attempts = 0
    todo = arrive(d, 1)
    at = 0
    while at < 60 * SECOND and 1 in d.requests:
        for rid, _ in sent(todo):
            attempts += 1
            todo = d.step(ev.Refused(at, rid, SECOND))
        if not sent(todo):
            at += SECOND // 10
            todo = d.step(ev.Tick(at))
    assert attempts <= 2 * 60 + 2


def test_engines_that_order_for_themselves_are_held_too() -> None:
    d = fleet("w1", forward=True)
    arrive(d, 1)
    d.step(ev.Refused(0, 1, SECOND))
    assert arrive(d, 2, 10) == []
    d.check()
    assert sorted(sent(d.step(ev.Tick(SECOND)))) == [(1, "w1"), (2, "w1")]


@pytest.mark.parametrize("before", [[], [ev.FirstToken(1, 1)]])
def test_only_a_request_without_an_answer_can_be_refused(before: list[ev.Event]) -> None:
    d = fleet("w1")
    arrive(d, 1)
    for event in before or [ev.Refused(1, 1, SECOND)]:
        d.step(event)
    with pytest.raises(LifecycleError):
        d.step(ev.Refused(2, 1, SECOND))
    d.check()


def test_a_worker_that_leaves_is_gone_with_its_last_request_refused() -> None:
    d = fleet("w1", "w2")
    assert sent(arrive(d, 1)) == [(1, "w1")]
    d.step(ev.WorkerGone(1, "w1"))
    assert sent(d.step(ev.Refused(2, 1, SECOND))) == [(1, "w2")]
    assert list(d.fleet.slots) == ["w2"]
    assert not d.fleet.held
    d.check()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**9), ordering=st.sampled_from(["fcfs", "lpm", "vtc", "dlpm"]))
def test_with_refusals_of_all_kinds_every_request_still_ends(seed: int, ordering: str) -> None:
    rng = random.Random(seed)
    driver = Driver(make_dispatcher("least_requests", ordering, settings=Settings(queue_timeout_us=0)), rng)
    driver.worker_up("w1")
    driver.worker_up("w2")
    for _ in range(120):
        driver.now += rng.randrange(500_000)
        if rng.random() < 0.5:
            driver.arrive()
        for rid in sorted(driver.running):
            if rng.random() < 0.5:
                driver.refuse(rid)
        driver.send(ev.Tick(driver.now))
    for _ in range(600):
        driver.now += 100_000
        driver.send(ev.Tick(driver.now))
        for rid in list(driver.running):
            driver.finish(rid)
    assert not driver.queued
    assert driver.ended["done"] + driver.ended["rejected"] == driver.rid
