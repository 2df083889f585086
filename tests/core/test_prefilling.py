"""How much prefill a worker gets at once: learned, not tuned."""

import random

import pytest

from fairlead.core import events as ev
from fairlead.core.commands import Dispatch
from fairlead.core.dispatcher import Settings
from fairlead.core.model import Limits, Request
from fairlead.core.prefilling import FIRST_GUESS_TOKENS, LEAST_TOKENS, Prefilling

from .driver import make_dispatcher


def worker_at(rate: float, prompt: int, rounds: int = 400) -> Prefilling:
    """A worker that computes ``rate`` tokens a microsecond, in order, and always has as much as it may."""
    p = Prefilling(300_000)
    now, under_way = 0, 0
    for _ in range(rounds):
        while not p.full:
            p.begin(prompt, now)
            under_way += 1
        now += round(prompt / rate)
        p.computed(prompt, now)
        under_way -= 1
    return p


@pytest.mark.parametrize("rate", [0.014, 0.037, 0.2])
@pytest.mark.parametrize("prompt", [100, 3_000, 20_000])
def test_what_is_under_way_keeps_the_worker_busy_for_the_backlog(rate: float, prompt: int) -> None:
    p = worker_at(rate, prompt)
    assert p.rate == pytest.approx(rate, rel=0.02)
    while not p.full:
        p.begin(prompt, 0)
    allowed = max(300_000 * rate, LEAST_TOKENS)
    assert allowed <= p.tokens < allowed * 1.03 + prompt or p.requests == 2


def test_two_prompts_of_any_size_are_under_way_and_a_third_only_below_the_allowance() -> None:
    p = Prefilling(300_000)
    for _ in range(2):
        assert not p.full
        p.begin(10 * FIRST_GUESS_TOKENS, 0)
    assert p.full
    p.computed(10 * FIRST_GUESS_TOKENS, 2_000_000)
    assert not p.full


def test_unstreamed_requests_count_for_as_long_as_their_prefill_should_take() -> None:
    p = Prefilling(300_000)
    p.begin(1_000, 0)
    p.guess(1, 0)
    assert p.due(0) == 1, "nothing is known of the worker yet: it is not held back"
    p.gone(1_000)
    p.begin(1_000, 0)
    p.computed(1_000, 10_000)
    p.begin(1_000, 20_000)
    p.guess(2, 20_000)
    assert p.due(29_999) is None
    assert p.due(30_000) == 2
    assert p.due(10**9) is None


def flood(d_settings: Settings, streamed: bool) -> tuple[int, int]:
    """Send 100 prompts of 2,000 tokens at once; return how many went, and how many after one is computed."""
    d = make_dispatcher("least_requests", "dlpm", settings=d_settings)
    d.step(ev.WorkerUp(0, "w", Limits(256, 1_000_000, 1000)))
    sent = []
    for rid in range(100):
        sent += d.step(ev.Arrived(0, Request(rid, "flood", 2_000, streamed=streamed)))
    d.check()
    more = d.step(ev.FirstToken(100_000, 0)) if streamed else d.step(ev.Tick(100_000))
    d.check()
    return len(sent), len([c for c in more if isinstance(c, Dispatch)])


def test_a_flood_of_long_prompts_waits_here_and_not_inside_the_engine() -> None:
    sent, more = flood(Settings(), streamed=True)
    assert sent == -(-FIRST_GUESS_TOKENS // 2_000)
    # One prompt took 0.1 s, so 0.2 s of backlog is 4,000 tokens, and 8,000 are under way.
    assert more == 0


def test_the_limit_can_be_switched_off() -> None:
    assert flood(Settings(prefill_backlog_us=0), streamed=True) == (100, 0)


def test_unstreamed_floods_are_released_by_time() -> None:
    sent, more = flood(Settings(), streamed=False)
    assert sent == -(-FIRST_GUESS_TOKENS // 2_000)
    assert more > 0


def test_a_victim_goes_next_however_much_of_the_flood_waits() -> None:
    d = make_dispatcher("least_requests", "dlpm")
    d.step(ev.WorkerUp(0, "w", Limits(256, 1_000_000, 1000)))
    for rid in range(50):
        d.step(ev.Arrived(0, Request(rid, "flood", 2_000)))
    assert d.step(ev.Arrived(1, Request(99, "victim", 500))) == []
    now, order = 1, []
    rng = random.Random(0)
    running = list(range(5))
    while 99 not in order:
        now += rng.randrange(90_000, 110_000)
        for command in d.step(ev.FirstToken(now, running.pop(0))):
            assert isinstance(command, Dispatch)
            order.append(command.rid)
            running.append(command.rid)
    assert order.index(99) <= 8192 // 2_000, "the flood has at most one quantum of credit left to spend first"


# --- streams whose first token nobody recognises -----------------------------------------------


def known(rate: float) -> Prefilling:
    """A worker that was seen to compute ``rate`` tokens a microsecond."""
    p = Prefilling(200_000, patience=2.0)
    p.begin(1_000, 0)
    p.computed(1_000, round(1_000 / rate))
    return p


def test_a_stream_that_never_says_so_counts_as_computed_well_after_it_should_be() -> None:
    p = known(0.01)
    p.begin(10_000, 1_000_000)
    p.expect(1, 1_000_000)
    # A second for the prompt at the measured rate, doubled, and one more.
    assert p.due(3_999_999) is None
    assert p.due(4_000_000) == 1
    assert p.due(10**12) is None


def test_of_a_worker_that_is_not_known_nothing_is_late() -> None:
    p = Prefilling(200_000, patience=2.0)
    p.begin(10_000, 0)
    p.expect(1, 0)
    assert p.due(10**12) is None


def test_a_worker_that_became_slower_is_learned_from_streams_that_begin_late() -> None:
    p = known(0.01)
    for number in range(60):
        now = number * 20_000_000
        p.begin(10_000, now)
        p.expect(number, now)
        if p.due(now + 10_000_000) == number:
            p.gone(10_000)
            p.began_late(number, now + 10_000_000)
        else:
            p.computed(10_000, now + 10_000_000)
    assert p.rate == pytest.approx(0.001, rel=0.05)


def test_a_late_beginning_never_makes_a_worker_look_faster() -> None:
    p = known(0.01)
    p.begin(10_000, 0)
    p.expect(1, 0)
    assert p.due(10**7) == 1
    p.gone(10_000)
    p.began_late(1, 1)
    assert p.rate == 0.01
    p.began_late(1, 10**9)
    assert p.rate == 0.01, "it began only once"


def test_streams_that_say_nothing_do_not_hold_prefill_to_their_end() -> None:
    d = make_dispatcher("least_requests", "dlpm", settings=Settings(first_token_patience=2.0))
    d.step(ev.WorkerUp(0, "w", Limits(256, 1_000_000, 1000)))
    d.step(ev.Arrived(0, Request(0, "ann", 10_000)))
    d.step(ev.FirstToken(500_000, 0))
    d.step(ev.Finished(600_000, 0))
    now, sent = 1_000_000, []
    for rid in range(1, 9):
        sent += d.step(ev.Arrived(now, Request(rid, "ann", 10_000)))
    assert len(sent) == 2, "two may always be under way"
    for _ in range(120):
        now += 100_000
        sent += d.step(ev.Tick(now))
        d.check()
    # Two at a time, each taken for computed after 1 s and twice 0.5 s, or 1.0 s with the one before it.
    assert len(sent) == 8
    for rid in range(1, 9):
        d.step(ev.Finished(now, rid))
        d.check()
    (worker,) = d.workers
    assert not worker.prefilling._late


def test_streams_that_begin_in_time_leave_nothing_behind() -> None:
    d = make_dispatcher("least_requests", "dlpm", settings=Settings(first_token_patience=2.0))
    d.step(ev.WorkerUp(0, "w", Limits(256, 1_000_000, 1000)))
    now = 0
    for rid in range(200):
        d.step(ev.Arrived(now, Request(rid, "ann", 1_000)))
        d.step(ev.FirstToken(now + 50_000, rid))
        d.step(ev.Tick(now + 60_000))
        d.step(ev.Finished(now + 70_000, rid))
        now += 100_000
    (worker,) = d.workers
    rate = worker.prefilling.rate
    d.step(ev.Tick(now + 10_000_000))
    d.check()
    assert not worker.prefilling._late
    assert not worker.prefilling._expected
    assert worker.prefilling.rate == rate == pytest.approx(0.02)
