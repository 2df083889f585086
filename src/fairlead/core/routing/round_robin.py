"""Round robin: each worker in turn."""

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase
from fairlead.core.routing.scan import following


class RoundRobin(RoutingBase):
    """The turn passes when a request is assigned, so a decision that comes to nothing costs no turn."""

    name = "round_robin"
    source = "folklore"
    summary = "Each worker in turn."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the first candidate after the worker that was assigned last."""
        slots = fleet.candidates
        return Choice(following(slots, self.last))
