"""Runs an engine model against the wall clock: one timer, however many requests."""

import asyncio
from collections.abc import Callable

from fairlead.engine.model import Engine
from fairlead.engine.step import StepResult

MAX_LAG_S = 0.1
"""If the event loop is further behind than this, the lost time is given up instead of caught up."""


class Pacer:
    """Steps ``engine``, ``speed`` times faster than the modelled hardware would.

    ``began`` hears of a step's result as it begins, ``ended`` when its time is over and it takes
    effect. A step begins where the one before ended, not where the timer fired, so that delays of
    the loop do not add up.
    """

    def __init__(
        self,
        engine: Engine,
        speed: float,
        began: Callable[[StepResult], None],
        ended: Callable[[StepResult], None],
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed is a positive factor, not {speed}")
        self.engine = engine
        self.speed = speed
        self.now_us = 0
        """The engine's own time: the sum of its steps."""
        self.lag_s = 0.0
        """Wall time lost because the loop could not keep the pace."""
        self._began = began
        self._ended = ended
        self._timer: asyncio.TimerHandle | None = None
        self._end_s = 0.0
        self._stopped = False

    def wake(self) -> None:
        """Say that there may be work. Does nothing while a step is under way."""
        if self._timer is None and not self._stopped:
            self._begin(asyncio.get_running_loop().time())

    def stop(self) -> None:
        """Run no further step; the one under way never ends."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, start_s: float) -> None:
        result = self.engine.step(self.now_us)
        if result is None:
            return
        self._began(result)
        self.now_us += result.duration_us
        self._end_s = start_s + result.duration_us / (1e6 * self.speed)
        self._timer = asyncio.get_running_loop().call_at(self._end_s, self._end, result)

    def _end(self, result: StepResult) -> None:
        self._ended(result)
        self._timer = None
        if self._stopped:
            return
        behind = asyncio.get_running_loop().time() - self._end_s
        if behind > MAX_LAG_S:
            self.lag_s += behind
            self._end_s += behind
        self._begin(self._end_s)
