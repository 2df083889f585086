"""Every policy against a literal version of itself: same picks, same credit, step for step."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.model import Costs, Request
from fairlead.core.ordering import Ordering, OrderingContext, make_ordering
from fairlead.core.ordering.base import QueuedRequest
from tests.core.ordering_naive import NaiveDlpm, NaiveLpm, NaiveQueue, NaiveVtc

CLIENTS = "abcde"
QUEUES = (0, 1, 2)
BLOCK = 4
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
PARAMS_DLPM = [
    {
        "scope": scope,
        "on_no_fit": on_no_fit,
        "quantum": quantum,
        "debt_limit": limit,
        "ties": ties,
        "ageing": ageing,
        "light": light,
    }
    for light in (True, False)
    for scope, quantum, limit in (("worker", 7, 32), ("fleet", 1, 4), ("fleet", 20, 2), ("fleet", 40, 32))
    for on_no_fit in ("stop", "skip")
    for ties, ageing in (("arrival", 200), ("short", 3))
]
OPS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2**20)), min_size=20, max_size=150)


class Cache:
    """One worker's cached keys: closed under prefixes, evicted leaves first."""

    def __init__(self) -> None:
        self.keys: set[int] = set()

    def matched(self, keys: Sequence[int]) -> int:
        return next((n for n, key in enumerate(keys) if key not in self.keys), len(keys))

    def store(self, keys: Sequence[int], count: int) -> list[int]:
        new = [key for key in keys[:count] if key not in self.keys]
        self.keys.update(new)
        return new[:1] if count % 2 else new  # the first of a run says as much as all of it

    def evict(self, key: int) -> list[int]:
        """Evict ``key`` with all that continues it: a key's digits are its path."""
        gone = [other for other in sorted(self.keys) if str(other).startswith(str(key))]
        self.keys.difference_update(gone)
        return gone


def prompt(dice: int) -> tuple[int, ...]:
    """Return a chain of up to four keys in a tree with three branches a node."""
    digits = [1 + (dice // 3**n) % 3 for n in range(4)]
    return tuple(int("".join(map(str, digits[: n + 1]))) for n in range(dice // 81 % 5))


class World:
    """One history, told to a policy and, by subclasses, to its naive version."""

    def __init__(self, ordering: Ordering, costs: Costs) -> None:
        self.ordering = ordering
        self.costs = costs
        self.caches = [Cache() for _ in QUEUES]
        self.queues = [ordering.make_queue(n, self.caches[n].matched) for n in QUEUES]
        self.seq = 0
        self.items: list[tuple[int, QueuedRequest]] = []
        self.gone: list[tuple[int, QueuedRequest]] = []
        self.running: list[tuple[int, str]] = []

    def run(self, ops: list[tuple[int, int]]) -> None:
        for op, dice in ops:
            number = dice % len(QUEUES)
            client = CLIENTS[dice // 3 % len(CLIENTS)]
            if op < 35:
                self.push(number, client, dice // 15)
            elif op < 60:
                self.admit(number, dice // 3)
            elif op < 68:
                self.ordering.decoded(number, client, tokens := dice // 15 % 12 - 1)
                self.charged(number, client, self.costs.output * tokens)
            elif op < 73:
                change = dice // 15 % 60 - 30
                self.ordering.corrected(number, client, change, change)
                self.charged(number, client, self.costs.extend * change)
            elif op < 75:
                weight = WEIGHTS[dice // 15 % len(WEIGHTS)]
                self.ordering.set_weight(client, weight)
                self.weighted(client, weight)
            elif op < 80 and self.items:
                self.take(*self.items[dice % len(self.items)])
            elif op < 85 and self.running:
                number, client = self.running.pop(dice % len(self.running))
                self.ordering.released(number, client)
                self.released(number, client)
            elif op < 88 and self.gone:
                number, item = self.gone.pop(dice % len(self.gone))
                self.add(number, QueuedRequest(item.request, item.seq))
            elif op < 94:
                keys = prompt(dice // 3)
                self.queues[number].cache_stored(self.caches[number].store(keys, 1 + dice % 4))
            elif self.caches[number].keys:
                keys = sorted(self.caches[number].keys)
                self.queues[number].cache_evicted(self.caches[number].evict(keys[dice % len(keys)]))
            self.compare()

    def push(self, number: int, client: str, dice: int) -> None:
        keys = prompt(dice)
        # An arrival now and then: a second makes up for 3 tokens where requests age.
        arrived = self.seq * 300_000
        length = max(1, BLOCK * len(keys) + dice % 5)
        request = Request(self.seq, client, length, keys, BLOCK, arrived_us=arrived)
        self.add(number, QueuedRequest(request, self.seq))
        self.seq += 1

    def add(self, number: int, item: QueuedRequest) -> None:
        self.queues[number].push(item, self.caches[number].matched(item.keys))
        self.items.append((number, item))
        self.pushed(number, item)

    def take(self, number: int, item: QueuedRequest) -> None:
        self.queues[number].discard(item)
        self.items.remove((number, item))
        self.gone.append((number, item))
        self.discarded(number, item)

    def admit(self, number: int, dice: int) -> None:
        limit = dice % 30

        def fits(item: QueuedRequest) -> bool:
            return limit > 20 or item.request.prompt_tokens <= limit

        item = self.queues[number].head(fits)
        assert item is self.expected(number, fits)
        assert self.queues[number].head(fits) is item, "asking again changes nothing"
        if item is not None:
            self.take(number, item)
            extend = item.request.prompt_tokens - item.matched_tokens
            self.running.append((number, item.client))
            self.begun(number, item.client)
            self.ordering.admitted(number, item, extend)
            self.charged(number, item.client, self.costs.extend * self.charged_at_admission(item, extend))

    def charged_at_admission(self, item: QueuedRequest, extend: int) -> int:
        return extend

    def compare(self) -> None:
        self.ordering.check()
        for number, queue in zip(QUEUES, self.queues, strict=True):
            mine = [item for at, item in self.items if at == number]
            assert sorted(i.seq for i in queue) == sorted(i.seq for i in mine)
            assert len(queue) == len(mine)

    def pushed(self, number: int, item: QueuedRequest) -> None: ...
    def discarded(self, number: int, item: QueuedRequest) -> None: ...
    def begun(self, number: int, client: str) -> None: ...
    def released(self, number: int, client: str) -> None: ...
    def charged(self, number: int, client: str, units: int) -> None: ...
    def weighted(self, client: str, weight: float) -> None: ...
    def expected(self, number: int, fits) -> QueuedRequest | None: ...


class StatelessWorld(World):
    def __init__(self, ordering: Ordering, naive: NaiveLpm, *, match: bool) -> None:
        super().__init__(ordering, Costs())
        self.naive = naive
        self.plain = [NaiveQueue(cache.matched if match else lambda keys: 0) for cache in self.caches]

    def pushed(self, number, item):
        self.plain[number].push(item)

    def discarded(self, number, item):
        self.plain[number].discard(item)

    def expected(self, number, fits):
        return self.naive.head(self.plain[number], fits)


class DlpmWorld(World):
    def __init__(self, ordering: Ordering, costs: Costs, naive: NaiveDlpm) -> None:
        super().__init__(ordering, costs)
        self.naive = naive
        naive.queues = {n: NaiveQueue(self.caches[n].matched) for n in QUEUES}

    def pushed(self, number, item):
        self.naive.push(number, item)

    def discarded(self, number, item):
        self.naive.discard(number, item)

    def charged(self, number, client, units):
        self.naive.charge(number, client, units)

    def begun(self, number, client):
        self.naive.admitted(number, client)

    def released(self, number, client):
        self.naive.released(number, client)

    def weighted(self, client, weight):
        self.naive.set_weight(client, weight)

    def expected(self, number, fits):
        return self.naive.head(number, fits)

    def compare(self):
        super().compare()
        for number in QUEUES:
            for client in CLIENTS:
                assert self.ordering.credit(number, client) == self.naive.credit(number, client)


class VtcWorld(World):
    def __init__(self, ordering: Ordering, costs: Costs, naive: NaiveVtc) -> None:
        super().__init__(ordering, costs)
        self.naive = naive
        naive.queues = {n: NaiveQueue(lambda keys: 0) for n in QUEUES}

    def charged_at_admission(self, item, extend):
        return item.request.prompt_tokens

    def pushed(self, number, item):
        self.naive.push(number, item)

    def discarded(self, number, item):
        self.naive.discard(number, item)

    def charged(self, number, client, units):
        self.naive.charge(number, client, units)

    def weighted(self, client, weight):
        self.naive.weights[client] = weight

    def expected(self, number, fits):
        return self.naive.head(number, fits)

    def compare(self):
        super().compare()
        for number in QUEUES:
            for client in CLIENTS:
                counter = -Fraction(self.ordering.credit(number, client))
                assert counter == self.naive.counter(number, client)


@pytest.mark.parametrize("on_no_fit", ["stop", "skip"])
@pytest.mark.parametrize("name", ["lpm", "fcfs"])
@settings(max_examples=30, deadline=None)
@given(ops=OPS)
def test_incremental_order_equals_a_fresh_sort(name: str, on_no_fit: str, ops) -> None:
    """LPM after any stores and evictions is the order of a fresh match and sort; FCFS is arrival."""
    ordering = make_ordering(name, {"on_no_fit": on_no_fit}, OrderingContext())
    StatelessWorld(ordering, NaiveLpm(skip=on_no_fit == "skip"), match=name == "lpm").run(ops)


@pytest.mark.parametrize("params", PARAMS_DLPM, ids=lambda p: "-".join(map(str, p.values())))
@settings(max_examples=20, deadline=None)
@given(ops=OPS, extend=st.integers(0, 3), output=st.integers(0, 3))
def test_dlpm_equals_the_literal_algorithm(params: dict[str, object], ops, extend: int, output: int) -> None:
    """Rounds kept as one counter, and heaps of lanes, pick what loops over everybody pick."""
    costs = Costs(extend, output)
    naive = NaiveDlpm(
        params["quantum"],
        costs,
        fleet=params["scope"] == "fleet",
        skip=params["on_no_fit"] == "skip",
        debt_limit=params["debt_limit"],
        ageing=params["ageing"] if params["ties"] == "short" else None,
        light=params["light"],
    )
    DlpmWorld(make_ordering("dlpm", params, OrderingContext(costs)), costs, naive).run(ops)


@pytest.mark.parametrize("on_no_fit", ["stop", "skip"])
@pytest.mark.parametrize("scope", ["worker", "fleet"])
@settings(max_examples=30, deadline=None)
@given(ops=OPS)
def test_vtc_equals_the_literal_algorithm(scope: str, on_no_fit: str, ops) -> None:
    """Lazily corrected heaps pick the argmin, lifts included. Weights here are powers of two: exact."""
    params = {"scope": scope, "on_no_fit": on_no_fit}
    naive = NaiveVtc(Costs(), fleet=scope == "fleet", skip=on_no_fit == "skip")
    VtcWorld(make_ordering("vtc", params, OrderingContext()), Costs(), naive).run(ops)
