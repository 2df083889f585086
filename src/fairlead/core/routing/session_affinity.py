"""Session affinity: consistent hashing of sessions over workers."""

from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b

from fairlead.core.model import Request
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.hash_ring import HashRing


class SessionAffinity(RoutingBase):
    """A session belongs to a worker by consistent hashing (``HashRing``).

    A worker that is full or down for a moment is passed over: its sessions go to the next on the ring,
    and return.
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
        self._ring = HashRing(self.values.integer("points"))

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the owner of the session's point, or the next on the ring that is a candidate."""
        slots, ring = fleet.candidates, self._ring
        ring.update(fleet.ids)
        name = f"s{request.session}" if request.session else f"c{request.client}"
        point = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
        owner = ring.owner(point)
        if len(slots) == ring.workers or _contains(slots, owner):
            return Choice(owner)
        # Every candidate is on the ring.
        return Choice(ring.first_of(point, set(slots)), branch=f"{self.name}: next on the ring")


def _contains(slots: Sequence[int], slot: int) -> bool:
    i = bisect_left(slots, slot)
    return i < len(slots) and slots[i] == slot
