"""Marginal cost: what one more request costs itself and the batch it joins."""

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase
from fairlead.core.routing.scan import columns, least


class Marginal(RoutingBase):
    """Least P + X + (e + 2*h*s) * sqrt(bs + 1), in tokens of prefill.

    P  pending prefill: the request waits behind it, and slows nobody else by that.
    X  KV tokens beyond the pool if the request came too: work that would have to wait or be redone.
    e  extend tokens: they slow the whole batch, hence the root of its size.
    s  the part of e whose blocks must evict cached ones; h the worker's recent hit rate, so that
       2*h*s is what eviction costs later.

    What a request adds to the KV in use is taken as e: the blocks that it matches are counted as in
    use already. *(decision)* Ties: lower batch size, then fewer KV tokens held, then rotation.
    """

    name = "marginal"
    source = "fairlead"
    summary = "The least pending + KV overflow + (uncached + 2 x hit rate x evicting) x sqrt(batch size + 1)."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice | None:  # noqa: ARG002 - one interface
        """Pick the least marginal cost."""
        slots = fleet.candidates
        if not slots:
            return None
        prompt = request.prompt_tokens
        tokens, pending, root, pools, used, cached, hits = columns(
            fleet, slots, match.tokens, fleet.pending, fleet.root,
            fleet.kv_tokens, fleet.kv_used, fleet.kv_cached, fleet.hit_rate,
        )  # fmt: skip
        # Both loops are the hot path: e fits beside what is cached, or e - free of it must evict
        # (all of e where the cache is over its size).
        scores = [
            p + (e if (e := prompt - t) <= k - c else e + 2 * h * (e - k + c if c < k else e)) * r
            for t, p, r, k, c, h in zip(tokens, pending, root, pools, cached, hits, strict=False)
        ]
        if max(used) + prompt > min(pools):
            scores = [
                score + over if (over := u + prompt - t - k) > 0 else score
                for score, t, u, k in zip(scores, tokens, used, pools, strict=False)
            ]
        return Choice(least(slots, scores, self.last, fleet.bs, fleet.kv_used), scores)
