"""Random: any worker, evenly."""

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase


class RandomChoice(RoutingBase):
    """Draws from the stream it is given: the same seed and history give the same decisions."""

    name = "random"
    source = "folklore"
    summary = "Any worker, evenly."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick any candidate."""
        slots = fleet.candidates
        return Choice(slots[int(self.context.rng.random() * len(slots))])
