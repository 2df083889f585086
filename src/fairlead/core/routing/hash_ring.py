"""A ring of workers: consistent hashing, by the names of workers alone."""

from bisect import bisect_left
from collections.abc import Container, Iterator, Sequence
from hashlib import blake2b

from fairlead.core.model import WorkerId


def _points(worker: WorkerId, count: int, salt: bytes) -> Iterator[int]:
    """Where a worker sits on the ring: 64-bit points cut from digests, eight a digest."""
    for part in range((count + 7) // 8):
        digest = blake2b(f"{part}:{worker}".encode(), salt=salt).digest()
        for i in range(min(8, count - 8 * part)):
            yield int.from_bytes(digest[8 * i : 8 * i + 8])


class HashRing:
    """``points`` 64-bit points a worker; what hashes between two of them belongs to the next one clockwise.

    Points come from the names of workers and not from slots, so that every process agrees and a worker
    that comes back gets back what it had. When one of N workers leaves, only what it had moves; one that
    joins takes about 1/N of what each other one has. ``salt`` (at most 16 bytes) makes rings that differ.
    """

    __slots__ = ("_count", "_ids", "_owners", "_points", "_ring", "_salt")

    def __init__(self, points: int, salt: bytes = b"") -> None:
        self._count = points
        self._salt = salt
        self._ids: list[WorkerId] = []
        self._ring: list[tuple[int, WorkerId, int]] = []
        self._points: list[int] = []
        self._owners: list[int] = []

    @property
    def workers(self) -> int:
        """Workers on the ring."""
        return len(self._owners) // self._count

    def update(self, ids: Sequence[WorkerId]) -> None:
        """Lay the ring out again if workers came or went; ``ids`` by slot, empty for a free one.

        O(workers x points) then: a filter, and a sort of a list that is almost sorted.
        """
        if self._ids == ids:
            return
        old = self._ids + [""] * (len(ids) - len(self._ids))
        new = [*ids, *[""] * (len(old) - len(ids))]
        changed = {s for s, (was, now) in enumerate(zip(old, new, strict=False)) if was != now}
        ring = [entry for entry in self._ring if entry[2] not in changed]
        ring += [
            (p, new[s], s)
            for s in sorted(changed)
            if new[s]
            for p in _points(new[s], self._count, self._salt)
        ]
        # Equal points of two workers go by name, so that slots do not decide.
        ring.sort()
        self._ring = ring
        self._points = [point for point, _, _ in ring]
        self._owners = [slot for _, _, slot in ring]
        self._ids = list(ids)

    def owner(self, point: int) -> int:
        """Return the slot that a 64-bit number belongs to. There is at least one worker."""
        at = bisect_left(self._points, point)
        owners = self._owners
        return owners[at] if at < len(owners) else owners[0]

    def first_of(self, point: int, eligible: Container[int]) -> int:
        """Return the first slot clockwise that is one of ``eligible``; -1 if none is."""
        owners = self._owners
        start = bisect_left(self._points, point)
        for step in range(start, start + len(owners)):
            slot = owners[step % len(owners)]
            if slot in eligible:
                return slot
        return -1
