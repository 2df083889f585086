"""Times at their extremes: a clock that jumps, late and early events, many events of one microsecond."""

import random
from math import isfinite

from hypothesis import given, settings
from hypothesis import strategies as st

import fairlead
from fairlead.core.model import Limits, Request
from fairlead.core.outside import MOST_US
from fairlead.core.prefilling import Prefilling

times = st.one_of(
    st.integers(0, 5), st.integers(0, 10**7), st.integers(0, MOST_US), st.sampled_from([0, 1, MOST_US])
)


@settings(max_examples=60, deadline=None)
@given(
    at=st.lists(times, min_size=30, max_size=80), arrived=st.lists(times, min_size=1), seed=st.integers(0, 99)
)
def test_whatever_the_clock_says_the_books_hold_and_time_does_not_go_back(
    at: list[int], arrived: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    dispatcher = fairlead.make_dispatcher(
        "dlpm:quantum=200", settings=fairlead.Settings(queue_timeout_us=1_000)
    )
    for name in ("a", "b"):
        dispatcher.step(fairlead.WorkerUp(at[0], name, Limits(2, 2_000)))
    running: list[int] = []
    begun: set[int] = set()
    latest = dispatcher.now
    for rid, now in enumerate(at):
        said = arrived[rid % len(arrived)]
        request = Request(
            rid, rng.choice("xyz"), rng.randrange(1, 400), arrived_us=said, streamed=rng.random() < 0.5
        )
        events: list[fairlead.Event] = [fairlead.Arrived(now, request), fairlead.Tick(now)]
        if running:
            one = rng.choice(running)
            if one not in begun and rng.random() < 0.5:
                events.append(fairlead.FirstToken(now, one))
                begun.add(one)
            elif rng.random() < 0.8:
                running.remove(one)
                events.append(fairlead.Finished(now, one, 100, 10, 5))
        for event in events:
            commands = dispatcher.step(event)
            running += [command.rid for command in commands if isinstance(command, fairlead.Dispatch)]
            dispatcher.check()
            assert dispatcher.now >= latest
            latest = dispatcher.now


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("bcgd"), st.integers(0, 100_000), times), max_size=40))
def test_the_rate_of_prefill_is_a_number_whatever_the_clock_says(steps: list[tuple[str, int, int]]) -> None:
    prefilling = Prefilling(200_000)
    under_way: list[int] = []
    for number, (what, tokens, now) in enumerate(steps):
        if what == "b":
            prefilling.begin(tokens, now)
            prefilling.guess(number, now)
            under_way.append(tokens)
        elif what == "d":
            prefilling.due(now)
        elif under_way:
            done = under_way.pop()
            if what == "c":
                prefilling.computed(done, now)
            else:
                prefilling.gone(done)
        assert isfinite(prefilling.rate)
        assert prefilling.rate >= 0
        assert prefilling.tokens == sum(under_way)
        assert prefilling.full in {True, False}
