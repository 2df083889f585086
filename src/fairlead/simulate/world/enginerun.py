"""One engine in virtual time: when its next step ends, and what it did.

A caller keeps ``wake_us`` in its heap of events and calls ``wake`` then. Whatever is done to the
engine from outside is announced by ``touch`` first. An event at the moment at which a step ends comes
before it: the next step sees it.

With ``fast_forward`` the steps that only decode are taken many at a time; without, one by one. Both give the
same results at the same microsecond, which a property test holds them to.
"""

from fairlead.core.model import RequestId
from fairlead.engine.model import Engine
from fairlead.engine.step import Load, StepResult

IDLE = -1
LATEST = 4
"""A report that is due waits for a step that tells something anyway, up to so many times its interval."""


class EngineRun:
    """Drives ``engine``, and reports its ``progress`` now and then.

    That is at the first wake with a first token or an end, ``report_steps`` steps or more after the
    report before, and after ``LATEST`` times as many at the latest; 0: never.

    ``in_order``: the engine serves in order of arrival, whatever it decodes meanwhile, and nobody is told of
    its blocks. Then a request need not end a fast-forward at once (``receive``).
    """

    __slots__ = (
        "_fast_forward", "_in_order", "_receives", "_report", "_result", "_start", "_steps", "_told",
        "engine", "progress", "wake_us",
    )  # fmt: skip

    def __init__(
        self, engine: Engine, *, fast_forward: bool = True, report_steps: int = 0, in_order: bool = False
    ) -> None:
        self.engine = engine
        self._in_order = in_order and engine.async_scheduling
        self._receives = False
        """Whether requests came while it fast-forwards, which ends with the step that does not know them."""
        self.wake_us = IDLE
        """When the step or the steps under way end; ``IDLE`` when there are none."""
        self.progress: list[tuple[RequestId, int]] | None = None
        """After a wake with a report: who decodes, and its output tokens so far."""
        self._told = 0
        """The engine's steps at the last report."""
        self._fast_forward = fast_forward
        self._report = report_steps
        self._result: StepResult | None = None
        """Of the step under way; None while it fast-forwards."""
        self._steps = 0
        self._start = 0

    def touch(self, now: int) -> bool:
        """Say that the engine will be changed or looked at now; return whether ``wake_us`` changed.

        Brings its state to the end of the step under way, as ``Engine.step`` leaves it.
        """
        if self.wake_us == IDLE or self._result is not None:
            return False
        self._result = result = self._end_fast_forward(self._steps_at(now))
        before, self.wake_us = self.wake_us, self._start + result.duration_us
        return self.wake_us != before

    def receive(self, now: int) -> bool:
        """Say that a request will be submitted now, and nothing else done; return as ``touch`` does.

        With asynchronous scheduling the step after the one under way was scheduled without the request. If
        both only decode, the fast-forward goes on to the end of that one.
        """
        if self._in_order and self.wake_us != IDLE and self._result is None:
            steps = self._steps_at(now) + 1
            if self._receives and steps == self._steps:
                return False
            if steps < self._steps:
                self._receives = True
                self._steps = steps
                self.wake_us = self._start + self.engine.fast_forward_us(steps)
                return True
        return self.touch(now)

    def _end_fast_forward(self, steps: int) -> StepResult:
        result = self.engine.fast_forward(steps)
        if self._receives:
            self._receives = False
            if steps == self._steps:
                self.engine.catch_up()
        return result

    def _steps_at(self, now: int) -> int:
        """Return how many steps of a fast-forward have begun.

        The one that began at the start of the fast-forward is under way, even at that very moment.
        """
        return min(max(1, self.engine.fast_forward_steps_until(now - self._start)), self._steps)

    def look(self, now: int) -> tuple[Load, int]:
        """Return what the engine reports of itself after ``touch``, without one where it can be helped.

        A touch would end a fast-forward, and cause another wake. The second figure is how many steps of a
        fast-forward the report foresees that have only decoded, and that no wake has told of yet.
        """
        if self.wake_us != IDLE and self._result is None:
            steps = self._steps_at(now)
            if steps < self._steps:
                return self.engine.load_after(steps), steps
            self.touch(now)  # its last step, which ends a request: ``wake_us`` stays
        return self.engine.load, 0

    @property
    def ended_steps(self) -> int:
        """Steps that have ended and that no wake has told yet; right after ``touch``."""
        return self._result.steps - 1 if self._result is not None else 0

    def start(self, now: int) -> None:
        """Begin the next step, if there is anything to do and none is under way."""
        if self.wake_us == IDLE:
            self._begin(now)

    def wake(self, now: int) -> StepResult:
        """End the steps under way, begin the next; return what was done."""
        result = self._result
        if result is None:
            result = self._end_fast_forward(self._steps)
        if self._report:
            since = self.engine.steps - self._told
            if since >= self._report and (result.first or result.finished or since >= LATEST * self._report):
                self._told = self.engine.steps
                self.progress = list(self.engine.decoding())
            else:
                self.progress = None
        self._begin(now)
        return result

    def _begin(self, now: int) -> None:
        engine = self.engine
        if self._fast_forward:
            steps = engine.fast_forward_steps()
            if steps > 1:
                if self._report:
                    steps = min(steps, self._told + LATEST * self._report - engine.steps)
                self._start, self._steps, self._result = now, steps, None
                self.wake_us = now + engine.fast_forward_us(steps)
                return
        self._result = result = engine.step(now)
        self.wake_us = IDLE if result is None else now + result.duration_us
