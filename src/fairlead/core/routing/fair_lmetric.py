"""Fair LMetric: D2LPM says which workers a client may use, LMetric which of them it takes."""

from math import inf

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match
from fairlead.core.routing.d2lpm import DeficitRouting
from fairlead.core.routing.lmetric import products
from fairlead.core.routing.scan import least


class FairLMetric(DeficitRouting):
    """D2LPM's eligibility, LMetric's product among the eligible.

    No hotspot detector: a client's quantum bounds already how long it can pile onto one worker.
    """

    name = "fair_lmetric"
    source = "fairlead: [DLPM] Algorithm 2 with the score of [LMETRIC]"
    summary = "Among workers where the client has credit, the least (pending + uncached) x (batch size + 1)."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Refill if need be, and pick the least product where there is credit; inf where there is none."""
        slots = fleet.candidates
        scores: list[float] = products(request, match, fleet)
        spent = self.books.spent(request.client, slots)
        if spent and len(slots) == len(fleet.ids):
            for s in spent:
                scores[s] = inf
        elif spent:
            scores = [inf if s in spent else score for s, score in zip(slots, scores, strict=False)]
        return Choice(least(slots, scores, self.last, fleet.batch_size, fleet.kv_used), scores)
