"""How fast the simulator runs, what its cost grows with, and how much memory it takes.

    python -m benchmarks.simulate [--quick] [--json FILE]

The yardstick is the generator ``shared-prefix`` (prompts of 1,000 tokens of which 800 are shared, answers
of 200) on 8 workers with ``dlpm`` + ``d2lpm`` at 0.7 of the maximum load, all metrics on. Every run is a
process of its own. Ratios (fast-forward / step by step, compiled / pure, many / few) are what to compare
between machines. Requests a second are given by CPU time, which other work on a shared machine disturbs
least, and by the clock; of repeated runs the best counts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairlead import compiled
from fairlead.report.metrics import summarise
from fairlead.simulate.capacity import LONGEST_GENERATED, Capacity, at_load, measure
from fairlead.simulate.runner import REACH_LIMIT, simulate
from fairlead.simulate.settings import Settings
from fairlead.trace.reachable import reach
from fairlead.trace.workload import Workload

WORKERS, CLIENTS, LOAD = 8, 8, 0.7
TARGET_RATE, TARGET_MIB = 20_000, 2048
PURE, COMPILED = "pure", "compiled"

Row = dict[str, Any]


class Case(NamedTuple):
    """One simulation to be timed."""

    requests: int
    workers: int = WORKERS
    clients: int = CLIENTS
    load: float = LOAD
    fast_forward: bool = True
    form: str = PURE


def workload(requests: int, clients: int = CLIENTS) -> Workload:
    """Return the yardstick."""
    return Workload(source="shared-prefix", requests=requests, clients=clients)


def work(case: Case, rate_per_worker: float) -> Row:
    """Simulate ``case`` in this process, with arrivals in proportion to the workers.

    ``cpu_s`` and ``wall_s`` are of the simulation, ``whole_cpu_s`` with the reachable hit rate and the
    summary after it: what ``fairlead simulate`` does once it is loaded.
    """
    settings = Settings(workers=case.workers, fast_forward=case.fast_forward)
    capacity = Capacity(rate_per_worker * case.workers, LONGEST_GENERATED)
    trace = at_load(workload(case.requests, case.clients).open(), capacity, case.load)
    began, wall = time.process_time(), time.perf_counter()
    run = simulate(trace, settings, load=case.load, capacity=capacity, reachable=0.0)
    cpu, wall = time.process_time() - began, time.perf_counter() - wall
    run.reachable_hit_rate = reach(trace, REACH_LIMIT).hit_rate
    result = summarise(run)
    if result["completed"] != case.requests:
        raise RuntimeError(f"{case}: {result['completed']} completed")
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "whole_cpu_s": time.process_time() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "most_waiting": max(map(sum, zip(*run.series.waiting, strict=True)), default=0),
        "utilisation": result["utilisation"]["label"],
    }


def timed(case: Case, rate_per_worker: float, rounds: int = 1) -> Row:
    """Simulate ``case`` in ``rounds`` processes; return the best one's times, and figures from them."""
    environment = {**os.environ, "FAIRLEAD_PURE": "1" if case.form == PURE else ""}
    told = json.dumps([case, rate_per_worker])
    command = [sys.executable, "-m", "benchmarks.simulate", "--work", told]
    found: list[Row] = []
    for _ in range(rounds):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ourselves
        found.append(json.loads(done.stdout))
    best = min(found, key=lambda row: row["cpu_s"])
    return {
        **case._asdict(),
        "requests_per_cpu_s": round(case.requests / best["cpu_s"]),
        "simulated_requests_per_s": round(case.requests / min(row["wall_s"] for row in found)),
        "us_per_request": round(best["cpu_s"] / case.requests * 1e6, 1),
        "whole_us_per_request": round(best["whole_cpu_s"] / case.requests * 1e6, 1),
        "peak_mib": round(max(row["peak_mib"] for row in found)),
        "most_waiting": best["most_waiting"],
        "utilisation": best["utilisation"],
    }


def measure_yardstick(requests: int, rate: float, forms: Sequence[str]) -> list[Row]:
    """Time the yardstick, pure and compiled."""
    rows = [timed(Case(requests, form=form), rate) for form in forms]
    for row in rows:
        row["x_pure"] = round(row["requests_per_cpu_s"] / rows[0]["requests_per_cpu_s"], 2)
    show("the yardstick", rows, ("form", "requests", *SPEED, "x_pure", "peak_mib"))
    return rows


def measure_step_by_step(requests: int, rate: float, rounds: int) -> list[Row]:
    """Time closed form against step by step, which gives the same results."""
    rows = []
    for load in (0.3, LOAD, 0.95):
        row = timed(Case(requests, load=load), rate, rounds)
        slow = timed(Case(requests, load=load, fast_forward=False), rate, rounds)
        row["step_by_step_us"] = slow["us_per_request"]
        row["x_step_by_step"] = round(slow["us_per_request"] / row["us_per_request"], 2)
        rows.append(row)
    columns = ("load", "requests", "us_per_request", "step_by_step_us", "x_step_by_step")
    show("closed form against step by step", rows, columns)
    return rows


def measure_growth(requests: int, rate: float, rounds: int) -> dict[str, list[Row]]:
    """Time what the cost may grow with, one thing at a time."""
    series = {
        "requests": [Case(n) for n in (requests // 4, requests, requests * 4)],
        "workers": [Case(requests, workers=n) for n in (1, 4, 16, 64)],
        "clients": [Case(requests, clients=n) for n in (1, 8, 50, 500)],
        "load": [Case(requests, load=load) for load in (0.3, LOAD, 0.95, 1.2, 2.0)],
    }
    found = {}
    for what, cases in series.items():
        rows = [timed(case, rate, rounds) for case in cases]
        for row in rows:
            row["x_first"] = round(row["us_per_request"] / rows[0]["us_per_request"], 2)
        columns = (what, "us_per_request", "x_first", "most_waiting", "utilisation")
        show(f"cost against {what}", rows, columns)
        found[what] = rows
    return found


SPEED = ("requests_per_cpu_s", "simulated_requests_per_s", "us_per_request", "whole_us_per_request")


def show(title: str, rows: list[Row], columns: Sequence[str]) -> None:
    """Print a table."""
    print(f"-- {title}")
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in columns]
    print("  ".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
    for row in rows:
        print("  ".join(f"{row[name]:>{width}}" for name, width in zip(columns, widths, strict=True)))
    print(flush=True)


def main() -> None:
    """Measure and print."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--quick", action="store_true", help="a yardstick of 5,000 requests, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        told, rate = json.loads(args.work)
        print(json.dumps(work(Case(*told), rate)))
        return
    maximum = measure(
        workload(LONGEST_GENERATED).open(), Settings(workers=WORKERS), longest=LONGEST_GENERATED
    )
    rate = maximum.requests_per_s / WORKERS
    print(f"maximum load: {maximum.requests_per_s:.0f} requests/s on {WORKERS} workers\n")
    forms = (PURE, COMPILED) if compiled() else (PURE,)
    rounds = 1 if args.quick else 2
    found: dict[str, Any] = {"rate_per_worker": rate}
    found["yardstick"] = measure_yardstick(5_000 if args.quick else 200_000, rate, forms)
    found["step_by_step"] = measure_step_by_step(1_000 if args.quick else 10_000, rate, rounds)
    found["growth"] = measure_growth(1_000 if args.quick else 20_000, rate, rounds)
    if not args.quick:
        found["memory"] = [timed(Case(1_000_000, form=forms[-1]), rate)]
        show("memory", found["memory"], ("form", "requests", "peak_mib", *SPEED))
    best = found["yardstick"][-1]["requests_per_cpu_s"]
    print(f"targets: {TARGET_RATE:,} requests/s (here {best:,}), 1,000,000 requests in {TARGET_MIB:,} MiB")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
