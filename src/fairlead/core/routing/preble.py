"""Preble's E2: exploit a long cached prefix, else explore by predicted load."""

from collections.abc import Sequence
from math import inf

from fairlead.core.model import BlockKey, ClientId, Request, RequestId
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.loadwindow import LoadWindow
from fairlead.core.routing.scan import columns, least

MAX_PREFIXES = 4_096
"""Prefixes whose queueing is remembered; beyond it the one that was asked for longest ago goes."""


class _Queueing:
    """Mean predicted wait of one prefix's requests, in this half of a window and in the last."""

    __slots__ = ("count", "half", "last_mean", "total")

    def __init__(self, half: int) -> None:
        self.half = half
        self.total = 0.0
        self.count = 0
        self.last_mean = -1.0
        """-1 when the last half saw no request."""

    def move_to(self, half: int) -> None:
        """Start a new half of the window if it is time."""
        if half != self.half:
            recent = half == self.half + 1 and self.count
            self.last_mean = self.total / self.count if recent else -1.0
            self.half, self.total, self.count = half, 0.0, 0

    def add(self, wait: float) -> None:
        """Book one request's predicted wait."""
        self.total += wait
        self.count += 1

    def grew(self, ratio: float) -> bool:
        """Return whether the mean is ``ratio`` times that of the last half, or more."""
        return self.last_mean >= 0 and self.total > 0 and self.total >= ratio * self.last_mean * self.count


class Preble(RoutingBase):
    """E2 over a sliding window, with its rebalancing and replication.

    Exploit when more of the prompt is cached than not: the cheapest of the longest-match holders.
    Else explore: the cheapest of all. The cost of a worker is L + M + P, in microseconds:
    L  predicted time of what it was given in the window: prefill of the uncached tokens, and
       requests x mean output tokens x ``decode_us``;
    M  prefill time of the cached tokens that must be evicted, times the worker's hit rate;
    P  prefill time of the tokens of this request that are not cached there.
    Rebalance: a request that would exploit the most loaded worker goes to the least loaded, while
    the largest L is at least ``rebalance_ratio`` times the smallest. Replicate: a request whose
    prefix has one holder goes to the cheapest other worker, once the predicted wait of the prefix's
    requests has doubled from one half of the window to the next; the wait starts anew.

    Times are linear in tokens *(decision: the original fits a curve to each GPU)*: a prefill takes
    ``prefill_base_us`` + ``prefill_us`` a token, and a decoded token ``decode_us``, the share of one
    request in a step of its batch. The wait is the worker's pending prefill at ``prefill_us``, where
    the original uses TTFT. A prefix is named by the last block of the longest match.
    Ties: lower batch size, then fewer KV tokens held, then rotation.
    """

    name = "preble"
    source = "[PREBLE] arXiv 2407.00023, E2; window and rebalancing start as in its code"
    summary = "Cheapest holder if most of the prompt is cached, else least load + eviction + prefill time."
    params = (
        Param("window_s", 180.0, "seconds of assignments that count as load", low=1),
        Param("prefill_us", 35.0, "microseconds a prefill token", low=0),
        Param("prefill_base_us", 5_000.0, "microseconds a prefill, whatever its length", low=0),
        Param("decode_us", 300.0, "microseconds an output token, as one request's share of a step", low=0),
        Param("output_tokens", 45.0, "output tokens of a request before any has been seen", low=0),
        Param("rebalance_ratio", 1.5, "largest load over the smallest from which load is moved", low=1),
        Param("rebalance_after", 50, "requests in the window before load is moved", low=0),
        Param("replicate_ratio", 2.0, "growth of the wait from which a prefix gets another holder", low=1),
    )

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        number = self.values.number
        window_us = int(number("window_s") * 1e6)
        self._half_us = max(1, window_us // 2)
        self.window = LoadWindow(window_us)
        self._prefill, self._base = number("prefill_us"), number("prefill_base_us")
        self._decode, self._prior_output = number("decode_us"), number("output_tokens")
        self._rebalance_ratio = number("rebalance_ratio")
        self._rebalance_after = self.values.integer("rebalance_after")
        self._replicate_ratio = number("replicate_ratio")
        self._queueing: dict[BlockKey, _Queueing] = {}
        """In order of use, oldest first."""
        self._noted: tuple[RequestId, BlockKey, float] | None = None
        """Prefix and predicted wait of a request that exploits (-1: replicates), until assigned."""

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:
        """Exploit, rebalance, replicate or explore."""
        slots = fleet.candidates
        self.window.advance(now)
        self.window.grow(len(fleet.ids))
        self._noted = None
        loads = self._loads(fleet)
        if 2 * match.best <= request.prompt_tokens:
            scores = self._costs(request, match, fleet, slots, loads)
            return Choice(self._cheapest(slots, scores, fleet), scores, "preble: explore")
        return self._exploit(request, match, fleet, loads, now)

    def _exploit(self, request: Request, match: Match, fleet: Fleet, loads: list[float], now: int) -> Choice:
        slots, holders = fleet.candidates, match.holders
        at = {s: i for i, s in enumerate(slots)}
        costs = self._costs(request, match, fleet, holders, [loads[at[s]] for s in holders])
        slot = self._cheapest(holders, costs, fleet)
        low, high = min(loads), max(loads)
        if (
            high > low
            and high >= self._rebalance_ratio * low
            and self.window.total_requests >= self._rebalance_after
            and loads[at[slot]] == high
        ):
            return Choice(self._cheapest(slots, loads, fleet), loads, "preble: rebalance")
        if match.blocks:
            key = request.keys[match.blocks - 1]
            if len(holders) == 1 and len(slots) > 1 and self._grew(key, now):
                self._noted = (request.rid, key, -1.0)
                scores = self._costs(request, match, fleet, slots, loads)
                scores[at[slot]] = inf
                return Choice(self._cheapest(slots, scores, fleet), scores, "preble: replicate")
            self._noted = (request.rid, key, self._prefill * fleet.pending_prefill_tokens[slot])
        return Choice(slot, branch="preble: exploit")

    def _cheapest(self, slots: Sequence[int], costs: Sequence[float], fleet: Fleet) -> int:
        return least(slots, costs, self.last, fleet.batch_size, fleet.kv_used)

    def _loads(self, fleet: Fleet) -> list[float]:
        """L of each candidate, microseconds."""
        window = self.window
        prefill, requests = columns(fleet, fleet.candidates, window.prefill_us, window.requests)
        total = window.total_requests
        mean = window.output / total if total and window.output > 0 else self._prior_output
        decode = mean * self._decode
        return [p + n * decode for p, n in zip(prefill, requests, strict=False)]

    def _costs(
        self, request: Request, match: Match, fleet: Fleet, slots: Sequence[int], loads: Sequence[float]
    ) -> list[float]:
        """L + M + P of ``slots``, microseconds; ``loads`` is their L."""
        prompt, prefill, base = request.prompt_tokens, self._prefill, self._base
        tokens, pools, cached, hits = columns(
            fleet, slots, match.tokens, fleet.kv_tokens, fleet.kv_cached, fleet.hit_rate
        )
        return [
            load + base + prefill * (e if (e := prompt - t) <= k - c else e + h * (e - k + c if c < k else e))
            for load, t, k, c, h in zip(loads, tokens, pools, cached, hits, strict=False)
        ]

    def _grew(self, key: BlockKey, now: int) -> bool:
        queueing = self._queueing.get(key)
        if queueing is None:
            return False
        queueing.move_to(now // self._half_us)
        return queueing.grew(self._replicate_ratio)

    def assigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:
        """Book the predicted prefill on the slot, and the wait for the prefix."""
        self.last = slot
        self.window.advance(now)
        self.window.add(slot, round(self._base + self._prefill * extend_tokens), 1)
        if self._noted is None or self._noted[0] != request.rid:
            return
        _, key, wait = self._noted
        self._noted = None
        queueing = self._queueing.pop(key, None)
        if wait < 0:
            return
        queueing = queueing or _Queueing(now // self._half_us)
        queueing.move_to(now // self._half_us)
        queueing.add(wait)
        self._queueing[key] = queueing
        if len(self._queueing) > MAX_PREFIXES:
            del self._queueing[next(iter(self._queueing))]

    def unassigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:  # noqa: ARG002 - one interface
        """Take the predicted prefill back."""
        self.window.advance(now)
        self.window.take_back(slot, round(self._base + self._prefill * extend_tokens), 1)

    def corrected(self, client: ClientId, slot: int, prompt_tokens: int, extend_tokens: int) -> None:  # noqa: ARG002 - one interface
        """Book the difference of prefill."""
        change = round(self._prefill * extend_tokens)
        if change > 0:
            self.window.add(slot, change, 0)
        else:
            self.window.take_back(slot, -change, 0)

    def decoded(self, client: ClientId, slot: int, tokens: int) -> None:  # noqa: ARG002 - one interface
        """Count output tokens for the mean."""
        self.window.decoded(tokens)

    def slot_reset(self, slot: int) -> None:
        """Forget the load of the slot."""
        self.window.reset(slot)

    def tick(self, now: int) -> None:
        """Let go of load that left the window."""
        self.window.advance(now)

    def check(self) -> None:
        """Raise AssertionError if the books are inconsistent."""
        self.window.check()
        assert len(self._queueing) <= MAX_PREFIXES
