"""What one decision of the whole dispatcher costs: match, route, book, order, admit, settle.

    python -m benchmarks.core.dispatcher [--quick] [--json FILE]

The naive version of the same decision (one look-up a block and worker, one object a worker) runs in
the same process; the ratio is what to compare between machines, microseconds are for orientation.
Each figure is the best of several rounds, since machines are shared.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from fairlead.core import events as ev
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.model import Limits, Request
from fairlead.core.ordering import make_ordering
from fairlead.core.ordering.base import OrderingContext
from fairlead.core.routing import make_routing
from fairlead.core.routing.base import RoutingContext

POLICIES = ("marginal", "d2lpm", "lmetric")
SHAPES = ((32, 2), (512, 64), (512, 1024), (6250, 64))
"""(blocks of a prompt, workers)."""
TARGETS = {(512, 64): (50, 150), (512, 1024): (400, None), (6250, 64): (300, 1500)}
"""Microseconds: (decision, decision with booking)."""


def make(routing: str, workers: int, blocks: int) -> Dispatcher:
    """Return a warm dispatcher: a system prompt cached everywhere, deeper prefixes on a few workers each."""
    d = Dispatcher(
        make_routing(routing, {}, RoutingContext(random.Random(1))),
        make_ordering("dlpm", {}, OrderingContext()),
        Settings(queue_timeout_us=0),
    )
    for w in range(workers):
        d.step(ev.WorkerUp(0, f"w{w}", Limits(max_num_seqs=10**6, kv_tokens=40 * blocks * 16, queue=10**6)))
    rid = -1
    for w in range(workers):
        share = 1 + w % 8
        keys = prompt(blocks, w % 16)[: max(2, blocks * share // 8)]
        slot = d.fleet.slots[f"w{w}"]
        claim = d.index.claim(slot, keys)
        d.index.start(claim)
        d.index.end(claim)
        rid -= 1
    return d


def prompt(blocks: int, family: int, tail: int = 0) -> list[int]:
    """Return keys: an eighth is shared by all, the rest by a family, the last block is the request's own."""
    shared = blocks // 8
    keys = [(k * 2654435761) & (2**60 - 1) for k in range(shared)]
    keys += [((family + 1) << 32 | k) * 11400714819 & (2**60 - 1) for k in range(blocks - shared)]
    if tail:
        keys[-1] = (tail * 0x9E3779B97F4A7C15) & (2**60 - 1)
    return keys


def best(work: Callable[[int], None], rounds: int, loops: int) -> float:
    """Return the microseconds of one call, best round of several."""
    result = float("inf")
    number = 0
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(loops):
            number += 1
            work(number)
        result = min(result, (time.perf_counter() - start) / loops)
    return result * 1e6


def measure(routing: str, blocks: int, workers: int, quick: bool) -> dict[str, float]:
    """Measure one shape."""
    d = make(routing, workers, blocks)
    d.step(ev.Tick(1))
    requests = [Request(n, f"c{n % 8}", blocks * 16 + 8, prompt(blocks, n % 16, n)) for n in range(1, 33)]
    rounds, loops = (3, 20) if quick else (7, 100)

    def decide(number: int) -> None:
        request = requests[number % len(requests)]
        d.routing.choose(
            request, d.placement.matcher.match(request), d.fleet, 1
        )  # the decision alone, unbooked

    def whole(number: int) -> None:
        request = requests[number % len(requests)]._replace(rid=number)
        d.step(ev.Arrived(1, request))
        d.step(ev.FirstToken(1, number))
        d.step(ev.Finished(1, number, request.prompt_tokens, None, 1))

    def arrive(number: int) -> None:
        d.step(ev.Arrived(1, requests[number % len(requests)]._replace(rid=number)))

    def settle(number: int) -> None:
        d.step(ev.FirstToken(1, number))
        d.step(ev.Finished(1, number, 100, None, 1))

    figures = {"decision_us": best(decide, rounds, loops), "whole_us": best(whole, rounds, loops)}
    booked = float("inf")
    number = 10**6
    for _ in range(rounds):
        first = number
        start = time.perf_counter()
        for _ in range(loops):
            number += 1
            arrive(number)
        booked = min(booked, (time.perf_counter() - start) / loops)
        for ended in range(first + 1, number + 1):
            settle(ended)
    figures["booked_us"] = booked * 1e6
    figures["naive_us"] = best(naive(requests, workers, blocks), 3, 3)
    figures["ratio"] = figures["naive_us"] / figures["decision_us"]
    return figures


def naive(requests: list[Request], workers: int, blocks: int) -> Callable[[int], None]:
    """Return the plain version: a set of blocks a worker, one look-up a block, one score a worker."""
    caches = [set(prompt(blocks, w % 16)[: max(2, blocks * (1 + w % 8) // 8)]) for w in range(workers)]

    def decide(number: int) -> None:
        request = requests[number % len(requests)]
        scores = []
        for cache in caches:
            matched = 0
            for key in request.keys:
                if key not in cache:
                    break
                matched += 1
            scores.append(request.prompt_tokens - matched * 16)
        min(scores)

    return decide


def main() -> int:
    """Print the table; 0."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args()
    rows = []
    heads = (
        ("blocks", 6),
        ("workers", 7),
        ("decision", 9),
        ("booked", 8),
        ("whole", 8),
        ("naive", 9),
        ("ratio", 6),
    )
    print("policy     " + " ".join(f"{head:>{width}}" for head, width in heads) + "  (microseconds)")
    for routing in POLICIES:
        for blocks, workers in SHAPES:
            row = measure(routing, blocks, workers, args.quick)
            rows.append({"policy": routing, "blocks": blocks, "workers": workers, **row})
            targets = TARGETS.get((blocks, workers))
            note = f"  targets {targets[0]}, {targets[1] or '-'}" if targets else ""
            print(
                f"{routing:10} {blocks:6} {workers:7} {row['decision_us']:9.1f} {row['booked_us']:8.1f} "
                f"{row['whole_us']:8.1f} {row['naive_us']:9.1f} {row['ratio']:6.1f}{note}"
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
