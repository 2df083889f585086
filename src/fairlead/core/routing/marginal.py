"""Marginal cost: what one more request costs itself and the batch it joins."""

from math import sqrt

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase
from fairlead.core.routing.scan import columns, least

READ = 1 / 5_000
"""What a decode step pays for a token of context, in tokens of prefill: some 1/1,000 of the computation of
one (1/400 to 1/2,000 in the measured profiles), and a fifth of that, since it delays what has begun."""


class Marginal(RoutingBase):
    """Least P + X + o*A/5000 + (e + 2*h*s) * sqrt(batch size + 1), in tokens of prefill.

    P  pending prefill that goes before it: the request waits for that, and slows nobody else by it.
    X  KV tokens beyond the pool if the request came too: work that would have to wait or be redone.
    A  context of what runs there: each of the o tokens of output that the client is expected to get waits
       until that is read. Without it everybody who asks about one hot document joins the one worker that
       has it.
    e  extend tokens: they slow the whole batch, hence the root of its size.
    s  the part of e whose blocks must evict cached ones; h the worker's recent hit rate, so that
       2*h*s is what eviction costs later.

    P, X and the batch size count what was sent to the worker and, of what waits for it, what would go before
    this request (``Fleet.ahead``): where clients are served in turns, the long queue of another client costs
    this one next to nothing, and must not drive it from one worker to the next.

    What a request adds to the KV in use is taken as e: the blocks that it matches are counted as in
    use already. *(decision)* Ties: lower batch size, then fewer KV tokens held, then rotation.
    """

    name = "marginal"
    source = "fairlead"
    summary = (
        "The least pending + KV overflow + output x context / 5000"
        " + (uncached + 2 x hit rate x evicting) x sqrt(batch size + 1)."
    )

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the least marginal cost."""
        slots = fleet.candidates
        if fleet.waiting:
            scores = self._behind_others(request, match, fleet)
            return Choice(least(slots, scores, self.last, fleet.batch_size, fleet.kv_used), scores)
        prompt, reads = request.prompt_tokens, _reads(request, fleet)
        tokens, pending, context, root, pools, used, cached, hits = columns(
            fleet, slots, match.tokens, fleet.pending_prefill_tokens, fleet.context, fleet.root,
            fleet.kv_tokens, fleet.kv_used, fleet.kv_cached, fleet.hit_rate,
        )  # fmt: skip
        # Both loops are the hot path: e fits beside what is cached, or e - free of it must evict
        # (all of e where the cache is over its size).
        scores = [
            p + reads * a + (e if (e := prompt - t) <= k - c else e + 2 * h * (e - k + c if c < k else e)) * r
            for t, p, a, r, k, c, h in zip(tokens, pending, context, root, pools, cached, hits, strict=False)
        ]
        if max(used) + prompt > min(pools):
            scores = [
                score + over if (over := u + prompt - t - k) > 0 else score
                for score, t, u, k in zip(scores, tokens, used, pools, strict=False)
            ]
        return Choice(least(slots, scores, self.last, fleet.batch_size, fleet.kv_used), scores)

    def _behind_others(self, request: Request, match: Match, fleet: Fleet) -> list[float]:
        """Score every candidate where requests wait: some of them go first."""
        prompt, client = request.prompt_tokens, request.client
        scores, reads, context = [], _reads(request, fleet), fleet.context
        running, pending, pools = fleet.running, fleet.pending_prefill_tokens, fleet.kv_tokens
        used, cached, hits = fleet.kv_running, fleet.kv_cached, fleet.hit_rate
        for s in fleet.candidates:
            extend = prompt - match.tokens[s]
            ahead, tokens = fleet.ahead(s, client, request.sequences, extend)
            overflow = max(0, used[s] + tokens + extend - pools[s])
            evicting = extend - max(0, pools[s] - cached[s])
            cost = extend + 2 * hits[s] * evicting if evicting > 0 else extend
            before = pending[s] - fleet.waiting_tokens(s) + tokens
            root = sqrt(running[s] + ahead + 1)
            scores.append(before + overflow + reads * context[s] + cost * root)
        return scores


def _reads(request: Request, fleet: Fleet) -> float:
    """Return what a token of context costs the request while it decodes."""
    limit, output = request.max_tokens, fleet.expected_output(request.client)
    return READ * (output if limit is None or limit > output else limit)
