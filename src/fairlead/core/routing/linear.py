"""Linear scores of cache and load, in the forms that three projects use."""

from collections.abc import Callable, Sequence

from fairlead.core.model import Request
from fairlead.core.params import Param, PolicyError
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.scan import columns, least

_OF_PRESET = {
    "dynamo": ("overlap_weight",),
    "dynamo-1.7": ("prefill_load_scale",),
    "production": ("alpha", "beta", "gamma", "scale"),
    "llm-d": ("prefix_weight", "queue_weight", "kv_weight"),
}


class Linear(RoutingBase):
    """Adds up what a worker caches of the prompt and how busy it is, each with a weight.

    ``dynamo``      overlap_weight * (prompt - matched) / block + KV blocks in use; least wins.
    ``dynamo-1.7``  prefill_load_scale * (pending prefill + prompt - matched) / block + (KV in use + prompt
                    - matched) / block, as its router counts since; least wins. What a request adds to
                    the KV in use is taken as what is not cached.
    ``production``  alpha * hit + beta * (1 - batch size / max) + gamma * (1 - tokens / max); most wins.
                    ``scale`` says what max is: the largest among the candidates, or what the worker
                    can hold (the sources leave it open).
    ``llm-d``       prefix_weight * hit + queue_weight * q + kv_weight * (1 - KV in use), with
                    q = (longest - own) / (longest - shortest queue), 1 when all are equal; most wins.

    hit is matched / prompt. Scores are reported so that less is better, hence negated where the
    most wins. Ties: lower batch size, then rotation. A weight of another preset than the chosen one
    is an error, since it would do nothing.
    """

    name = "linear"
    source = "NVIDIA Dynamo KV router; [LMETRIC] production score; llm-d inference scheduler"
    summary = "A weighted sum of cache hit and load; presets dynamo, dynamo-1.7, production and llm-d."
    params = (
        Param("preset", "dynamo", "the form of the score", choices=tuple(_OF_PRESET)),
        Param("overlap_weight", 1.0, "dynamo: weight of the blocks to compute", low=0),
        Param(
            "prefill_load_scale", 1.0, "dynamo-1.7: weight of the blocks to compute, pending ones too", low=0
        ),
        Param("alpha", 0.7, "production: weight of the hit", low=0),
        Param("beta", 0.15, "production: weight of the batch size", low=0),
        Param("gamma", 0.15, "production: weight of the KV tokens in use", low=0),
        Param("scale", "fleet", "production: what load is divided by", choices=("fleet", "capacity")),
        Param("prefix_weight", 3.0, "llm-d: weight of the prefix-cache scorer", low=0),
        Param("queue_weight", 2.0, "llm-d: weight of the queue scorer", low=0),
        Param("kv_weight", 2.0, "llm-d: weight of the KV-utilisation scorer", low=0),
    )

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        preset = self.values.word("preset")
        for other, names in _OF_PRESET.items():
            for name in names:
                if other != preset and name in given:
                    valid = ", ".join(_OF_PRESET[preset])
                    raise PolicyError(
                        f"linear: '{name}' has no effect with preset '{preset}' (that takes: {valid})"
                    )
        forms: dict[str, Callable[[Request, Match, Fleet], list[float]]] = {
            "dynamo": self._dynamo,
            "dynamo-1.7": self._dynamo_1_7,
            "production": self._production,
            "llm-d": self._llm_d,
        }
        self._scores = forms[preset]
        self._branch = f"linear: {preset}"
        self._weights = [self.values.number(name) for name in _OF_PRESET[preset] if name != "scale"]
        self._by_capacity = self.values.word("scale") == "capacity"

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Pick the best score."""
        slots = fleet.candidates
        scores = self._scores(request, match, fleet)
        return Choice(least(slots, scores, self.last, fleet.batch_size), scores, self._branch)

    def _dynamo(self, request: Request, match: Match, fleet: Fleet) -> list[float]:
        prompt, block = request.prompt_tokens, request.block_tokens
        (weight,) = self._weights
        tokens, used = columns(fleet, fleet.candidates, match.tokens, fleet.kv_used)
        return [(weight * (prompt - t) + u) / block for t, u in zip(tokens, used, strict=False)]

    def _dynamo_1_7(self, request: Request, match: Match, fleet: Fleet) -> list[float]:
        prompt, block = request.prompt_tokens, request.block_tokens
        (scale,) = self._weights
        tokens, pending, used = columns(
            fleet, fleet.candidates, match.tokens, fleet.pending_prefill_tokens, fleet.kv_used
        )
        return [
            (scale * (p + prompt - t) + u + prompt - t) / block
            for t, p, u in zip(tokens, pending, used, strict=False)
        ]

    def _production(self, request: Request, match: Match, fleet: Fleet) -> list[float]:
        alpha, beta, gamma = self._weights
        hit = alpha / max(1, request.prompt_tokens)
        tokens, sizes, used = columns(fleet, fleet.candidates, match.tokens, fleet.batch_size, fleet.kv_used)
        constant = beta + gamma
        if self._by_capacity:
            sequences, pools = columns(fleet, fleet.candidates, fleet.max_num_seqs, fleet.kv_tokens)
            return [
                beta * b / (n or 1) + gamma * u / (k or 1) - hit * t - constant
                for t, b, u, n, k in zip(tokens, sizes, used, sequences, pools, strict=False)
            ]
        beta, gamma = beta / (max(sizes) or 1), gamma / (max(used) or 1)
        return [
            beta * b + gamma * u - hit * t - constant for t, b, u in zip(tokens, sizes, used, strict=False)
        ]

    def _llm_d(self, request: Request, match: Match, fleet: Fleet) -> list[float]:
        prefix, queue, kv = self._weights
        hit = prefix / max(1, request.prompt_tokens)
        tokens, used, pools = columns(fleet, fleet.candidates, match.tokens, fleet.kv_used, fleet.kv_tokens)
        waiting = _waiting(fleet)
        low, high = min(waiting), max(waiting)
        queue, constant = (queue / (high - low), kv + queue) if high > low else (0.0, kv + queue)
        return [
            kv * u / (k or 1) + queue * (w - low) - hit * t - constant
            for t, u, k, w in zip(tokens, used, pools, waiting, strict=False)
        ]


def _waiting(fleet: Fleet) -> Sequence[float]:
    """Requests that wait for each candidate, at the dispatcher and inside the engine."""
    queued, inside = columns(fleet, fleet.candidates, fleet.queued, fleet.engine_waiting)
    return [q + w for q, w in zip(queued, inside, strict=False)]
