"""SGLang's cache-aware rule: locality while the fleet is even, least load when it is not."""

from fairlead.core.model import Request
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.scan import columns, least


class CacheAware(RoutingBase):
    """A fleet-wide gate, then a threshold on the share of the prompt that is cached.

    Load is the number of requests on a worker. Among all workers of the longest match the least
    loaded is taken, where the original knows one holder a prefix.
    """

    name = "cache_aware"
    source = "SGLang router, policy cache_aware (defaults of its command line)"
    summary = "Least loaded when loads differ too much, else the least loaded holder of a long enough match."
    params = (
        Param(
            "cache_threshold",
            0.3,
            "share of the prompt that must be cached to prefer a holder",
            low=0,
            high=1,
        ),
        Param(
            "balance_abs_threshold", 64, "requests between the most and the least loaded, above which", low=0
        ),
        Param("balance_rel_threshold", 1.5, "and ratio of the two above which the fleet is uneven", low=1),
    )

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        self._threshold = self.values.number("cache_threshold")
        self._abs = self.values.integer("balance_abs_threshold")
        self._rel = self.values.number("balance_rel_threshold")

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Check the gate, then the threshold."""
        slots = fleet.candidates
        (sizes,) = columns(fleet, slots, fleet.batch_size)
        low, high = min(sizes), max(sizes)
        if high - low > self._abs and high > self._rel * low:
            branch = "cache_aware: imbalanced"
        elif match.best > self._threshold * request.prompt_tokens:
            holders = match.holders
            slot = least(holders, [fleet.batch_size[s] for s in holders], self.last)
            return Choice(slot, branch="cache_aware: hit")
        else:
            branch = "cache_aware: miss"
        scores = list(sizes)
        return Choice(least(slots, scores, self.last), scores, branch)
