"""A clock that only tests move."""


class Clock:
    """Integer microseconds from 0. Calling it returns the time."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        """Return the time in microseconds."""
        return self.now

    def move_to(self, at: int) -> None:
        """Set the time. Raises ValueError if that is in the past."""
        if at < self.now:
            raise ValueError(f"it is {self.now} us: the clock cannot go back to {at} us")
        self.now = at

    def __repr__(self) -> str:
        return f"<Clock {self.now / 1e6:.6f} s>"
