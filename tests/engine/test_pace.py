"""Pacing, on an event loop whose time is virtual: exact figures, no waiting."""

import asyncio
import selectors
from collections.abc import Callable

import pytest

from fairlead.core.model import Request
from fairlead.engine.model import Engine
from fairlead.engine.pace import Pacer
from fairlead.engine.profiles import PROFILES
from fairlead.engine.step import StepResult


class VirtualSelector(selectors.DefaultSelector):
    """Instead of waiting, moves the loop's clock to the next timer."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None):
        if timeout:
            self.loop.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        selector = VirtualSelector()
        super().__init__(selector)
        selector.loop = self
        self.now = 1_000.0

    def time(self) -> float:
        return self.now


def pace(speed: float, ended: Callable[[VirtualLoop, StepResult], None], tokens: int = 5) -> Pacer:
    """Run one request to its end."""
    loop = VirtualLoop()

    async def body() -> Pacer:
        engine = Engine(PROFILES["llama-3.1-8b-h100"])
        pacer = Pacer(engine, speed, lambda _: None, lambda result: ended(loop, result))
        engine.submit(Request(1, "a", 3_000), tokens)
        pacer.wake()
        pacer.wake()
        await asyncio.sleep(10)
        return pacer

    try:
        return loop.run_until_complete(body())
    finally:
        loop.close()


@pytest.mark.parametrize("speed", [0.5, 1.0, 20.0])
def test_steps_end_when_the_hardware_would_be_done(speed):
    ends: list[tuple[float, StepResult]] = []
    pacer = pace(speed, lambda loop, result: ends.append((loop.now, result)))
    assert len(ends) == 6
    at = 1_000.0
    for end, result in ends:
        at += result.duration_us / 1e6 / speed
        assert end == pytest.approx(at, abs=1e-6)
    assert pacer.now_us == sum(result.duration_us for _, result in ends)
    assert pacer.lag_s == 0


def test_small_delays_are_caught_up() -> None:
    """A loop that is late by less than a step loses no time over all."""
    ends: list[float] = []

    def late(loop: VirtualLoop, result: StepResult) -> None:
        ends.append(loop.now)
        loop.now += 0.004

    pacer = pace(1.0, late)
    assert ends[-1] == pytest.approx(1_000 + pacer.now_us / 1e6, abs=0.005)
    assert pacer.lag_s == 0


def test_a_loop_that_is_far_behind_lets_the_time_go() -> None:
    """It does not run many steps back to back, and says how much it lost."""

    def stuck(loop: VirtualLoop, result: StepResult) -> None:
        loop.now += 1.0

    pacer = pace(1.0, stuck, tokens=3)
    assert pacer.lag_s == pytest.approx(4.0, abs=0.01)


def test_a_stopped_pacer_runs_no_further_step() -> None:
    steps: list[StepResult] = []
    holder: list[Pacer] = []

    async def body() -> None:
        engine = Engine(PROFILES["llama-3.1-8b-h100"])
        holder.append(Pacer(engine, 1.0, lambda _: None, steps.append))
        engine.submit(Request(1, "a", 10), 100)
        holder[0].wake()
        await asyncio.sleep(0.1)
        count = len(steps)
        assert count > 3
        holder[0].stop()
        holder[0].wake()
        await asyncio.sleep(10)
        assert len(steps) == count

    loop = VirtualLoop()
    try:
        loop.run_until_complete(body())
    finally:
        loop.close()
