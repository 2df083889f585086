"""BalanceRoute BR-0: fill up to the load of the most loaded worker, and pay for what goes beyond it."""

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase
from fairlead.core.routing.scan import columns, least


class BalanceRoute(RoutingBase):
    """Most F = s - G * max(0, s - (M - L)), for workers that wait for the slowest of them in every step.

    L  the worker's load: the prompt tokens that a decode step of it reads, those of requests that wait for
       it included. A prompt that several requests share is read for each.
    M  the largest load of the fleet, so that M - L is what fits without making steps longer.
    s  the request's prompt tokens, cached or not: they will be read as well.
    G  workers that may take the request: all of them wait for what goes beyond M.

    F is what the sum of all gaps, G * M - (sum of L), falls by. Wherever s fits it is the same: then the
    worker with the most free sequences takes the request (the paper's first stage looks at free capacity
    first), and of those the least loaded; then rotation.

    Decisions of ours: the paper holds requests back after their prefill and picks a worker and a set of
    them together. A router that decides on arrival has one request, so the second stage is left out.
    Output tokens are not counted in L, since a router does not see how far each request is. BR-H, which
    predicts who ends soon, is not here.
    """

    name = "balance_route"
    source = "arXiv 2605.06113 (BalanceRoute), BR-0; one request at a time is ours"
    summary = "The worker whose load stays within the largest of the fleet; it knows no cache."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the most F."""
        slots, size = fleet.candidates, request.prompt_tokens
        loads = [c + u - r for c, u, r in zip(fleet.context, fleet.kv_used, fleet.kv_running, strict=False)]
        free = [b - n for b, n in zip(fleet.batch_size, fleet.max_num_seqs, strict=False)]
        workers, room = len(slots), max(loads) - size
        (mine,) = columns(fleet, slots, loads)
        # M - L - s is negative by what goes beyond M.
        scores = [workers * (load - room) - size if load > room else -size for load in mine]
        return Choice(least(slots, scores, self.last, free, loads), scores)
