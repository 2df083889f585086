"""What one routing decision costs, for each policy and number of workers.

Run from the repository's root: ``python -m benchmarks.core.routing``. Microseconds a ``choose`` (the
least of several runs), and how many times as long the same rule takes over one object a worker, in the
same run. Matches are given: finding them is the prefix index's part.
"""

import argparse
import random
from collections.abc import Callable
from time import perf_counter

from tests.core import routing_naive as naive
from tests.core.routing_fleet import PlainFleet, match, policy

from fairlead.core.model import Request
from fairlead.core.routing import POLICIES
from fairlead.core.routing.base import Match, RoutingBase

SIZES = (2, 16, 64, 256, 1024)
POOL = 500_000
REQUESTS = 50
Naive = Callable[[list[naive.Worker], int, int], int | None]


def dynamo(workers: list[naive.Worker], prompt: int, last: int) -> int | None:
    return naive.pick(workers, lambda w: ((prompt - w.matched + w.kv_used) / 16, w.batch_size), last)


def vllm(workers: list[naive.Worker], _: int, last: int) -> int | None:
    return naive.pick(workers, lambda w: (4 * w.queued + w.batch_size - w.queued,), last)


def least(workers: list[naive.Worker], _: int, last: int) -> int | None:
    return naive.pick(workers, lambda w: (w.batch_size,), last)


def with_credit(*, by_product: bool) -> Naive:
    rule = naive.D2lpm(64_000, by_product=by_product)
    return lambda workers, prompt, last: rule.route("ann", workers, prompt, last)


NAIVE: dict[str, Naive] = {
    "least_requests": least,
    "vllm_score": vllm,
    "linear": dynamo,
    "lmetric": naive.lmetric,
    "d2lpm": with_credit(by_product=False),
    "fair_lmetric": with_credit(by_product=True),
    "marginal": naive.marginal,
}


def make_fleet(size: int, rng: random.Random, full: float) -> PlainFleet:
    """A busy fleet whose prefix caches are ``full`` (share of their pools) or more."""
    fleet = PlainFleet(size, batch_size=[rng.randrange(5, 60) for _ in range(size)])
    fleet.queued = [rng.randrange(3) for _ in range(size)]
    fleet.pending_prefill_tokens = [rng.randrange(20_000) for _ in range(size)]
    fleet.kv_used = [rng.randrange(400_000) for _ in range(size)]
    fleet.kv_cached = [int(POOL * rng.uniform(full, 1)) for _ in range(size)]
    fleet.context = [4_000 * n for n in fleet.running]
    fleet.hit_rate = [rng.random() for _ in range(size)]
    return fleet


def make_requests(fleet: PlainFleet, rng: random.Random) -> list[tuple[Request, Match]]:
    """Different prompts, each cached by about one worker in eight."""
    made = []
    for rid in range(REQUESTS):
        tokens = [1_600 if rng.random() < 1 / 8 else 0 for _ in fleet.ids]
        made.append((Request(rid, "ann", 4_000, range(rid * 250, rid * 250 + 250)), match(fleet, tokens)))
    return made


def warm(rule: RoutingBase, fleet: PlainFleet, requests: list[tuple[Request, Match]]) -> None:
    """Give the books some history: half the arrivals match nothing."""
    for now, (request, found) in enumerate(requests * 4):
        choice = rule.choose(request, found, fleet, now)
        assert choice is not None
        rule.assigned(request, choice.slot, 2_400, now)
        rule.assigned(Request(-1, "bob", 100), choice.slot, 100, now)


def best_of(repeats: int, run: Callable[[], object]) -> float:
    """Least microseconds a decision."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times) / REQUESTS * 1e6


def measure(
    name: str, size: int, repeats: int, *, share: float = 1.0, full: float = 0.9
) -> tuple[float, float]:
    """Return microseconds of ``choose``, and of the naive version (nan without one)."""
    rng = random.Random(size)
    fleet = make_fleet(size, rng, full)
    fleet.candidates = [s for s in fleet.candidates if rng.random() < share]
    requests = make_requests(fleet, rng)
    rule = policy(name)
    warm(rule, fleet, requests)
    ours = best_of(repeats, lambda: [rule.choose(r, m, fleet, 1_000) for r, m in requests])
    if name not in NAIVE:
        return ours, float("nan")
    workers = [
        naive.Worker(
            s, fleet.batch_size[s], fleet.queued[s], fleet.pending_prefill_tokens[s], fleet.kv_used[s],
            fleet.kv_cached[s], POOL,
            fleet.context[s], fleet.hit_rate[s], requests[0][1].tokens[s], s in set(fleet.candidates),
        )
        for s in range(size)
    ]  # fmt: skip
    slow = best_of(max(2, repeats // 5), lambda: [NAIVE[name](workers, 4_000, s) for s in range(REQUESTS)])
    return ours, slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="5 repeats")
    args = parser.parse_args()
    repeats: int = 5 if args.quick else args.repeats
    print("| policy | " + " | ".join(f"{n} workers" for n in SIZES) + " |\n|---|" + "---:|" * len(SIZES))
    for name in POLICIES.names():
        cells = []
        for size in SIZES:
            ours, slow = measure(name, size, repeats)
            cells.append(f"{ours:.1f}" + (f" (x{slow / ours:.1f})" if slow == slow else ""))  # noqa: PLR0124 - not nan
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n64 workers, nine in ten candidates; and with caches full to the last blocks:\n")
    print("| policy | all | nine in ten | full caches |\n|---|---:|---:|---:|")
    for name in ("lmetric", "fair_lmetric", "d2lpm", "preble", "marginal"):
        figures = [measure(name, 64, repeats, **how)[0] for how in ({}, {"share": 0.9}, {"full": 0.9999})]
        print(f"| {name} | " + " | ".join(f"{f:.1f}" for f in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
