"""Preble's E2, branch by branch, by examples worked out by hand."""

import random

import pytest

from fairlead.core.routing import preble as preble_module
from fairlead.core.routing.loadwindow import LoadWindow

from .routing_fleet import PlainFleet, match, place, policy, request

SECOND = 1_000_000
PLAIN = {"prefill_us": 10, "prefill_base_us": 100, "decode_us": 5, "output_tokens": 20, "rebalance_after": 0}


def decide(preble, fleet, prompt=1_000, tokens=None, now=0, rid=1):
    return preble.choose(request(prompt, rid=rid), match(fleet, tokens), fleet, now)


def test_explore_adds_load_eviction_and_prefill():
    """w0 was given 300 tokens: L = 100 + 3000 + 20*5 = 3200, P = 100 + 600*10; w1: P = 100 + 1000*10,
    and 500 of its tokens evict at a hit rate of .2: M = .2*500*10; w2: P alone."""
    preble = policy("preble", **PLAIN)
    fleet = PlainFleet(3, kv_cached=[0, 499_500, 0], hit_rate=[0, 0.2, 0])
    preble.assigned(request(300), 0, 300, 0)
    choice = decide(preble, fleet, tokens=[400, 0, 0])
    assert choice.branch == "preble: explore"
    assert list(choice.scores) == [3_200 + 6_100, 10_100 + 1_000, 10_100]
    assert choice.slot == 0


def test_half_cached_explores_and_more_exploits():
    preble, fleet = policy("preble", **PLAIN), PlainFleet(2)
    assert decide(preble, fleet, tokens=[500, 0]).branch == "preble: explore"
    assert decide(preble, fleet, tokens=[501, 0]).branch == "preble: exploit"


def test_exploit_takes_the_cheapest_of_the_longest_holders_only():
    """w1 is idle but holds less; of w0 and w2, which hold most, w2 was given less."""
    preble, fleet = policy("preble", **PLAIN, rebalance_ratio=100), PlainFleet(3)
    preble.assigned(request(100), 0, 100, 0)
    preble.assigned(request(10), 2, 10, 0)
    choice = decide(preble, fleet, tokens=[800, 790, 800])
    assert (choice.slot, choice.branch) == (2, "preble: exploit")


@pytest.mark.parametrize(
    ("extend", "branch"),
    [(129, "preble: exploit"), (130, "preble: rebalance")],
)
def test_rebalance_from_the_ratio_on(extend, branch):
    """L of w1 and w2 is 100 + 80*10 + 100 = 1000: w0 reaches 1.5 times that with 130 tokens."""
    preble, fleet = policy("preble", **PLAIN), PlainFleet(3)
    for slot, tokens in ((0, extend), (1, 80), (2, 80)):
        preble.assigned(request(), slot, tokens, 0)
    choice = decide(preble, fleet, tokens=[800, 0, 0])
    assert choice.branch == branch
    assert choice.slot == (0 if branch.endswith("exploit") else 1)


def test_rebalance_leaves_requests_alone_that_exploit_another_worker():
    preble, fleet = policy("preble", **PLAIN), PlainFleet(3)
    preble.assigned(request(), 0, 5_000, 0)
    preble.assigned(request(), 1, 50, 0)
    choice = decide(preble, fleet, tokens=[0, 800, 0])
    assert (choice.slot, choice.branch) == (1, "preble: exploit")


def test_rebalance_waits_for_enough_requests_in_the_window():
    preble, fleet = policy("preble", **{**PLAIN, "rebalance_after": 3}), PlainFleet(2)
    branches = []
    for _ in range(4):
        branches.append(decide(preble, fleet, tokens=[800, 0]).branch)
        preble.assigned(request(), 0, 200, 0)
    assert branches == ["preble: exploit"] * 3 + ["preble: rebalance"]


class TestReplicate:
    """One worker holds the prefix; its pending prefill is the wait that its requests see."""

    def run(self, waits, **given):
        """Place one request a wait, (second, pending tokens); return the branches."""
        preble = policy("preble", **{**PLAIN, "rebalance_after": 10_000, **given})
        fleet, branches = PlainFleet(3), []
        for rid, (second, pending) in enumerate(waits):
            fleet.pending_prefill_tokens[0] = pending
            req, m, now = request(1_000, rid=rid), match(fleet, [800, 0, 0]), second * SECOND
            choice = preble.choose(req, m, fleet, now)
            branches.append((choice.branch, choice.slot))
            place(preble, fleet, req, m, now)
        return branches

    def test_when_the_mean_wait_doubles_from_one_half_of_the_window_to_the_next(self):
        exploit = ("preble: exploit", 0)
        assert self.run([(0, 100), (1, 300), (90, 399), (91, 0)]) == [exploit] * 4
        assert self.run([(0, 100), (1, 300), (90, 400), (91, 0)]) == [exploit] * 3 + [
            ("preble: replicate", 1)
        ]

    def test_the_wait_starts_anew_after_it(self):
        branches = self.run([(0, 100), (90, 900), (91, 900), (92, 900)])
        assert [b for b, _ in branches] == ["preble: exploit"] * 2 + ["preble: replicate", "preble: exploit"]

    def test_a_half_without_requests_says_nothing(self):
        assert {b for b, _ in self.run([(0, 100), (180, 900), (181, 900)])} == {"preble: exploit"}

    def test_no_wait_at_all_is_no_growth(self):
        assert {b for b, _ in self.run([(0, 0), (90, 0), (91, 0)])} == {"preble: exploit"}


def test_two_holders_need_no_third():
    preble = policy("preble", **{**PLAIN, "rebalance_after": 10_000})
    fleet = PlainFleet(3)
    for rid, (second, pending) in enumerate([(0, 100), (90, 900), (91, 900)]):
        fleet.pending_prefill_tokens[:2] = [pending, pending]
        m = match(fleet, [800, 800, 0])
        assert preble.choose(request(rid=rid), m, fleet, second * SECOND).branch == "preble: exploit"
        place(preble, fleet, request(rid=rid), m, second * SECOND)


def test_queueing_of_prefixes_is_bounded(monkeypatch):
    monkeypatch.setattr(preble_module, "MAX_PREFIXES", 8)
    preble, fleet = policy("preble", **PLAIN, rebalance_ratio=1_000), PlainFleet(2)
    for rid in range(50):
        place(
            preble, fleet, request(rid=rid, keys=range(rid * 100, rid * 100 + 62)), match(fleet, [800, 800])
        )
        preble.check()
    assert len(preble._queueing) == 8


def test_load_is_the_mean_output_seen_and_leaves_with_the_window():
    """Two requests and 60 output tokens: L of w0 = 100 + 1000 + 30*5."""
    preble, fleet = policy("preble", **PLAIN), PlainFleet(2)
    for slot in (0, 1):
        preble.assigned(request(), slot, 100, 0)
    preble.decoded("ann", 0, 60)
    assert preble._loads(fleet) == [1_250, 1_250]
    preble.unassigned(request(), 1, 100, 0)
    assert preble._loads(fleet) == [1_400, 0]
    preble.tick(179 * SECOND)
    assert preble._loads(fleet) == [1_400, 0]
    preble.tick(180 * SECOND)
    assert preble._loads(fleet) == [0, 0]


def test_the_window_sums_what_its_buckets_hold():
    rng, window, now = random.Random(5), LoadWindow(180), 0
    for _ in range(3_000):
        now += rng.randrange(4)
        window.advance(now)
        slot, what = rng.randrange(5), rng.randrange(40)
        if what < 20:
            window.add(slot, rng.randrange(100), 1)
        elif what < 30:
            window.take_back(slot, rng.randrange(150), 1)
        elif what < 39:
            window.decoded(rng.randrange(9))
        else:
            window.reset(slot)
        window.check()
        assert all(n >= 0 for n in window.prefill_us + window.requests)
    window.advance(now + 200)
    window.check()
    assert not any(window.prefill_us + window.requests)
