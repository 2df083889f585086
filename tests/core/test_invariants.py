"""The numbered invariants of the architecture, each on random histories of the whole dispatcher."""

import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core import events as ev
from fairlead.core.commands import Dispatch
from fairlead.core.dispatcher import Settings
from fairlead.core.model import Limits, Request
from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES

from .driver import WEIGHTS, Driver, make_dispatcher

PAIRS = [(r, o) for r in POLICIES.names() for o in ORDERINGS.names()]


def history(routing: str, ordering: str, seed: int, steps: int = 150, *, check: bool = True) -> Driver:
    rng = random.Random(seed)
    dispatcher = make_dispatcher(
        routing,
        ordering,
        ordering_params={"quantum": rng.choice([1, 50, 4000])} if ordering == "dlpm" else {},
        settings=Settings(
            max_queued=rng.choice([6, 1000]),
            queue_timeout_us=rng.choice([0, 2_000_000]),
            max_attempts=2,
            first_token_patience=rng.choice([0.0, 0.1]),
        ),
        weights=WEIGHTS,
    )
    driver = Driver(dispatcher, rng, check=check)
    for name in ("w1", "w2")[: rng.randrange(3)]:
        driver.worker_up(name, precise=rng.random() < 0.3)
    for _ in range(steps):
        driver.step()
    return driver


@pytest.mark.parametrize(("routing", "ordering"), PAIRS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_invariants_1_2_3_10_hold_after_every_event(routing: str, ordering: str, seed: int) -> None:
    """check() covers conservation, the ledger and work conservation; the driver covers the callers' view."""
    history(routing, ordering, seed)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_invariant_10_every_request_ends_once_when_the_world_drains(seed: int) -> None:
    driver = history("marginal", "dlpm", seed)
    driver.worker_up("w1")
    if driver.d.fleet.held:
        driver.now = max(driver.now, *driver.held.values())
        driver.send(ev.Tick(driver.now))
    while driver.running:
        driver.now += 1000
        driver.finish(min(driver.running))
    assert not driver.queued, f"requests are stuck: {driver.d!r}"
    assert driver.d.arrived == sum(driver.d.ended.values()) == driver.rid
    assert driver.d.index.assigned(driver.d.fleet.slots["w1"]) == 0
    assert all(a.outstanding == 0 for a in driver.d.ledger.accounts.values())
    assert all(p == 0 for p in driver.d.fleet.pending_prefill_tokens)


def test_invariant_2_ledger_equals_what_was_reported_delivered() -> None:
    driver = Driver(make_dispatcher(), random.Random(3))
    driver.limits["w1"] = Limits(4, 100_000, 100)
    driver.send(ev.WorkerUp(0, "w1", driver.limits["w1"]))
    for client in ("ann", "bob") * 10:
        driver.arrive(client)
        for rid in list(driver.running)[:1]:
            request, _ = driver.running.pop(rid)
            driver.ended["done"] += 1
            driver.delivered[request.client] += (request.prompt_tokens - 3) + 2 * 7
            driver.send(ev.Finished(driver.now, rid, request.prompt_tokens, 3, 7))
    for client, service in driver.delivered.items():
        assert driver.d.ledger.account(client).delivered == service


@pytest.mark.parametrize(
    ("routing", "ordering"), [("marginal", "dlpm"), ("power_of_two", "vtc"), ("d2lpm", "lpm")]
)
def test_invariant_5_same_events_same_commands(routing: str, ordering: str) -> None:
    assert history(routing, ordering, 11, check=False).log == history(routing, ordering, 11, check=False).log


@pytest.mark.parametrize("ordering", ORDERINGS.names())
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**9), scope=st.sampled_from(["fleet", "worker"]))
def test_a_request_that_passes_an_empty_queue_differs_in_nothing(
    ordering: str, seed: int, scope: str
) -> None:
    """Ordering.passes is a short cut: with it switched off, every command is the same."""
    logs = []
    for short_cut in (True, False):
        d = make_dispatcher(
            "d2lpm",
            ordering,
            # A queue that is looked at may take requests from others: then it matters that it is.
            ordering_params={"quantum": 60, "scope": scope, "steal": False} if ordering == "dlpm" else {},
        )
        if not short_cut:
            d.ordering.passes = lambda number, client: False  # type: ignore[method-assign]
        driver = Driver(d, random.Random(seed), check=False)
        driver.worker_up("w1")
        driver.worker_up("w2")
        for _ in range(200):
            driver.step()
        d.check()
        logs.append(driver.log)
    assert logs[0] == logs[1]


SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from tests.core.test_invariants import history, PAIRS
text = "".join("\\n".join(history(r, o, 5, 80, check=False).log) for r, o in PAIRS)
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_invariant_5_across_processes_and_hash_seeds() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    digests = set()
    for hash_seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, root],
            capture_output=True,
            text=True,
            env=env,
            check=True,
            timeout=120,
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1


def test_invariant_7_policies_cannot_see_output_lengths() -> None:
    """What a policy gets has no field for it: the names are fixed here so that one added later is noticed."""
    assert Request._fields == (
        "rid", "client", "prompt_tokens", "keys", "block_tokens", "max_tokens", "session", "arrived_us",
        "streamed", "sequences", "reads_cache",
    )  # fmt: skip


def test_invariant_9_books_stay_bounded() -> None:
    d = make_dispatcher(settings=Settings(max_clients=50, queue_timeout_us=1_000_000))
    d.step(ev.WorkerUp(0, "w", Limits(4, 4_000, 10)))
    now = 0
    for rid in range(6_000):
        now += 100_000
        keys = tuple(range(rid * 100, rid * 100 + 20))
        d.step(ev.Arrived(now, Request(rid, f"client{rid}", 330, keys)))
        d.step(ev.FirstToken(now, rid))
        d.step(ev.Finished(now, rid, 330, 0, 5))
        if rid % 100 == 0:
            d.step(ev.Tick(now))
    d.step(ev.Tick(now + 120_000_000))
    assert len(d.ledger.accounts) <= 50
    assert d.index.cached(0) <= 4_000 / 16
    assert len(d.placement.deadlines) <= 1100
    assert not d.requests
    d.check()


def test_a_request_below_credit_is_sent_at_once_and_says_why() -> None:
    d = make_dispatcher()
    assert d.step(ev.WorkerUp(0, "w1", Limits())) == []
    assert d.step(ev.WorkerUp(0, "w2", Limits())) == []
    (first,) = d.step(ev.Arrived(1, Request(1, "ann", 100, (1, 2, 3))))
    assert isinstance(first, Dispatch)
    assert first.attempt == 1
    assert len(first.reasons.scores) == len(first.reasons.candidates) == 2
    assert first.reasons.matched_tokens == 0
    assert d.step(ev.FirstToken(2, 1)) == []
    (second,) = d.step(ev.Arrived(2, Request(2, "ann", 100, (1, 2, 3))))
    assert isinstance(second, Dispatch)
    assert second.worker == first.worker
    assert second.reasons.matched_tokens == 48
    assert second.reasons.credit < first.reasons.credit
    assert repr(d) == (
        "<Dispatcher queued=0 running=2 done=0 rejected=0 cancelled=0 failed=0 | w1:up 2/256+0 w2:up 0/256+0>"
    )


@pytest.mark.parametrize("end", [ev.Finished(3, 1), ev.Cancelled(3, 1), ev.Failed(3, 1, retryable=False)])
def test_a_worker_that_is_gone_frees_its_slot_with_its_last_request(end: ev.Event) -> None:
    d = make_dispatcher()
    d.step(ev.WorkerUp(0, "w1", Limits()))
    d.step(ev.Arrived(1, Request(1, "ann", 100)))
    d.step(ev.WorkerGone(2, "w1"))
    assert "w1" in d.fleet.slots
    d.step(end)
    assert d.fleet.slots == {}
    d.check()
