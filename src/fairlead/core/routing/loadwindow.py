"""Load that workers were given in a sliding window of time."""

from collections import deque

_BUCKETS = 18


class _Bucket:
    """What was given within one step of the window."""

    __slots__ = ("index", "loads", "output")

    def __init__(self, index: int) -> None:
        self.index = index
        self.loads: dict[int, list[int]] = {}
        """Slot to [prefill microseconds, requests]."""
        self.output = 0


class LoadWindow:
    """Prefill time and requests of each slot over the last ``window_us``, in steps of 1/18 of it.

    Sums are kept as time goes on, so that reading them over all slots is a plain list. Memory is
    18 entries a slot at most.
    """

    def __init__(self, window_us: int) -> None:
        self.step_us = max(1, window_us // _BUCKETS)
        self.prefill_us: list[int] = []
        self.requests: list[int] = []
        self.total_requests = 0
        """Sum of ``requests``."""
        self.output = 0
        """Output tokens of all workers in the window."""
        self._buckets: deque[_Bucket] = deque([_Bucket(0)])

    def grow(self, slots: int) -> None:
        """Make room for ``slots`` slots."""
        missing = slots - len(self.requests)
        if missing > 0:
            self.prefill_us += [0] * missing
            self.requests += [0] * missing

    def advance(self, now: int) -> None:
        """Let go of what is older than the window."""
        index, buckets = now // self.step_us, self._buckets
        if buckets[-1].index >= index:
            return
        buckets.append(_Bucket(index))
        while buckets[0].index <= index - _BUCKETS:
            old = buckets.popleft()
            self.output -= old.output
            for slot, (prefill, requests) in old.loads.items():
                self.prefill_us[slot] -= prefill
                self.requests[slot] -= requests
                self.total_requests -= requests

    def add(self, slot: int, prefill_us: int, requests: int) -> None:
        """Add load to ``slot`` now; both numbers are at least 0."""
        self.grow(slot + 1)
        load = self._buckets[-1].loads.setdefault(slot, [0, 0])
        load[0] += prefill_us
        load[1] += requests
        self.prefill_us[slot] += prefill_us
        self.requests[slot] += requests
        self.total_requests += requests

    def take_back(self, slot: int, prefill_us: int, requests: int) -> None:
        """Take load back, from the newest entries that have some: never more than there is."""
        for bucket in reversed(self._buckets):
            load = bucket.loads.get(slot)
            if load is not None:
                some, few = min(prefill_us, load[0]), min(requests, load[1])
                load[0] -= some
                load[1] -= few
                self.prefill_us[slot] -= some
                self.requests[slot] -= few
                self.total_requests -= few
                prefill_us -= some
                requests -= few
            if not (prefill_us or requests):
                return

    def decoded(self, tokens: int) -> None:
        """Add output tokens now (negative takes back)."""
        self._buckets[-1].output += tokens
        self.output += tokens

    def reset(self, slot: int) -> None:
        """Forget the load of ``slot``."""
        for bucket in self._buckets:
            bucket.loads.pop(slot, None)
        if slot < len(self.requests):
            self.total_requests -= self.requests[slot]
            self.prefill_us[slot] = self.requests[slot] = 0

    def check(self) -> None:
        """Raise AssertionError unless the sums are those of the buckets."""
        assert len(self._buckets) <= _BUCKETS
        loads = [(s, load) for b in self._buckets for s, load in b.loads.items()]
        for slot, sums in enumerate(zip(self.prefill_us, self.requests, strict=True)):
            assert sums == tuple(sum(load[i] for s, load in loads if s == slot) for i in (0, 1)), slot
        assert self.total_requests == sum(self.requests)
        assert self.output == sum(b.output for b in self._buckets)
