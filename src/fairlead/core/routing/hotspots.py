"""LMetric's hotspot detector: prefixes that too few workers cache for how often they are asked."""

from collections import deque

from fairlead.core.model import BlockKey

MAX_ARRIVALS = 16_384
"""The window holds at most this many arrivals: shares are as good, and memory is bounded."""

_CONFIRMED = 1 << 60


class Hotspots:
    """Watches classes of requests that share a prefix ([LMETRIC], section on failure).

    A class is named by the key of the last block of a request's longest match: everything that was
    cached up to there and branches off. For a class with share x of the arrivals in the window, of
    which M of N workers hold the prefix, multiplication is safe while x/(1-x) <= M/(N-M), which is
    x*N <= M. When that is violated and the best holder still scores better than the best other
    worker for 2*M consecutive requests of the class, the holders are taken out for it, until the
    window is safe again: each request then makes one more holder.
    """

    def __init__(self, window_us: int) -> None:
        self.window_us = window_us
        self._arrivals: deque[tuple[int, BlockKey | None]] = deque()
        self._counts: dict[BlockKey, int] = {}
        self._runs: dict[BlockKey, int] = {}

    def violated(self, key: BlockKey, holders: int, workers: int, now: int) -> bool:
        """Return whether one more arrival of the class makes its share too large for its holders."""
        self.expire(now)
        return (self._counts.get(key, 0) + 1) * workers > holders * (len(self._arrivals) + 1)

    def confirmed(self, key: BlockKey, holders: int) -> bool:
        """Return whether the requests of the class so far are reason to take the holders out."""
        return self._runs.get(key, 0) >= 2 * holders

    def next_run(self, key: BlockKey, holder_better: bool) -> int:
        """Return the run of the class after a request that was scored under alarm."""
        return self._runs.get(key, 0) + 1 if holder_better else 0

    @staticmethod
    def confirmed_run() -> int:
        """Return a run that keeps the class confirmed, however many holders it gets."""
        return _CONFIRMED

    def arrived(self, key: BlockKey | None, run: int, now: int) -> None:
        """Book an arrival of the class (None: of no class), and its run of bad signs (0: none)."""
        self._arrivals.append((now, key))
        if key is not None:
            self._counts[key] = self._counts.get(key, 0) + 1
            if run:
                self._runs[key] = run
            else:
                self._runs.pop(key, None)
        if len(self._arrivals) > MAX_ARRIVALS:
            self._drop_oldest()

    def expire(self, now: int) -> None:
        """Drop the arrivals that left the window."""
        arrivals, oldest = self._arrivals, now - self.window_us
        while arrivals and arrivals[0][0] <= oldest:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        key = self._arrivals.popleft()[1]
        if key is None:
            return
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]
            self._runs.pop(key, None)

    def check(self) -> None:
        """Raise AssertionError unless counts are those of the window, and bounded."""
        assert len(self._arrivals) <= MAX_ARRIVALS
        assert sum(self._counts.values()) == sum(key is not None for _, key in self._arrivals)
        assert self._runs.keys() <= self._counts.keys()
