"""LMetric: the product of prefill to wait for and batch size."""

from bisect import bisect_left
from collections.abc import Sequence
from math import inf

from fairlead.core.model import BlockKey, Request, RequestId
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.hotspots import Hotspots
from fairlead.core.routing.scan import columns, least


def products(request: Request, match: Match, fleet: Fleet) -> list[float]:
    """Return (pending prefill + prompt - matched) * (batch size + 1) of each candidate.

    The first factor is at least 1: with 0 a full hit would win whatever the batch size, and herd.
    """
    prompt = request.prompt_tokens
    tokens, pending, sizes = columns(
        fleet, fleet.candidates, match.tokens, fleet.pending_prefill_tokens, fleet.batch_size
    )
    scores: list[float] = [
        (p + prompt - t) * (b + 1) for t, p, b in zip(tokens, pending, sizes, strict=False)
    ]
    # A match leaves a token to compute, so the floor matters for a prompt of none only: test once.
    if min(scores) <= 0:
        scores = [max(1, p + prompt - t) * (b + 1) for t, p, b in zip(tokens, pending, sizes, strict=False)]
    return scores


class LMetric(RoutingBase):
    """No weights to tune: a worker twice as busy must save twice the prefill.

    Ties: lower batch size, then fewer KV tokens held, then rotation. ``detector`` watches for
    prefixes that too few workers hold (see ``Hotspots``). Workers count as holders, or as others,
    only while they are candidates.
    """

    name = "lmetric"
    source = "[LMETRIC] arXiv 2603.15202"
    summary = "The least (pending prefill + uncached prompt) x (batch size + 1), with the hotspot detector."
    params = (
        Param("detector", True, "take the holders of a prefix out when they are too few for it"),
        Param("window_s", 60.0, "seconds of arrivals that the detector looks at", low=1),
    )

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        self._detector = self.values.flag("detector")
        self.hotspots = Hotspots(int(self.values.number("window_s") * 1e6))
        self._noted: tuple[RequestId, BlockKey | None, int] = (-1, None, 0)
        """Class and run of the request that was chosen for last, until it is assigned."""

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:
        """Pick the least product, among those who do not hold the prefix if it is a hotspot."""
        slots = fleet.candidates
        scores = products(request, match, fleet)
        if self._detector:
            others = self._others(request, match, slots, scores, now)
            if others:
                slot = least(slots, others, self.last, fleet.batch_size, fleet.kv_used)
                return Choice(slot, others, "lmetric: hotspot")
        return Choice(least(slots, scores, self.last, fleet.batch_size, fleet.kv_used), scores)

    def _others(
        self, request: Request, match: Match, slots: Sequence[int], scores: list[float], now: int
    ) -> list[float]:
        """Note the request's class; return the scores with its holders at inf if they are taken out."""
        if not match.blocks:
            self._noted = (request.rid, None, 0)
            return []
        hotspots, holders = self.hotspots, match.holders
        key = request.keys[match.blocks - 1]
        if not hotspots.violated(key, len(holders), len(slots), now):
            self._noted = (request.rid, key, 0)
            return []
        held, others = inf, scores.copy()
        for slot in holders:
            i = bisect_left(slots, slot)
            held = min(held, scores[i])
            others[i] = inf
        if hotspots.confirmed(key, len(holders)):
            self._noted = (request.rid, key, hotspots.confirmed_run())
            return others
        self._noted = (request.rid, key, hotspots.next_run(key, held < min(others)))
        return []

    def assigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:  # noqa: ARG002 - one interface
        """Count the arrival for its class."""
        self.last = slot
        if self._detector:
            rid, key, run = self._noted
            if rid != request.rid:
                key, run = None, 0
            self.hotspots.arrived(key, run, now)

    def tick(self, now: int) -> None:
        """Drop arrivals that left the detector's window."""
        self.hotspots.expire(now)

    def check(self) -> None:
        """Raise AssertionError if the detector's books are inconsistent."""
        self.hotspots.check()
