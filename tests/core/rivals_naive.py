"""k-LPM, PLAS, DRR and DualMap once more, as literally as possible: loops over everything, no books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from fairlead.core.model import Costs
from fairlead.core.ordering.base import Fits, QueuedRequest
from fairlead.core.routing.hash_ring import HashRing
from tests.core.ordering_naive import NaiveQueue, choose


class NaiveKLpm:
    """Algorithm 1 of arXiv 2502.04677: place 0 of k is the oldest's, the others go by match."""

    def __init__(self, k: int, *, skip: bool) -> None:
        self.k = k
        self.skip = skip
        self.served: dict[int, int] = {}

    def admitted(self, number: int) -> None:
        self.served[number] = self.served.get(number, 0) + 1

    def head(self, number: int, queue: NaiveQueue, fits: Fits) -> QueuedRequest | None:
        items = sorted(queue.items, key=lambda item: item.seq)
        if self.served.get(number, 0) % self.k:
            items.sort(key=lambda item: -queue.tokens(item))  # stable: ties stay by arrival
        return choose(items, fits, self.skip)


@dataclass
class NaiveCall:
    item: QueuedRequest
    level: int
    since: int
    service: int
    waited: int


@dataclass
class NaivePlas:
    """Levels by the service of a program's calls that ended; all promotions looked at anew each time."""

    quantum: int
    patience: int
    costs: Costs
    skip: bool
    calls: dict[int, list[NaiveCall]] = field(default_factory=dict)
    given: dict[int, int] = field(default_factory=dict)
    service: dict[tuple[str, str], int] = field(default_factory=dict)
    waited: dict[tuple[str, str], int] = field(default_factory=dict)

    def level(self, service: int) -> int:
        for level in range(7):
            if service < self.quantum * 4**level:
                return level
        return 7

    def push(self, number: int, item: QueuedRequest) -> None:
        program = item.client, item.request.session
        service = self.service.get(program, 0) if item.request.session else 0
        call = NaiveCall(
            item, self.level(service), self.given.get(number, 0), service, self.waited.get(program, 0)
        )
        self.calls.setdefault(number, []).append(call)

    def discard(self, number: int, item: QueuedRequest) -> None:
        (call,) = [call for call in self.calls[number] if call.item is item]
        self.calls[number].remove(call)
        if item.request.session:
            program = item.client, item.request.session
            wait = self.given.get(number, 0) - call.since
            self.waited[program] = self.waited.get(program, 0) + wait

    def charge(self, number: int, units: int) -> None:
        self.given[number] = self.given.get(number, 0) + max(0, units)

    def ended(self, item: QueuedRequest, units: int) -> None:
        if item.request.session:
            program = item.client, item.request.session
            self.service[program] = self.service.get(program, 0) + units

    def head(self, number: int, fits: Fits) -> QueuedRequest | None:
        calls = self.calls.get(number, [])
        for call in calls:
            wait = call.waited + self.given.get(number, 0) - call.since
            if wait >= self.patience * call.service:
                call.level = 0
        ordered = sorted(calls, key=lambda call: (call.level, call.item.seq))
        return choose([call.item for call in ordered], fits, self.skip)


class NaiveDrr:
    """Dynamo's description of its scheduler, one worker: a list as the ring, and loops over it."""

    def __init__(self, quantum: int, *, skip: bool) -> None:
        self.base = quantum
        self.skip = skip
        self.weights: dict[str, float] = {}
        self.ring: list[str] = []
        self.deficit: dict[str, int] = {}
        self.items: list[tuple[QueuedRequest, int]] = []

    def quantum(self, client: str) -> int:
        return max(1, round(self.base * self.weights.get(client, 1.0)))

    def push(self, item: QueuedRequest, cost: int) -> None:
        self.items.append((item, cost))
        if item.client not in self.ring:
            self.ring.append(item.client)
            self.deficit[item.client] = 0

    def discard(self, item: QueuedRequest) -> int:
        cost = next(cost for other, cost in self.items if other is item)
        self.items.remove((item, cost))
        if all(other.client != item.client for other, _ in self.items):
            self.ring.remove(item.client)
            del self.deficit[item.client]
        return cost

    def oldest(self, client: str) -> tuple[QueuedRequest, int]:
        return min(((i, c) for i, c in self.items if i.client == client), key=lambda entry: entry[0].seq)

    def rotate(self) -> None:
        self.ring.append(self.ring.pop(0))

    def admitted(self, client: str, cost: int) -> None:
        if client in self.ring:
            self.deficit[client] -= cost
            if self.deficit[client] < self.oldest(client)[1]:
                self.ring.append(self.ring.pop(self.ring.index(client)))

    def head(self, fits: Fits) -> QueuedRequest | None:
        open_ = [c for c in self.ring if not self.skip or fits(self.oldest(c)[0])]
        for _ in range(len(self.ring)):
            client = self.ring[0]
            if client in open_:
                item, cost = self.oldest(client)
                if self.deficit[client] < cost:
                    self.deficit[client] += self.quantum(client)
                if self.deficit[client] >= cost:
                    return item if fits(item) else None
            self.rotate()
        if not open_:
            return None
        needed = []
        for client in open_:
            rounds = 0
            while self.deficit[client] + rounds * self.quantum(client) < self.oldest(client)[1]:
                rounds += 1
            needed.append(rounds)
        for client in open_:
            self.deficit[client] += min(needed) * self.quantum(client)
        while self.ring[0] not in open_ or self.deficit[self.ring[0]] < self.oldest(self.ring[0])[1]:
            self.rotate()
        item, _ = self.oldest(self.ring[0])
        return item if fits(item) else None


class NaiveDualMap:
    """The rule with all arrivals in a list that is counted anew for each request, and rings made anew."""

    def __init__(
        self, slo_us: float, prefill_us: float, blocks: int, window_us: int, seqs: int, pool: int
    ) -> None:
        self.seqs = seqs
        self.pool = pool
        self.slo_us = slo_us
        self.prefill_us = prefill_us
        self.lengths = [blocks * 2**n for n in range(8)]
        self.window_us = window_us
        self.arrivals: list[tuple[int, Sequence[int]]] = []

    def prefix(self, keys: Sequence[int], workers: int, now: int) -> int | None:
        recent = [keys, *(other for at, other in self.arrivals if at > now - self.window_us)]
        prefixes = [keys[length - 1] for length in self.lengths if length <= len(keys)]
        for length, prefix in zip(self.lengths, prefixes, strict=False):
            sharing = sum(len(other) >= length and other[length - 1] == prefix for other in recent)
            if sharing / len(recent) <= 2 / workers:
                return prefix
        return prefixes[-1] if prefixes else None

    def owner(self, ids: Sequence[str], salt: bytes, point: int, slots: Sequence[int]) -> int:
        ring = HashRing(128, salt)
        ring.update([name if slot in slots else "" for slot, name in enumerate(ids)])
        return ring.owner(point)

    def route(
        self, keys: Sequence[int], prompt: int, ids: Sequence[str], slots: Sequence[int], now: int,
        cached: Sequence[int], pending: Sequence[int], batch: Sequence[int], used: Sequence[int], last: int,
    ) -> int:  # fmt: skip
        def ttft(slot: int) -> float:
            if batch[slot] >= self.seqs or (used[slot] and used[slot] + prompt - cached[slot] > self.pool):
                return float("inf")
            return (pending[slot] + prompt - cached[slot]) * self.prefill_us

        def turn(slot: int) -> int:
            return (slot - last - 1) % len(ids)

        fastest = min(slots, key=lambda s: (ttft(s), batch[s], turn(s)))
        prefix = self.prefix(keys, len(slots), now)
        if prefix is None:
            return fastest
        if len(slots) == 1:
            return slots[0]
        digest = blake2b(prefix.to_bytes(8), digest_size=16).digest()
        first = self.owner(ids, b"dualmap 1", int.from_bytes(digest[:8]), slots)
        rest = [slot for slot in slots if slot != first]
        two = first, self.owner(ids, b"dualmap 2", int.from_bytes(digest[8:]), rest)
        warm = max(two, key=lambda slot: cached[slot])
        if cached[two[0]] != cached[two[1]] and ttft(warm) <= self.slo_us:
            return warm
        fast = min(two, key=ttft)
        return fast if ttft(fast) <= self.slo_us else fastest
