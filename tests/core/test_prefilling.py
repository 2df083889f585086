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
