"""vLLM's load score for data-parallel ranks: 4 x waiting + running."""

from fairlead.core.model import Request
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.scan import columns, least


class VllmScore(RoutingBase):
    """What waits counts four times, since a queue says more about a worker than its batch does.

    Requests that wait at the dispatcher count as waiting; so do those that the engine last reported
    as waiting inside it, unless the report is older than ``max_age_s``. Of the requests that were
    sent, those not waiting are running.
    """

    name = "vllm_score"
    source = "vLLM, data-parallel load balancing of its core client"
    summary = "The least 4 x waiting + running; ties rotate."
    params = (
        Param("waiting_weight", 4, "what a waiting request counts, a running one being 1", low=0),
        Param("max_age_s", 5.0, "older reports of an engine's own queue are not used", low=0),
    )

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        self._weight = self.values.integer("waiting_weight")
        self._max_age = int(self.values.number("max_age_s") * 1e6)

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the least score."""
        slots = fleet.candidates
        weight = self._weight
        queued, running = columns(fleet, slots, fleet.queued, fleet.running)
        scores = [weight * q + r for q, r in zip(queued, running, strict=False)]
        if any(fleet.engine_waiting):
            extra, oldest = weight - 1, now - self._max_age
            reports = columns(fleet, slots, fleet.engine_waiting, fleet.reported_us)
            scores = [
                score + extra * min(waiting, sent) if at >= oldest else score
                for score, sent, waiting, at in zip(scores, running, *reports, strict=False)
            ]
        return Choice(least(slots, scores, self.last), scores)
