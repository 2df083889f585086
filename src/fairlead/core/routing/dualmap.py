"""DualMap: two hashes of the prompt's prefix name two workers; the warmer takes it while it is fast."""

from collections import deque
from hashlib import blake2b
from math import inf

from fairlead.core.model import BlockKey, Request, RequestId
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.hash_ring import HashRing
from fairlead.core.routing.scan import least

LENGTHS = 8
"""Lengths of a prefix that are looked at: ``prefix_blocks``, doubled up to seven times."""
MAX_ARRIVALS = 4_096
"""The window holds at most this many arrivals: shares are as good, and memory is bounded."""


class Prefixes:
    """How often each prefix was asked for in a window of time, at a few lengths of it."""

    def __init__(self, blocks: int, window_us: int) -> None:
        self._lengths = [blocks << n for n in range(LENGTHS)]
        self._window_us = window_us
        self._arrivals: deque[tuple[int, tuple[BlockKey, ...]]] = deque()
        self._counts: dict[BlockKey, int] = {}

    def of(self, request: Request) -> tuple[BlockKey, ...]:
        """Return the keys of the prompt's prefixes, shortest first; none for a prompt that is too short."""
        keys = request.keys
        return tuple(keys[length - 1] for length in self._lengths if length <= len(keys))

    def spread(self, prefixes: tuple[BlockKey, ...], workers: int, now: int) -> BlockKey:
        """Return the shortest prefix that at most 2 of ``workers`` equal shares of the arrivals ask for.

        The arrival in question counts. If even the longest is asked for more often, that one.
        """
        self.expire(now)
        most = 2 * (len(self._arrivals) + 1)
        for prefix in prefixes:
            if (self._counts.get(prefix, 0) + 1) * workers <= most:
                return prefix
        return prefixes[-1]

    def arrived(self, prefixes: tuple[BlockKey, ...], now: int) -> None:
        """Count an arrival."""
        self._arrivals.append((now, prefixes))
        for prefix in prefixes:
            self._counts[prefix] = self._counts.get(prefix, 0) + 1
        if len(self._arrivals) > MAX_ARRIVALS:
            self._drop_oldest()

    def expire(self, now: int) -> None:
        """Drop the arrivals that left the window."""
        arrivals, oldest = self._arrivals, now - self._window_us
        while arrivals and arrivals[0][0] <= oldest:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        for prefix in self._arrivals.popleft()[1]:
            count = self._counts[prefix] - 1
            if count:
                self._counts[prefix] = count
            else:
                del self._counts[prefix]

    def check(self) -> None:
        """Raise AssertionError unless counts are those of the window, and bounded."""
        assert len(self._arrivals) <= MAX_ARRIVALS
        assert sum(self._counts.values()) == sum(len(prefixes) for _, prefixes in self._arrivals)
        assert all(count > 0 for count in self._counts.values())


class DualMap(RoutingBase):
    """Of two workers, named by two hash rings, the one with the longer match; the less loaded if it is slow.

    Expected TTFT is (pending prefill + uncached prompt) * ``prefill_us``, and without end where the
    request would wait for another to end: the batch is full, or the KV pool. While that of the warmer is
    within ``slo_ms``, it takes the request; equal matches go by expected TTFT. Else the one of the two
    with the least expected TTFT takes it, if that is within ``slo_ms``; else the one of the whole fleet.

    What is hashed is the shortest prefix, of ``prefix_blocks`` times 1, 2, 4, ... 128 blocks, that few
    enough requests share: at most 2 / N of the arrivals in ``window_s``, for N candidates. So requests
    that share a prefix meet, and a prefix that two workers could not serve is told apart by what follows
    it. Prompts of fewer blocks go to the least expected TTFT of the fleet.

    Known from the paper's abstract: the two hashes and rings, affinity first, load once TTFT breaks its
    objective, and moving requests off hot spots. Decisions of ours: how TTFT is estimated, its objective,
    and the fleet as the last resort, in place of moving requests that wait. Which prefix is hashed is as
    in a port of the rule to NVIDIA Dynamo, but for a window of time instead of a number of requests.
    """

    name = "dualmap"
    source = "arXiv 2602.06502 (DualMap); estimate, objective and last resort are ours"
    summary = "The warmer of two workers that the prefix hashes to; if that is too slow the faster, then any."
    params = (
        Param("slo_ms", 2_000.0, "expected TTFT from which load goes before affinity, milliseconds", low=0),
        Param("prefill_us", 35.0, "microseconds a prefill token, to expect TTFT by", low=0),
        Param("prefix_blocks", 4, "blocks of the shortest prefix that is hashed", low=1, high=4096),
        Param("window_s", 60.0, "seconds of arrivals by which a prefix is shared by too many", low=1),
        Param("points", 128, "points a worker has on each of the two rings", low=1, high=4096),
    )

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        points = self.values.integer("points")
        self._rings = HashRing(points, b"dualmap 1"), HashRing(points, b"dualmap 2")
        per_token = self.values.number("prefill_us")
        # The objective in tokens, so that a decision need not multiply.
        self._budget = self.values.number("slo_ms") * 1_000 / per_token if per_token else float("inf")
        window_us = int(self.values.number("window_s") * 1e6)
        self.prefixes = Prefixes(self.values.integer("prefix_blocks"), window_us)
        self._noted: tuple[RequestId, tuple[BlockKey, ...]] = (-1, ())
        """The prefixes of the request that was chosen for last, until it is assigned."""

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:
        """Pick one of the prefix's two workers, or the fastest of all."""
        slots = fleet.candidates
        prefixes = self.prefixes.of(request)
        self._noted = (request.rid, prefixes)
        if not prefixes:
            return self._fastest(request, match, fleet, "dualmap: short prompt")
        if len(slots) == 1:
            return Choice(slots[0], branch="dualmap: one worker")
        first, second = self._pair(self.prefixes.spread(prefixes, len(slots), now), fleet)
        cached, mine = match.tokens, self._tokens(first, request, match, fleet)
        if cached[first] > cached[second] and mine <= self._budget:
            return Choice(first, branch="dualmap: affinity")
        other = self._tokens(second, request, match, fleet)
        if cached[second] > cached[first] and other <= self._budget:
            return Choice(second, branch="dualmap: affinity")
        fast, tokens = (first, mine) if mine <= other else (second, other)
        if tokens <= self._budget:
            return Choice(fast, branch="dualmap: less loaded of two")
        return self._fastest(request, match, fleet, "dualmap: least loaded of all")

    def _tokens(self, slot: int, request: Request, match: Match, fleet: Fleet) -> float:
        """Return what has to be computed on a worker before the first token; inf if there is no place."""
        extend = request.prompt_tokens - match.tokens[slot]
        if fleet.batch_size[slot] >= fleet.max_num_seqs[slot]:
            return inf
        if fleet.kv_used[slot] and fleet.kv_used[slot] + extend > fleet.kv_tokens[slot]:
            return inf
        return fleet.pending_prefill_tokens[slot] + extend

    def _pair(self, prefix: BlockKey, fleet: Fleet) -> tuple[int, int]:
        """Return the two candidates that a prefix hashes to. There are at least two."""
        digest = blake2b(prefix.to_bytes(8), digest_size=16).digest()
        one, two = self._rings
        one.update(fleet.ids)
        two.update(fleet.ids)
        eligible = set(fleet.candidates)
        first = one.first_of(int.from_bytes(digest[:8]), eligible)
        eligible.discard(first)
        return first, two.first_of(int.from_bytes(digest[8:]), eligible)

    def _fastest(self, request: Request, match: Match, fleet: Fleet, branch: str) -> Choice:
        """Pick the least expected TTFT of all candidates."""
        slots = fleet.candidates
        scores = [self._tokens(slot, request, match, fleet) for slot in slots]
        return Choice(least(slots, scores, self.last, fleet.batch_size), scores, branch)

    def assigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:  # noqa: ARG002 - one interface
        """Count the arrival for its prefixes."""
        self.last = slot
        rid, prefixes = self._noted
        self.prefixes.arrived(prefixes if rid == request.rid else self.prefixes.of(request), now)

    def tick(self, now: int) -> None:
        """Drop arrivals that left the window."""
        self.prefixes.expire(now)

    def check(self) -> None:
        """Raise AssertionError if the window's books are inconsistent."""
        self.prefixes.check()
