"""The worst difference in service between clients that wait at the same time.

Two clients are compared over every interval in which both are backlogged: have a request that waits.
Over such an interval [t1, t2] the difference is |(W_f(t2) - W_f(t1)) / w_f - (W_g(t2) - W_g(t1)) / w_g|,
so the worst one is the range of W_f/w_f - W_g/w_g while both stay backlogged.
"""

from collections.abc import Sequence

EVERY = 32
"""With at most this many backlogged clients, all pairs are compared at every end of a step."""
SPARSE_US = 100_000
"""With more clients, pairs are compared only at one end in so many."""


class _Pair:
    """Two backlogged clients, and the range of their difference since both are backlogged."""

    __slots__ = ("high", "low", "one", "other")

    def __init__(self, one: int, other: int, difference: float) -> None:
        self.one = one
        self.other = other
        self.low = self.high = difference


class ServiceGapTracker:
    """``service`` is W_i / w_i, kept by the caller; clients are indices into it."""

    __slots__ = ("_active", "_next", "_pairs", "_waiting", "pair", "service", "worst")

    def __init__(self, service: Sequence[float]) -> None:
        self.service = service
        self.worst = 0.0
        self.pair = (-1, -1)
        self._waiting = [0] * len(service)
        self._active: list[int] = []
        self._pairs: list[_Pair] = []
        self._next = 0

    def waits(self, client: int) -> None:
        """One more of its requests waits."""
        self._waiting[client] += 1
        if self._waiting[client] == 1:
            service = self.service
            mine = service[client]
            for other in self._active:
                if client < other:
                    self._pairs.append(_Pair(client, other, mine - service[other]))
                else:
                    self._pairs.append(_Pair(other, client, service[other] - mine))
            self._active.append(client)

    def goes(self, client: int) -> None:
        """One of its requests waits no more."""
        self._waiting[client] -= 1
        if not self._waiting[client]:
            if len(self._active) > 1:
                self._look()
            self._active.remove(client)
            if self._pairs:
                self._pairs = [p for p in self._pairs if client not in (p.one, p.other)]

    def waiting(self, client: int) -> int:
        """Return how many of its requests wait."""
        return self._waiting[client]

    def look(self, now: int) -> None:
        """Service has changed: compare who is backlogged."""
        active = len(self._active)
        if active > 1 and (active <= EVERY or now >= self._next):
            self._next = now + SPARSE_US
            self._look()

    def _look(self) -> None:
        service = self.service
        for pair in self._pairs:
            difference = service[pair.one] - service[pair.other]
            if difference < pair.low:
                pair.low = difference
            elif difference > pair.high:
                pair.high = difference
            else:
                continue
            if pair.high - pair.low > self.worst:
                self.worst = pair.high - pair.low
                self.pair = (pair.one, pair.other)
