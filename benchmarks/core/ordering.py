"""Cost of the next pick of an ordering policy, against its naive version in the same run.

One pick is what a dispatcher does for one admission: ``head``, ``discard``, ``admitted``, the notices
of what the worker cached and evicted for it, ``push`` of a new request, and eight ``decoded``. The
time of these calls is added up; the model of the worker's cache around them is not counted, but the
matches that it is asked for are. The naive version matches and sorts the whole queue for each pick
and must pick the same requests. Times are CPU time of this thread, since machines are shared.

    python benchmarks/core/ordering.py            # tables
    python benchmarks/core/ordering.py --json out.json
"""

import argparse
import json
import random
import statistics
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from time import thread_time_ns

from fairlead.core.model import Request
from fairlead.core.ordering import ORDERINGS, OrderingContext, make_ordering
from fairlead.core.ordering.base import Ordering, QueuedRequest

QUANTUM = 8192
SHARED_BLOCKS = 16
"""Blocks that all prompts of a client begin with."""
DOCUMENT_BLOCKS = 40
OWN_BLOCKS = 8
DOCUMENTS = 4
"""Documents that a client asks about."""
CACHED_CHAINS = 500
"""Documents that the worker's cache holds."""
DECODES = 8


class Cache:
    """A worker's prefix cache: whole documents, least recently used goes first, leaves first."""

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self._uses: dict[int, int] = {}
        self._chains: OrderedDict[int, Sequence[int]] = OrderedDict()

    def matched(self, keys: Sequence[int]) -> int:
        """Return how many leading blocks are cached, by bisection: the cache is closed under prefixes."""
        low, high, cached = 0, len(keys), self.keys
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in cached:
                low = middle + 1
            else:
                high = middle
        return low

    def use(self, keys: Sequence[int]) -> tuple[list[int], list[int]]:
        """Cache the chain; return what is new, first to last, and what had to go, last to first."""
        name = keys[-1]
        if name in self._chains:
            self._chains.move_to_end(name)
            return [], []
        self._chains[name] = keys
        new = [key for key in keys if key not in self.keys]
        for key in keys:
            self._uses[key] = self._uses.get(key, 0) + 1
        self.keys.update(new)
        return new, self._evict() if len(self._chains) > CACHED_CHAINS else []

    def _evict(self) -> list[int]:
        _, keys = self._chains.popitem(last=False)
        gone = []
        for key in reversed(keys):
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key]
                self.keys.remove(key)
                gone.append(key)
        return gone


class Load:
    """Requests of many clients, each with a shared prefix and some documents. Endless."""

    def __init__(self, clients: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._rids = count()
        self._clients = [f"client-{n}" for n in range(clients)]
        self._chains: dict[tuple[int, int], list[int]] = {}

    def __call__(self) -> Request:
        """Return the next request."""
        rid = next(self._rids)
        client = self._rng.randrange(len(self._clients))
        document = self._rng.randrange(DOCUMENTS)
        chain = self._chains.get((client, document))
        if chain is None:
            shared = [hash((client, n)) for n in range(SHARED_BLOCKS)]
            chain = shared + [hash((client, document, n)) for n in range(DOCUMENT_BLOCKS)]
            self._chains[client, document] = chain
        keys = chain + [hash((rid, n, "own")) for n in range(OWN_BLOCKS)]
        return Request(rid, self._clients[client], 16 * len(keys) + rid % 16, keys, 16)


class Naive:
    """DLPM with a fresh match and sort of the whole queue for every pick, and loops over all clients."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.items: dict[int, QueuedRequest] = {}
        self.credit: dict[str, int] = {}

    def push(self, item: QueuedRequest) -> None:
        """Queue a request."""
        self.items[item.seq] = item
        self.credit.setdefault(item.client, 0)

    def head(self) -> QueuedRequest:
        """Return who goes next."""
        for item in self.items.values():
            item.matched = self.cache.matched(item.keys)
        order = sorted(self.items.values(), key=lambda item: (-item.matched_tokens, item.seq))
        while True:
            for item in order:
                if self.credit[item.client] > 0:
                    return item
            for client in {item.client for item in order}:
                self.credit[client] += QUANTUM


class Run:
    """One backlogged worker under one policy."""

    def __init__(self, name: str, clients: int, waiting: int, seed: int = 1, **params: object) -> None:
        self.cache = Cache()
        self.load = Load(clients, seed)
        given = {"quantum": QUANTUM, **params} if name == "dlpm" else params
        self.ordering: Ordering = make_ordering(name, given, OrderingContext())
        self.queue = self.ordering.make_queue(0, self.cache.matched)
        self.waiting: dict[int, QueuedRequest] = {}
        self.running: list[str] = []
        self.rng = random.Random(seed)
        self.notices = 0
        """Blocks that were told of as cached or evicted."""
        for _ in range(waiting):
            request = self.load()
            self.queue.push(QueuedRequest(request, request.rid), 0)

    def pick(self) -> tuple[int, QueuedRequest, list[str], QueuedRequest]:
        """Do one pick; return its nanoseconds, who was picked, who decoded and who came."""
        ordering, queue = self.ordering, self.queue
        start = thread_time_ns()
        item = queue.head()
        assert item is not None
        queue.discard(item)
        ordering.admitted(0, item, item.request.prompt_tokens - item.matched_tokens)
        spent = thread_time_ns() - start
        stored, evicted = self.cache.use(item.keys[:-OWN_BLOCKS])
        self.notices += len(stored) + len(evicted)
        request = self.load()
        matched = self.cache.matched(request.keys)
        ended = self.running[:-63]
        self.running = [*self.running[-63:], item.client]
        decoding = self.rng.choices(self.running, k=DECODES)
        start = thread_time_ns()
        if stored:
            queue.cache_stored(stored)
        if evicted:
            queue.cache_evicted(evicted)
        new = QueuedRequest(request, request.rid)
        queue.push(new, matched)
        for client in decoding:
            ordering.decoded(0, client, 1)
        for client in ended:
            ordering.released(0, client)
        spent += thread_time_ns() - start
        return spent, item, decoding, new


def pick_us(name: str, clients: int, waiting: int, picks: int) -> tuple[float, float, float]:
    """Return microseconds a pick, their 99th percentile, and notices a pick.

    As many picks go before to fill the cache. Both times are the least of six parts.
    """
    run = Run(name, clients, waiting)
    for _ in range(picks):
        run.pick()
    run.notices = 0
    parts = [[run.pick()[0] / 1e3 for _ in range(max(2, picks // 6))] for _ in range(6)]
    p99 = min(statistics.quantiles(part, n=100)[-1] for part in parts)
    return min(map(statistics.fmean, parts)), p99, run.notices / sum(map(len, parts))


def naive_us(clients: int, waiting: int, picks: int) -> tuple[float, float]:
    """Return microseconds a pick of the naive version, and of ours on the same history: the paper's rule."""
    run = Run("dlpm", clients, waiting, light=False, ties="arrival")
    naive = Naive(run.cache)
    for item in tuple(run.queue):
        naive.push(QueuedRequest(item.request, item.seq))
    times, ours = [], []
    for _ in range(picks):
        start = thread_time_ns()
        expected = naive.head()
        del naive.items[expected.seq]
        naive.credit[expected.client] -= expected.request.prompt_tokens - expected.matched_tokens
        times.append(thread_time_ns() - start)
        spent, item, decoding, new = run.pick()
        ours.append(spent)
        if item.seq != expected.seq:
            raise SystemExit(f"the naive version picks {expected!r}, dlpm picks {item!r}")
        naive.push(QueuedRequest(new.request, new.seq))
        for client in decoding:
            naive.credit[client] -= 2
    return statistics.median(times) / 1e3, statistics.median(ours) / 1e3


def call_us(prepare: Callable[[], Callable[[], object]], calls: int) -> float:
    """Return microseconds of one call: the least of five runs."""
    best = float("inf")
    for _ in range(5):
        call = prepare()
        start = thread_time_ns()
        for _ in range(calls):
            call()
        best = min(best, (thread_time_ns() - start) / calls / 1e3)
    return best


def decoded_call() -> Callable[[], object]:
    """Return a call of ``decoded`` that leaves the sign of the credit as it is."""
    run = Run("dlpm", 1000, 1000)
    client = run.pick()[1].client
    return lambda: run.ordering.decoded(0, client, 1)


def lonely_call() -> Callable[[], object]:
    """Return the whole way of a request through an otherwise empty queue."""
    run = Run("dlpm", 10, 0)
    requests = [run.load() for _ in range(64)]
    turn = count()

    def call() -> None:
        number = next(turn)
        queue = run.queue
        queue.push(QueuedRequest(requests[number % 64], number), 3)
        item = queue.head()
        assert item is not None
        queue.discard(item)
        run.ordering.admitted(0, item, 100)

    return call


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{title}")
    print("  ".join(f"{head:>14}" for head in heads))
    for row in rows:
        print("  ".join(f"{c:>14.2f}" if isinstance(c, float) else f"{c!s:>14}" for c in row))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--picks", type=int, default=3000, help="timed picks a row (default 3000)")
    parser.add_argument("--naive-picks", type=int, default=30, help="picks of the naive version (default 30)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="500 picks a row")
    args = parser.parse_args()
    picks: int = 500 if args.quick else args.picks

    heads = ("us", "p99 us", "blocks noticed")
    lengths = [(1000, n, *pick_us("dlpm", 1000, n, picks)) for n in (1000, 2000, 5000, 10_000, 20_000)]
    table("dlpm, microseconds a pick by queue length", ("clients", "waiting", *heads), lengths)
    widths = [(n, 10_000, *pick_us("dlpm", n, 10_000, picks)) for n in (10, 100, 1000, 5000)]
    table("dlpm, microseconds a pick by clients", ("clients", "waiting", *heads), widths)
    policies = [(name, *pick_us(name, 1000, 10_000, picks)) for name in ORDERINGS.names()]
    table("policies, 1,000 clients and 10,000 waiting", ("policy", *heads), policies)
    naive = [(n, *naive_us(1000, n, args.naive_picks)) for n in (1000, 10_000)]
    ratios = [(n, slow, ours, slow / ours) for n, slow, ours in naive]
    table("against the naive version, medians", ("waiting", "naive us", "dlpm us", "ratio"), ratios)
    calls = {"decoded": call_us(decoded_call, 20_000), "through an empty queue": call_us(lonely_call, 20_000)}
    table("single calls", ("us", "call"), [(value, name) for name, value in calls.items()])
    by_length = {row[1]: row[2] for row in lengths}
    growth = by_length[10_000] / by_length[1000]
    print(f"\n10,000 waiting cost {growth:.2f} times 1,000 waiting; target: at most 2, and 30 us a pick")
    if args.json:
        figures = {
            "by_waiting": by_length,
            "by_clients": {row[0]: row[2] for row in widths},
            "by_policy": {row[0]: row[1] for row in policies},
            "naive": {n: {"naive_us": s, "dlpm_us": o, "ratio": r} for n, s, o, r in ratios},
            "calls_us": calls,
            "growth_10000_over_1000": growth,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
