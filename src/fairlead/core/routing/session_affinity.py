"""Session affinity: consistent hashing of sessions over workers."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from fairlead.core.model import Request, WorkerId
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext


def _points(worker: WorkerId, count: int) -> Iterator[int]:
    """Where a worker sits on the ring: 64-bit points cut from digests, eight a digest."""
    for part in range((count + 7) // 8):
        digest = blake2b(f"{part}:{worker}".encode()).digest()
        for i in range(min(8, count - 8 * part)):
            yield int.from_bytes(digest[8 * i : 8 * i + 8])


class SessionAffinity(RoutingBase):
    """A ring of 64-bit points, ``points`` a worker. A session belongs to the next point clockwise.

    Points come from worker names and not from slots, and hashes from blake2b, so that every
    process agrees and a worker that comes back gets its sessions back. When one of N workers leaves
    only its own sessions move; when one joins it takes about 1/N of each of the others'. A worker
    that is full or down for a moment is passed over: its sessions go to the next on the ring, and
    return.
    """

    name = "session_affinity"
    source = "Karger et al., Consistent Hashing and Random Trees, 1997"
    summary = "Consistent hashing by session, else by client; few sessions move when workers come or go."
    params = (
        Param(
            "points",
            128,
            "points a worker has on the ring; more spread sessions more evenly",
            low=1,
            high=4096,
        ),
    )

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        self._count = self.values.integer("points")
        self._ids: list[WorkerId] = []
        self._ring: list[tuple[int, WorkerId, int]] = []
        self._points: list[int] = []
        self._owners: list[int] = []

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the owner of the session's point, or the next on the ring that is a candidate."""
        slots = fleet.candidates
        if self._ids != fleet.ids:
            self._rebuild(fleet.ids)
        name = f"s{request.session}" if request.session else f"c{request.client}"
        at = bisect_left(self._points, int.from_bytes(blake2b(name.encode(), digest_size=8).digest()))
        owners = self._owners
        owner = owners[at] if at < len(owners) else owners[0]
        if len(slots) == len(owners) // self._count or _contains(slots, owner):
            return Choice(owner)
        eligible = set(slots)
        following = (owners[step % len(owners)] for step in range(at + 1, at + len(owners)))
        owner = next(slot for slot in following if slot in eligible)  # every candidate has points
        return Choice(owner, branch=f"{self.name}: next on the ring")

    def _rebuild(self, ids: Sequence[WorkerId]) -> None:
        """Lay out the ring again for the slots that changed, when workers come or go only.

        O(workers x points): a filter and a sort of a list that is almost sorted.
        """
        old = self._ids + [""] * (len(ids) - len(self._ids))
        new = [*ids, *[""] * (len(old) - len(ids))]
        changed = {s for s, (was, now) in enumerate(zip(old, new, strict=False)) if was != now}
        ring = [entry for entry in self._ring if entry[2] not in changed]
        ring += [(p, new[s], s) for s in sorted(changed) if new[s] for p in _points(new[s], self._count)]
        # Equal points of two workers go by name, so that slots do not decide.
        ring.sort()
        self._ring = ring
        self._points = [point for point, _, _ in ring]
        self._owners = [slot for _, _, slot in ring]
        self._ids = list(ids)


def _contains(slots: Sequence[int], slot: int) -> bool:
    i = bisect_left(slots, slot)
    return i < len(slots) and slots[i] == slot
