"""Least requests: the worker with the fewest requests, running and waiting."""

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase
from fairlead.core.routing.scan import columns, least


class LeastRequests(RoutingBase):
    """Counts everything that is on the worker, not only what queues for it."""

    name = "least_requests"
    source = "folklore (least outstanding requests)"
    summary = "The worker with the fewest requests, running and waiting; ties rotate."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the candidate of the smallest batch."""
        slots = fleet.candidates
        (sizes,) = columns(fleet, slots, fleet.batch_size)
        scores = list(sizes)
        return Choice(least(slots, scores, self.last), scores)
