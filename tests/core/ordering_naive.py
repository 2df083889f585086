"""The policies once more, as literally as possible: loops over everything, a fresh match each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from fairlead.core.model import Costs
from fairlead.core.ordering.base import Fits, QueuedRequest

Cached = Callable[[Sequence[int]], int]


class NaiveQueue:
    def __init__(self, cached: Cached) -> None:
        self.cached = cached
        self.items: list[QueuedRequest] = []
        self.born: dict[str, int] = {}

    def tokens(self, item: QueuedRequest) -> int:
        return item.request.matched_tokens(self.cached(item.keys))

    def clients(self) -> set[str]:
        return {item.client for item in self.items}

    def push(self, item: QueuedRequest) -> None:
        if item.client not in self.clients():
            self.born[item.client] = item.seq
        self.items.append(item)

    def discard(self, item: QueuedRequest) -> None:
        self.items.remove(item)


def choose(items: list[QueuedRequest], fits: Fits, skip: bool) -> QueuedRequest | None:
    if skip:
        return next(filter(fits, items), None)
    return items[0] if items and fits(items[0]) else None


class NaiveLpm:
    def __init__(self, *, skip: bool = False) -> None:
        self.skip = skip

    def head(self, queue: NaiveQueue, fits: Fits) -> QueuedRequest | None:
        items = sorted(queue.items, key=lambda item: (-queue.tokens(item), item.seq))
        return choose(items, fits, self.skip)


class NaiveDlpm:
    """Algorithm 1 of the paper for each scope, with the fleet's rules where a scope has many queues.

    ``light``: rounds for absent clients too, and newly active clients first.
    """

    def __init__(
        self,
        quantum: int,
        costs: Costs,
        *,
        fleet: bool,
        skip: bool,
        debt_limit: int,
        ageing: int | None = None,
        light: bool = False,
    ) -> None:
        self.light = light
        self.fresh: set[tuple[int, str]] = set()
        self.lead: dict[int, int] = {}
        self.pace: dict[int, int] = {}
        self.running: dict[tuple[int, str], int] = {}
        self.ageing = ageing
        self.base = quantum
        self.costs = costs
        self.fleet = fleet
        self.skip = skip
        self.debt_limit = debt_limit
        self.queues: dict[int, NaiveQueue] = {}
        self.weights: dict[str, float] = {}
        self.q: dict[tuple[int, str], int] = {}

    def key(self, number: int, client: str) -> tuple[int, str]:
        return (0 if self.fleet else number, client)

    def quantum(self, client: str) -> int:
        return max(1, round(self.base * self.weights.get(client, 1.0)))

    def credit(self, number: int, client: str) -> int:
        return self.q.get(self.key(number, client), 0)

    def open(self, number: int, client: str) -> tuple[int, str]:
        key = self.key(number, client)
        self.q.setdefault(key, self.quantum(client) if self.light else 0)
        return key

    def charge(self, number: int, client: str, units: int) -> None:
        key = self.open(number, client)
        waiting = {self.key(number, c) for c in self.queued(number)}
        if key not in self.fresh or waiting - self.fresh:
            lead = self.lead.get(key[0], 0) + (units if key in self.fresh else -units)
            self.lead[key[0]] = min(max(lead, 0), self.base)
        active = {c for c in self.queued(number) if self.key(number, c) in self.q}
        active |= {c for (scope, c), n in self.running.items() if scope == key[0] and n}
        quanta = sum(map(self.quantum, active)) or self.quantum(client)
        pace = self.pace.get(key[0], 0) + units * 2**32 // quanta
        self.pace[key[0]] = min(max(pace, 0), 2**32)
        self.q[key] -= units
        if self.q[key] <= 0:
            self.fresh.discard(key)

    def admitted(self, number: int, client: str) -> None:
        key = self.open(number, client)
        self.running[key] = self.running.get(key, 0) + 1

    def released(self, number: int, client: str) -> None:
        self.running[self.key(number, client)] -= 1

    def push(self, number: int, item: QueuedRequest) -> None:
        queued = self.queued(number)
        if self.light and queued and item.client not in queued:
            self.pass_rounds(number)
        key = self.open(number, item.client)
        if item.client not in queued:
            self.fresh.discard(key)
            if self.light and self.q[key] > 0:
                self.fresh.add(key)
        self.queues[number].push(item)

    def discard(self, number: int, item: QueuedRequest) -> None:
        self.queues[number].discard(item)
        if self.light and item.client not in self.queued(number):
            key = self.key(number, item.client)
            self.q[key] = min(self.q[key], 2 * self.quantum(item.client))

    def set_weight(self, client: str, weight: float) -> None:
        self.weights[client] = weight
        for key, q in self.q.items():
            if key[1] == client:
                self.q[key] = min(q, self.quantum(client) * (2 if self.light else 1))

    def queued(self, number: int) -> set[str]:
        scope = self.queues.values() if self.fleet else [self.queues[number]]
        return {client for queue in scope for client in queue.clients()}

    def head(self, number: int, fits: Fits) -> QueuedRequest | None:
        queue = self.queues[number]
        if not queue.items:
            return None
        items = sorted(queue.items, key=lambda item: (self.rank(queue, item), item.seq))
        self.pass_rounds(number)
        positive = [item for item in items if self.credit(number, item.client) > 0]
        if positive:
            others_first = self.lead.get(self.key(number, "")[0], 0) >= self.base

            def late(item: QueuedRequest) -> tuple[bool, int]:
                newly = self.key(number, item.client) in self.fresh
                quanta = -(-self.credit(number, item.client) // self.quantum(item.client))  # rounded up
                return newly is others_first, 0 if newly or not self.light else -quanta

            return choose(sorted(positive, key=late), fits, self.skip)
        return self.least_indebted(number, items, fits)

    def pass_rounds(self, number: int) -> None:
        queued = self.queued(number)
        credited = {client for client in queued if self.credit(number, client) > 0}
        if not credited:
            while all(self.credit(number, client) <= 0 for client in queued):
                self.refill(number)
            return
        held_up = all(self.key(number, client) in self.fresh for client in credited)
        paced = self.pace.get(self.key(number, "")[0], 0) >= 2**32
        if self.light and credited != queued and held_up and paced:
            self.refill(number)

    def refill(self, number: int) -> None:
        queued, scope = self.queued(number), self.key(number, "")[0]
        self.fresh = {key for key in self.fresh if key[0] != scope}
        self.pace[scope] = 0
        for key, q in self.q.items():
            quantum = self.quantum(key[1])
            if key[0] == scope and key[1] in queued:
                self.q[key] += quantum
            elif key[0] == scope and self.light:
                self.q[key] = max(q, min(q + quantum, 2 * quantum))

    def rank(self, queue: NaiveQueue, item: QueuedRequest) -> tuple[int, int]:
        if self.ageing is None:
            return (-queue.tokens(item), 0)
        request = item.request
        size = request.prompt_tokens + request.arrived_us * self.ageing // 1_000_000
        return (-queue.tokens(item), size)

    def least_indebted(self, number: int, items: list[QueuedRequest], fits: Fits) -> QueuedRequest | None:
        clients = {item.client for item in items}

        def owed(client: str) -> int:
            return -self.credit(number, client) // self.quantum(client)  # whole quanta

        least = min(map(owed, clients))
        if least >= self.debt_limit:
            for client in clients:
                self.q[self.key(number, client)] += (least - self.debt_limit // 2) * self.quantum(client)
        return choose(sorted(items, key=lambda item: owed(item.client)), fits, self.skip)


class NaiveVtc:
    """Algorithm 2 of the VTC paper for each scope, in exact fractions."""

    def __init__(self, costs: Costs, *, fleet: bool, skip: bool) -> None:
        self.costs = costs
        self.fleet = fleet
        self.skip = skip
        self.queues: dict[int, NaiveQueue] = {}
        self.weights: dict[str, float] = {}
        self.counters: dict[tuple[int, str], Fraction] = {}
        self.last_left: dict[int, str] = {}

    def key(self, number: int, client: str) -> tuple[int, str]:
        return (0 if self.fleet else number, client)

    def counter(self, number: int, client: str) -> Fraction:
        return self.counters.get(self.key(number, client), Fraction(0))

    def queued(self, number: int) -> set[str]:
        scope = self.queues.values() if self.fleet else [self.queues[number]]
        return {client for queue in scope for client in queue.clients()}

    def charge(self, number: int, client: str, units: int) -> None:
        weight = Fraction(self.weights.get(client, 1.0))
        self.counters[self.key(number, client)] = self.counter(number, client) + units / weight

    def push(self, number: int, item: QueuedRequest) -> None:
        queued = self.queued(number)
        if item.client not in queued:
            last = self.last_left.get(self.key(number, "")[0])
            others = queued or ({last} if last else set())
            level = min((self.counter(number, client) for client in others), default=Fraction(0))
            lifted = bool(queued) and self.counter(number, item.client) < level
            self.counters[self.key(number, item.client)] = max(self.counter(number, item.client), level)
            self.queues[number].push(item)
            if lifted:
                self.queues[number].born[item.client] -= 1_000_000  # before whom it ties with now
            return
        self.queues[number].push(item)

    def discard(self, number: int, item: QueuedRequest) -> None:
        self.queues[number].discard(item)
        if item.client not in self.queued(number):
            self.last_left[self.key(number, "")[0]] = item.client

    def head(self, number: int, fits: Fits) -> QueuedRequest | None:
        queue = self.queues[number]
        clients = sorted(queue.clients(), key=lambda c: (self.counter(number, c), queue.born[c]))
        items = [i for c in clients for i in sorted(queue.items, key=lambda i: i.seq) if i.client == c]
        return choose(items, fits, self.skip)
