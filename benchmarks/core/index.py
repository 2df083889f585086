"""Cost and memory of the prefix index: match, booking, eviction, drop, bytes a block.

Each cost stands beside a naive index in the same run: one set of block keys a worker, looked up
block by block until the first miss.

    python benchmarks/core/index.py [--json FILE] [--quick]
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from time import perf_counter

from fairlead.core.prefix import PrefixIndex

Row = dict[str, str | float]

MEMORY = (
    "approximate, unique",
    "approximate, 64 share 90%",
    "precise, unique",
    "precise, decoded one by one",
)


class Naive:
    """A set of block keys a worker."""

    def __init__(self, workers: int) -> None:
        self.held: list[set[int]] = [set() for _ in range(workers)]

    def match(self, keys: Sequence[int]) -> list[int]:
        """Return the leading blocks held, by worker."""
        found = []
        for held in self.held:
            count = 0
            for key in keys:
                if key not in held:
                    break
                count += 1
            found.append(count)
        return found


def random_keys(rng: Random, count: int) -> list[int]:
    return [rng.getrandbits(60) for _ in range(count)]


def best_us(call: Callable[[], object], seconds: float) -> float:
    """Return the smallest mean of several short series, in microseconds."""
    call()
    start = perf_counter()
    call()
    count = max(1, int(seconds / 5 / max(1e-7, perf_counter() - start)))
    best = float("inf")
    for _ in range(5):
        start = perf_counter()
        for _ in range(count):
            call()
        best = min(best, (perf_counter() - start) / count)
    return best * 1e6


def serve(index: PrefixIndex, slot: int, keys: list[int]) -> None:
    claim = index.claim(slot, keys)
    index.start(claim)
    index.end(claim)


def fleet(shape: str, workers: int, blocks: int, precise: bool) -> tuple[PrefixIndex, Naive, list[int]]:
    """Return an index and its naive twin after some traffic, and the prompt to look up.

    ``typical``: an eighth of the prompt (a system prompt) is everywhere, a few workers cache more.
    ``distinct``: every worker caches another length of it, as far as there are so many.
    """
    rng = Random(1)
    index, naive = PrefixIndex(), Naive(workers)
    prompt = random_keys(rng, blocks)
    deeper = set(rng.sample(range(workers), min(4, workers)))
    for slot in range(workers):
        index.add(slot, 4 * blocks, precise)
        if shape == "distinct":
            held = prompt[: max(1, blocks * (slot + 1) // (workers + 1))]
        elif slot in deeper:
            held = prompt[: blocks // 2 + slot % 7]
        else:
            held = prompt[: max(1, blocks // 8)] + random_keys(rng, blocks // 4)
        naive.held[slot].update(held)
        if precise:
            index.stored(slot, held, None)
        else:
            serve(index, slot, held)
    return index, naive, prompt


def measure_match(seconds: float) -> list[Row]:
    rows: list[Row] = []
    for source in ("approximate", "precise"):
        for shape in ("typical", "distinct"):
            for workers, blocks in ((2, 32), (64, 512), (64, 6250), (1024, 512), (1024, 6250)):
                index, naive, prompt = fleet(shape, workers, blocks, source == "precise")
                ours = best_us(partial(index.match, prompt), seconds)
                theirs = best_us(partial(naive.match, prompt), seconds)
                case = f"{shape}, {source}, {len(index.match(prompt))} lengths"
                rows.append(
                    {
                        "what": "match",
                        "case": case,
                        "workers": workers,
                        "blocks": blocks,
                        "us": round(ours, 2),
                        "naive_us": round(theirs, 1),
                        "ratio": round(theirs / ours, 1),
                    }
                )
    return rows


def measure_booking(requests: int) -> list[Row]:
    """Claim, start and end of prompts whose first quarter is shared, with full caches: each evicts."""
    rows: list[Row] = []
    for workers, blocks in ((2, 32), (64, 512), (64, 6250)):
        rng = Random(2)
        index, naive = PrefixIndex(), Naive(workers)
        for slot in range(workers):
            index.add(slot, 4 * blocks)
        shared = random_keys(rng, blocks // 4)
        spent: list[float] = []
        spent_naive: list[float] = []
        total = max(8 * workers, min(requests, 4_000_000 // blocks))
        for number in range(total):
            slot = number % workers
            prompt = shared + random_keys(rng, blocks - len(shared))
            start = perf_counter()
            serve(index, slot, prompt)
            middle = perf_counter()
            naive.held[slot].update(prompt)
            naive.held[slot].difference_update(prompt[len(shared) :])
            end = perf_counter()
            if number >= 6 * workers:  # the caches are full by now
                spent.append(middle - start)
                spent_naive.append(end - middle)
        spent.sort()
        spent_naive.sort()
        ours, theirs = spent[len(spent) // 2] * 1e6, spent_naive[len(spent) // 2] * 1e6
        rows.append(
            {
                "what": "booking",
                "case": "claim, start, end, evicting 3/4",
                "workers": workers,
                "blocks": blocks,
                "us": round(ours, 2),
                "naive_us": round(theirs, 1),
                "ratio": round(theirs / ours, 1),
            }
        )
    return rows


def measure_removal() -> list[Row]:
    """Evicting all and dropping a worker of 10,000 to 100,000 blocks, approximate and precise."""
    rows: list[Row] = []
    for what in ("evict", "drop", "precise store", "precise evict", "precise drop"):
        for blocks in (10_000, 100_000):
            rng = Random(3)
            best = float("inf")
            for _ in range(3):
                index = PrefixIndex()
                index.add(0, blocks, precise=what.startswith("precise"))
                prompts = [random_keys(rng, 100) for _ in range(blocks // 100)]
                if not what.startswith("precise"):
                    for prompt in prompts:
                        serve(index, 0, prompt)
                start = perf_counter()
                if what.startswith("precise"):
                    for prompt in prompts:
                        index.stored(0, prompt, None)
                if what != "precise store":
                    start = perf_counter()
                if what == "evict":
                    index.resize(0, 0)
                elif what.endswith("drop"):
                    index.drop(0)
                elif what == "precise evict":
                    for prompt in prompts:
                        index.evicted(0, prompt[::-1])
                best = min(best, perf_counter() - start)
            rows.append(
                {
                    "what": what,
                    "case": "ns a block",
                    "workers": 1,
                    "blocks": blocks,
                    "us": round(best * 1e6, 1),
                    "ns_block": round(best / blocks * 1e9, 1),
                }
            )
    return rows


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def fill(case: str, blocks: int) -> int:
    """Fill 64 workers with ``blocks`` blocks in all; return the bytes the process grew by.

    Requests are of 100 blocks, made one at a time and not kept, as in production.
    """
    rng = Random(4)
    index = PrefixIndex()
    per_worker = blocks // 64
    for slot in range(64):
        index.add(slot, 2 * per_worker, precise=case.startswith("precise"))
    gc.collect()
    before = resident_bytes()
    for number in range(blocks // 100):
        slot = number % 64
        # Of shared prompts, each worker makes the keys anew: equal, but not the same objects.
        prompt = random_keys(Random(number // 64 if "share" in case else number), 100)
        if "share" in case:
            prompt[90:] = random_keys(rng, 10)
        if case == "precise, decoded one by one":
            index.stored(slot, prompt[:1], None)
            for at in range(1, 100):
                index.stored(slot, prompt[at : at + 1], prompt[at - 1])
        elif case.startswith("precise"):
            index.stored(slot, prompt, None)
        else:
            serve(index, slot, prompt)
    gc.collect()
    return resident_bytes() - before


def measure_memory(blocks: int) -> list[Row]:
    rows: list[Row] = []
    for case in MEMORY:
        command = [sys.executable, __file__, "--fill", case, "--blocks", str(blocks)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ourselves
        rows.append(
            {
                "what": "memory",
                "case": case,
                "workers": 64,
                "blocks": blocks,
                "bytes_block": round(int(done.stdout) / blocks, 1),
            }
        )
    return rows


def show(rows: list[Row]) -> None:
    columns = ("what", "case", "workers", "blocks", "us", "naive_us", "ratio", "ns_block", "bytes_block")
    widths = [max(len(c), *(len(str(row.get(c, ""))) for row in rows)) for c in columns]
    header: Row = {column: column for column in columns}
    for line in [header, *rows]:
        print("  ".join(str(line.get(c, "")).ljust(w) for c, w in zip(columns, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost and memory of the prefix index.")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--fill", choices=MEMORY, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=1_000_000, help="blocks of the memory measurement")
    args = parser.parse_args()
    if args.fill:
        print(fill(args.fill, args.blocks))
        return
    scale = 10 if args.quick else 1
    rows = measure_match(0.5 / scale)
    rows += measure_booking(4000 // scale)
    rows += measure_removal()
    rows += measure_memory(args.blocks // scale)
    show(rows)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
