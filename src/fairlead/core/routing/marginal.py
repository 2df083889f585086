"""Marginal cost: what one more request costs itself and the batch it joins."""

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase
from fairlead.core.routing.scan import columns, least

SLOWED = 1 / 8
"""What a second is worth to a request that decodes, against one that waits for its first token: an answer
that comes more slowly is the lesser evil. The only preference in the rule."""
READ = 1 / 500
"""Reading a token of context in a decode step, in tokens of prefill: k_d / b of the step's formula, 1/360 to
1/810 in six of seven profiles (1/2,150 for the 70B model on four GPUs)."""
SEQUENCE = 200
"""What a decoding sequence adds to a step whatever its context, in tokens of context read: t_seq / k_d, 128
to 256 in five of seven profiles (425 and 640 for the large models)."""
EVICTED = 2
"""How many times its hit rate a cached token is worth when it has to go."""


class Marginal(RoutingBase):
    """Least P + X + (e + 2*h*s)*(1 + bs/8) + o*(A + (200 + o/2)*bs)/2000, in tokens of prefill.

    P  pending prefill that goes before it: the request waits for that, and slows nobody else by it.
    X  KV tokens beyond the pool if the request came too: work that would have to wait or be redone.
    e  extend tokens: the request waits for them itself, and each of the bs requests that decode there is
       slowed by as much (``SLOWED``).
    s  the part of e whose blocks must evict cached ones; h the worker's recent hit rate, so that
       2*h*s is what eviction costs later.
    o  tokens of output that the client is expected to get. Each of these steps reads the context that runs
       there: A prompt tokens, and of each of the bs sequences half an answer. 2000 is 1 / (2 * SLOWED *
       READ): the request is slowed by what is there, and slows it about as much itself. Without this
       everybody who asks about one hot document joins the one worker that has it, and requests with
       short prompts and long answers all join the worker with the fewest prompt tokens.

    P, X and the batch size count what was sent to the worker and, of what waits for it, what would go before
    this request (``Fleet.ahead``): where clients are served in turns, the long queue of another client costs
    this one next to nothing, and must not drive it from one worker to the next. What goes before it is
    taken to be as long as it is.

    What a request adds to the KV in use is taken as e: the blocks that it matches are counted as in
    use already. *(decision)* Ties: lower batch size, then fewer KV tokens held, then rotation.
    """

    name = "marginal"
    source = "fairlead"
    summary = (
        "The least pending + KV overflow + (uncached + 2 x hit rate x evicting) x (1 + batch size / 8)"
        " + output x (context + (200 + output / 2) x batch size) / 2000."
    )

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the least marginal cost."""
        slots = fleet.candidates
        if fleet.waiting:
            scores = self._behind_others(request, match, fleet)
            return Choice(least(slots, scores, self.last, fleet.batch_size, fleet.kv_used), scores)
        prompt = request.prompt_tokens
        token, sequence = _decoding(request, fleet)
        tokens, pending, context, sizes, pools, used, cached, hits = columns(
            fleet, slots, match.tokens, fleet.pending_prefill_tokens, fleet.context, fleet.batch_size,
            fleet.kv_tokens, fleet.kv_used, fleet.kv_cached, fleet.hit_rate,
        )  # fmt: skip
        # Both loops are the hot path: e fits beside what is cached, or e - free of it must evict
        # (all of e where the cache is over its size).
        scores = [
            p
            + token * a
            + sequence * b
            + (e if (e := prompt - t) <= k - c else e + EVICTED * h * (e - k + c if c < k else e))
            * (1 + SLOWED * b)
            for t, p, a, b, k, c, h in zip(tokens, pending, context, sizes, pools, cached, hits, strict=False)
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
        token, sequence = _decoding(request, fleet)
        scores, context = [], fleet.context
        running, pending, pools = fleet.running, fleet.pending_prefill_tokens, fleet.kv_tokens
        used, cached, hits = fleet.kv_running, fleet.kv_cached, fleet.hit_rate
        for s in fleet.candidates:
            extend = prompt - match.tokens[s]
            ahead, tokens = fleet.ahead(s, client, request.sequences, extend)
            overflow = max(0, used[s] + tokens + extend - pools[s])
            evicting = extend - max(0, pools[s] - cached[s])
            cost = extend + EVICTED * hits[s] * evicting if evicting > 0 else extend
            size = running[s] + ahead
            before = pending[s] - fleet.waiting_tokens(s) + tokens
            decoding = token * (context[s] + ahead * prompt) + sequence * size
            scores.append(before + overflow + decoding + cost * (1 + SLOWED * size))
        return scores


def _decoding(request: Request, fleet: Fleet) -> tuple[float, float]:
    """Return what the request's decoding costs, for a token of context beside it and for a sequence."""
    limit, output = request.max_tokens, fleet.expected_output(request.client)
    if limit is not None:
        output = min(float(limit), output)
    token = 2 * SLOWED * READ * output
    return token, token * (SEQUENCE + output / 2)
