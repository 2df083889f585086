"""Until when each request may wait. Soonest first; entries of requests that wait no more are skipped."""

from bisect import insort
from collections import deque
from collections.abc import Mapping

from fairlead.core.lifecycle import State
from fairlead.core.model import RequestId
from fairlead.core.tracked import TrackedRequest

_SPARE = 1_000


class Deadlines:
    """One entry each time a request begins to wait. Times in microseconds."""

    __slots__ = ("_entries", "timeout_us")

    def __init__(self, timeout_us: int) -> None:
        self.timeout_us = timeout_us
        """How long a request may wait; 0 for ever."""
        self._entries: deque[tuple[int, RequestId]] = deque()

    def begin(self, tracked: TrackedRequest, now: int) -> None:
        """A request waits from now on."""
        if self.timeout_us:
            deadline = now + self.timeout_us
            tracked.deadline = tracked.deadline or deadline
            self._entries.append((deadline, tracked.rid))

    def keep(self, tracked: TrackedRequest) -> None:
        """A request waits again, and its first deadline still holds."""
        if tracked.deadline:
            insort(self._entries, (tracked.deadline, tracked.rid))

    def passed(self, now: int) -> RequestId | None:
        """Return a request whose deadline has passed, taking it off the list; None if there is none."""
        entries = self._entries
        return entries.popleft()[1] if entries and entries[0][0] <= now else None

    def tidy(self, requests: Mapping[RequestId, TrackedRequest], waiting: int) -> None:
        """Drop entries that say nothing any more, once there are many more than requests that wait."""
        if len(self._entries) > 2 * waiting + _SPARE:
            known = [(at, requests.get(rid)) for at, rid in self._entries]
            self._entries = deque(
                (at, found.rid) for at, found in known if found is not None and found.state is State.QUEUED
            )

    def __len__(self) -> int:
        return len(self._entries)
