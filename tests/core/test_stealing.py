"""Work stealing: a worker that would serve somebody without credit takes a request of a client with some."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core import events as ev
from fairlead.core.commands import Command, Dispatch
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.model import Limits, Request
from fairlead.core.ordering.base import QueuedRequest
from fairlead.core.placement import Placement
from fairlead.core.routing.marginal import SLOWED
from fairlead.core.stealing import Stealing, price
from fairlead.core.worker import Worker

from .driver import Driver, make_dispatcher

NO_GATE = Settings(prefill_backlog_us=0)


def two_workers(**params: object) -> Dispatcher:
    """Two workers that run one request at a time; session affinity keeps each client on its own."""
    d = make_dispatcher(
        "round_robin", "dlpm", ordering_params={"quantum": 100, "light": False, **params}, settings=NO_GATE
    )
    for name in ("w0", "w1"):
        d.step(ev.WorkerUp(0, name, Limits(1, 100_000, 1000)))
    return d


def arrive(d: Dispatcher, rid: int, client: str, at: int = 0, tokens: int = 160) -> list[Command]:
    return d.step(
        ev.Arrived(
            at, Request(rid, client, tokens, range(rid * 100, rid * 100 + tokens // 16), arrived_us=at)
        )
    )


def finish(d: Dispatcher, rid: int, at: int, output: int = 1) -> list[Command]:
    d.step(ev.FirstToken(at, rid))
    return d.step(ev.Finished(at, rid, output_tokens=output))


def flooded(**params: object) -> Dispatcher:
    """The flood runs on both workers and waits for both; ann, with credit, waits for w1."""
    d = two_workers(**params)
    for rid in range(1, 6):
        arrive(d, rid, "flood")
    assert d.fleet.running == [1, 1]
    assert d.fleet.queued == [2, 1]
    arrive(d, 6, "ann", at=1_000)
    assert d.requests[6].slot == 1
    d.check()
    return d


def test_a_worker_with_only_debtors_waiting_takes_a_request_with_credit_from_another() -> None:
    d = flooded()
    sent = [c for c in finish(d, 1, 2_000) if isinstance(c, Dispatch)]
    assert [(c.rid, c.worker) for c in sent] == [(6, "w0")]
    assert "moved" in sent[0].reasons.policy
    d.check()


def test_without_stealing_it_serves_its_least_indebted_client() -> None:
    d = flooded(steal=False)
    sent = [c for c in finish(d, 1, 2_000) if isinstance(c, Dispatch)]
    assert [(c.rid, c.worker) for c in sent] == [(3, "w0")]


def test_what_is_cached_elsewhere_is_worth_a_wait_as_long_as_it_takes_to_compute() -> None:
    """ann's prompt is cached on w1; w0 computes 0.16 tokens a microsecond, so 159 tokens take 1 ms."""
    for waited, stolen in ((900, False), (1_100, True)):
        d = two_workers()
        for rid in range(1, 6):
            arrive(d, rid, "flood")
        key = range(900, 910)
        d.step(ev.CacheCleared(10, "w1", precise=True))
        d.step(ev.CacheStored(10, "w1", list(key)))
        d.step(ev.FirstToken(1_000, 1))  # 160 tokens in 1 ms
        d.step(ev.Arrived(5_000, Request(9, "ann", 161, key, arrived_us=5_000)))
        assert d.requests[9].slot == 1
        sent = [c for c in d.step(ev.Finished(5_000 + waited, 1, output_tokens=1)) if isinstance(c, Dispatch)]
        assert [c.rid for c in sent] == [9 if stolen else 3]
        d.check()


@pytest.mark.parametrize(
    ("lost", "slower", "owed", "cost"),
    [
        (1_000, 1.0, 0.0, 1_000),  # nothing runs there: only its own prefill
        (1_000, 4.0, 0.0, 4_000),  # 24 sequences are slowed down
        (1_000, 4.0, 2_500.0, 1_500),  # and spared at the cost of somebody who owes less than that
        (1_000, 4.0, 3_000.0, 1_000),  # its own prefill it pays in any case
        (0, 4.0, 0.0, 0),
        (-500, 4.0, 0.0, -500),  # more is cached here: at once
    ],
)
def test_the_price_of_a_move(lost: int, slower: float, owed: float, cost: float) -> None:
    assert price(lost, slower, owed) == cost


def test_the_batch_that_a_request_joins_has_its_price_unless_who_goes_instead_owes_as_much() -> None:
    """ann's 159 cached tokens are 1 ms of prefill for w0; beside the 3 sequences that run there, 1.4 ms."""
    for more, waited, stolen in (
        (14, 1_200, False),
        (14, 1_400, True),
        (1_000, 900, False),
        (1_000, 1_100, True),
    ):
        d = make_dispatcher(
            "round_robin", "dlpm", ordering_params={"quantum": 100, "light": False}, settings=NO_GATE
        )
        for name in ("w0", "w1"):
            d.step(ev.WorkerUp(0, name, Limits(4, 100_000, 1000)))
        for rid in range(1, 12):
            arrive(d, rid, "flood")
        assert d.fleet.running == [4, 4]
        key = range(2_000, 2_010)
        d.step(ev.CacheCleared(10, "w1", precise=True))
        d.step(ev.CacheStored(10, "w1", list(key)))
        d.step(ev.FirstToken(1_000, 1))
        d.workers[0].prefilling.rate = 0.16
        d.step(ev.Arrived(5_000, Request(20, "ann", 161, key, arrived_us=5_000)))
        assert d.requests[20].slot == 1
        d.ordering.decoded(0, "flood", more)
        sent = [c for c in d.step(ev.Finished(5_000 + waited, 1, output_tokens=1)) if isinstance(c, Dispatch)]
        assert [c.rid for c in sent] == [20 if stolen else 9]
        owed = -d.ordering.credit(0, "flood") - (0 if stolen else 160)
        assert 0 < owed < 20 if more == 14 else owed > 159, owed


class Watch:
    """Looks, whenever somebody without credit is about to be served, whether anybody with credit could be."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.d = dispatcher
        self.looked = 0

    def chosen(self, worker: Worker, item: QueuedRequest | None, now: int) -> None:
        d, ordering = self.d, self.d.ordering
        # Where nobody has credit, looking at a queue would refill.
        if item is not None and ordering.credited() and ordering.credit(worker.slot, item.client) <= 0:
            for other in d.fleet.slots.values():
                if other != worker.slot and d.fleet.queued[other]:
                    self.look(worker, d.workers[other], item, now)

    def look(self, thief: Worker, victim: Worker, instead: QueuedRequest, now: int) -> None:
        item = victim.head or victim.queue.head()
        if self.d.ordering.credit(victim.slot, item.client) <= 0:
            return
        self.looked += 1
        tracked, request, ready = self.d.requests[item.rid], item.request, self.d.index.ready
        here, there = (request.matched_tokens(ready(w.slot, item.keys)) for w in (thief, victim))
        fits = thief.has_capacity(tracked.sequences, request.prompt_tokens - here + tracked.expected)
        waited = (now - request.arrived_us) * thief.prefilling.rate
        owed = -self.d.ordering.credit(thief.slot, instead.client)
        cost = price(there - here, 1 + SLOWED * self.d.fleet.running[thief.slot], owed)
        assert not fits or waited < cost or thief.slot in tracked.tried


def watched(seed: int, quantum: int) -> int:
    """Run a random history, looking at each choice; return how many requests were looked at."""
    plain = make_dispatcher("random", "dlpm", ordering_params={"quantum": quantum}, seed=seed)
    d = Dispatcher(plain.routing, plain.ordering, NO_GATE)
    watch, choose = Watch(d), Placement._next_with_credit

    def noted(self: Placement, worker: Worker, stealing: Stealing, now: int) -> QueuedRequest | None:
        item = choose(self, worker, stealing, now)
        watch.chosen(worker, item, now)
        return item

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Placement, "_next_with_credit", noted)
        driver = Driver(d, random.Random(seed))
        for name in ("w1", "w2", "w3"):
            driver.worker_up(name)
        for _ in range(150):
            driver.step()
    d.check()
    return watch.looked


@pytest.mark.pure_only("replaces a method of a compiled class")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9), quantum=st.sampled_from([60, 600]))
def test_no_worker_serves_a_debtor_while_somebody_with_credit_could_be_served(
    seed: int, quantum: int
) -> None:
    watched(seed, quantum)


@pytest.mark.pure_only("replaces a method of a compiled class")
def test_the_test_above_finds_something_to_look_at() -> None:
    assert sum(watched(seed, 60) for seed in range(5)) > 0
