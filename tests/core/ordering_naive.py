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
    """Algorithm 1 of the paper for each scope, with the fleet's rules where a scope has many queues."""

    def __init__(
        self,
        quantum: int,
        costs: Costs,
        *,
        fleet: bool,
        skip: bool,
        debt_limit: int,
        ageing: int | None = None,
    ) -> None:
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

    def charge(self, number: int, client: str, units: int) -> None:
        key = self.key(number, client)
        self.q[key] = self.q.get(key, 0) - units

    def set_weight(self, client: str, weight: float) -> None:
        self.weights[client] = weight
        for key, q in self.q.items():
            if key[1] == client:
                self.q[key] = min(q, self.quantum(client))

    def queued(self, number: int) -> set[str]:
        scope = self.queues.values() if self.fleet else [self.queues[number]]
        return {client for queue in scope for client in queue.clients()}

    def head(self, number: int, fits: Fits) -> QueuedRequest | None:
        queue = self.queues[number]
        if not queue.items:
            return None
        items = sorted(queue.items, key=lambda item: (self.rank(queue, item), item.seq))
        while all(self.credit(number, client) <= 0 for client in self.queued(number)):
            for client in self.queued(number):
                if self.credit(number, client) <= 0:
                    self.charge(number, client, -self.quantum(client))
        positive = [item for item in items if self.credit(number, item.client) > 0]
        if positive:
            return choose(positive, fits, self.skip)
        return self.least_indebted(number, items, fits)

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
                self.charge(number, client, -(least - self.debt_limit // 2) * self.quantum(client))
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
            self.counters[self.key(number, item.client)] = max(self.counter(number, item.client), level)
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
