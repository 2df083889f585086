"""What the constants of `marginal` decide, and how far it is from what perfect knowledge would give.

    python -m benchmarks.marginal constants|limits [--data DIR] [--seeds N] [--workloads A,B] [--json FILE]
    python -m benchmarks.marginal draw FILE ...

All runs: 8 workers (16 under the hot prefix), H100 profile, 0.95 of the maximum load, queues in the gateway.

``constants`` divides and multiplies each constant by 2 and 4, the others as they are, with equal requests
and times. The order is ``lpm``, so that nothing but the routing differs.

``limits`` takes away one thing after the other that a rule cannot know or have:

- *outputs known*: every request tells how long its answer will be, and the request with the least service
  (uncached tokens + 2 x output) goes first. It is not fair to anybody.
- *endless cache*: likewise, and no worker ever evicts: more than the best eviction could do.
- *alone*: one worker with an endless cache and next to no load: no request waits for another, and finds
  all that was ever computed. No rule can have a lower mean TTFT.

``draw`` makes tables and drawings of what was written with ``--json``.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import Any, NamedTuple

import fairlead.core.routing.marginal as rule
from fairlead.core.model import BlockKey
from fairlead.core.ordering import ORDERINGS
from fairlead.core.ordering.base import Fits, OrderingBase, QueuedRequest
from fairlead.core.ordering.heaps import ItemHeap
from fairlead.core.tracked import TrackedRequest
from fairlead.report.metrics import summarise
from fairlead.report.numbers import percent, short, short_time
from fairlead.report.svg import standalone
from fairlead.simulate.capacity import Capacity, at_load, measure
from fairlead.simulate.experiments.base import H100, OURS, Options
from fairlead.simulate.experiments.draw import draw_lines
from fairlead.simulate.experiments.workloads import (
    AGENTS,
    CODING,
    CONVERSATION,
    DOC_QA,
    JUDGE,
    TREE,
    Recorded,
    generated,
    hot_prefix,
    kv_tokens,
    present,
)
from fairlead.simulate.runner import simulate
from fairlead.simulate.settings import GATEWAY, Settings
from fairlead.simulate.sweep.sample import redrawn_gaps
from fairlead.trace.model import Session, Trace
from fairlead.trace.transform import limit, surveyed
from fairlead.trace.workload import Workload

LOAD = 0.95
QUIET = 0.002
"""Of the maximum of the fleet, on one worker: a request is next to never there with another."""
ENDLESS = 1_000_000_000
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
CONSTANTS = {"SLOWED": "1/8", "READ": "1/500", "SEQUENCE": "200", "EVICTED": "2"}
HOT, REASONING = "hot prefix", "reasoning (deepseek-r1)"
DEEPSEEK = Recorded(
    REASONING,
    "servegen/deepseek-r1_and_m-large.tar.zst",
    "ServeGen's clients (github.com/alibaba/ServeGen)",
    "",
)
GENERATED = {DOC_QA: "", JUDGE: "", TREE: "", AGENTS: "steps=8"}
STEPS = ("LMetric", "linear", "lpm + marginal", "ours", "outputs known", "endless cache", "alone")
LINEAR = "linear:preset=production,alpha=0.7,beta=0.15,gamma=0.15"


class Source(NamedTuple):
    """A workload, and the fleet that serves it."""

    workload: Workload
    recorded: bool
    workers: int
    kv_tokens: int

    def trace(self, seed: int, requests: int) -> Trace:
        """Return ``requests`` requests of one seed: of a recording the first ones, at other times."""
        given = replace(self.workload, seed=seed, requests=0 if self.recorded else requests)
        trace = given.open()
        return redrawn_gaps(limit(trace, requests), seed) if self.recorded else trace

    def settings(self, order: str, policy: str, seed: int, topology: str = GATEWAY) -> Settings:
        """Return the fleet with these policies."""
        return Settings(
            order=order, policy=policy, seed=seed, topology=topology, engine=H100,
            workers=self.workers, kv_tokens=self.kv_tokens, interval_us=60_000_000,
        )  # fmt: skip


def sources(data: Path | None, requests: int) -> dict[str, Source]:
    """Return the workloads by name; recorded ones only where they are."""
    options = Options(data=data)
    found = {
        trace.name: Source(trace.workload(options, 1), True, 8, 0)
        for trace in present(options, (CONVERSATION, CODING))
    }
    for trace in present(options, (DEEPSEEK,)):
        source = replace(trace.workload(options, 1), options={"model": "deepseek-r1"})
        found[trace.name] = Source(source, False, 8, 0)
    for name, spec in GENERATED.items():
        pool = 0 if name == AGENTS else kv_tokens(name)
        found[name] = Source(generated(name, requests, 1, options=spec), False, 8, pool)
    folder = Path(gettempdir()) / f"fairlead-marginal-{os.getuid()}"
    found[HOT] = Source(Workload(source=str(hot_prefix(folder, requests))), True, 16, 0)
    return found


def maximum(source: Source, requests: int) -> Capacity:
    """Measure what the fleet serves of the workload, or read it from the disk."""
    return measure(source.trace(1, requests), source.settings("fcfs", "lmetric", 1), longest=requests)


def figures(trace: Trace, settings: Settings, capacity: Capacity, load: float = LOAD) -> dict[str, float]:
    """Simulate, and return what is compared."""
    run = simulate(at_load(trace, capacity, load), settings, load=load, capacity=capacity, reachable=0.0)
    found = summarise(run)
    keys = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "hit_rate")
    return {key: found[key] for key in keys}


# ---------------------------------------------------------------------- constants


def constants(source: Source, seeds: Sequence[int], requests: int) -> Iterator[dict[str, Any]]:
    """Yield an entry for each constant, factor and seed."""
    capacity = maximum(source, requests)
    for seed in seeds:
        trace = source.trace(seed, requests)
        settings = source.settings("lpm", "marginal", seed)
        plain = figures(trace, settings, capacity)
        for name in CONSTANTS:
            before = getattr(rule, name)
            for factor in FACTORS:
                setattr(rule, name, before * factor)
                try:
                    found = plain if factor == 1 else figures(trace, settings, capacity)
                finally:
                    setattr(rule, name, before)
                yield {"constant": name, "factor": factor, "seed": seed, "figures": found}


# ---------------------------------------------------------------------- limits


class LeastServiceQueue:
    """Waiting requests by the service they will have cost, which ``max_tokens`` tells here."""

    def __init__(self) -> None:
        self._items = ItemHeap()

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``."""
        assert isinstance(item, TrackedRequest)
        item.matched = matched
        self._items.put(item, -(item.extend + 2 * (item.request.max_tokens or 0)))

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``."""
        self._items.remove(item)

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return the cheapest request."""
        return self._items.head(fits, False)

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Ignore: what it costs is settled when it comes."""

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Ignore."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        self._items.check()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._items)


class LeastService(OrderingBase[LeastServiceQueue]):
    """An oracle: no real queue knows how long an answer will be."""

    name = "least_service"
    source = "shortest job first"
    summary = "The least service first, outputs known."
    params = ()
    uses_match = False

    def _new_queue(self, number: int, matched: object) -> LeastServiceQueue:  # noqa: ARG002 - one interface
        return LeastServiceQueue()


def telling(trace: Trace) -> Trace:
    """Return the trace with every request's output as its limit: what no policy may see else."""

    def sessions() -> Iterator[Session]:
        for session in trace.sessions():
            turns = [turn._replace(max_tokens=turn.output_tokens) for turn in session.turns]
            yield session._replace(turns=turns)

    return surveyed(trace, sessions, "outputs told", "every request tells the length of its answer")


def limits(source: Source, seeds: Sequence[int], requests: int) -> Iterator[dict[str, Any]]:
    """Yield an entry for each step and seed."""
    known: dict[str, Any] = ORDERINGS._classes  # noqa: SLF001 - it is no policy to be picked
    known.setdefault(LeastService.name, LeastService)
    capacity = maximum(source, requests)
    for seed in seeds:
        trace = source.trace(seed, requests)
        told = telling(trace)
        oracle = source.settings(LeastService.name, "marginal", seed)
        runs = {
            "LMetric": (trace, source.settings("fcfs", "lmetric", seed, "engine"), LOAD),
            "linear": (trace, source.settings("fcfs", LINEAR, seed, "engine"), LOAD),
            "lpm + marginal": (trace, source.settings("lpm", "marginal", seed), LOAD),
            "ours": (trace, source.settings(OURS.order, OURS.policy, seed), LOAD),
            "outputs known": (told, oracle, LOAD),
            "endless cache": (told, replace(oracle, kv_tokens=ENDLESS), LOAD),
            "alone": (trace, replace(oracle, order="fcfs", workers=1, kv_tokens=ENDLESS), QUIET),
        }
        for step, (what, settings, load) in runs.items():
            yield {"step": step, "seed": seed, "figures": figures(what, settings, capacity, load)}


# ---------------------------------------------------------------------- tables and drawings


def _ratio(entries: Sequence[Mapping[str, Any]], constant: str, factor: float, key: str) -> float:
    """Return the geometric mean over seeds of a figure over that with the constant as it is."""
    mine = [e for e in entries if e["constant"] == constant]
    plain = {e["seed"]: e["figures"][key] for e in mine if e["factor"] == 1}
    changed = [e for e in mine if e["factor"] == factor]
    return exp(mean(log(e["figures"][key] / plain[e["seed"]]) for e in changed))


def constants_table(rows: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> str:
    """Return a Markdown table of changes in percent."""
    heads = [f"{name} x {factor:g}" for name in CONSTANTS for factor in FACTORS if factor != 1]
    lines = ["| workload | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for workload, entries in rows.items():
        cells = [
            f"{_ratio(entries, name, factor, key) - 1:+.1%}".replace("-", "\u2212")
            for name in CONSTANTS
            for factor in FACTORS
            if factor != 1
        ]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def constants_charts(rows: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> dict[str, str]:
    """Return a drawing a constant: the figure against the factor, a line a workload."""
    found = {}
    for name, value in CONSTANTS.items():
        lines = {w: [(f, _ratio(entries, name, f, key)) for f in FACTORS] for w, entries in rows.items()}
        title = f"mean TTFT by {name} (1 is {value})"
        y = ("mean TTFT over that with the constant as it is, logarithmic", short, True)
        found[f"marginal-{name.lower()}"] = draw_lines(
            f"marginal-{name}", title, lines, (name, short, True), y
        )
    return found


def limits_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a Markdown table: mean TTFT, P99 TTFT and hits of each step."""
    lines = ["| workload | " + " | ".join(STEPS) + " |", "|---|" + "--:|" * len(STEPS)]
    for workload, entries in rows.items():
        cells = []
        for step in STEPS:
            mine = [e["figures"] for e in entries if e["step"] == step]
            ttft, tail, hits = (mean(f[k] for f in mine) for k in ("mean_ttft_ms", "p99_ttft_ms", "hit_rate"))
            cells.append(f"{short_time(ttft)}<br>{short_time(tail)}<br>{percent(hits, 1)}")
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(files: Sequence[Path], images: Path | None) -> None:
    """Print the tables of files that ``--json`` wrote; put drawings into ``images``."""
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            parts.setdefault(entry["part"], {}).setdefault(entry["workload"], []).append(entry)
    if "constants" in parts:
        for key, name in (("mean_ttft_ms", "mean TTFT"), ("mean_e2el_ms", "mean end-to-end time")):
            print(f"{name}, change:\n\n{constants_table(parts['constants'], key)}\n")
        for name, svg in constants_charts(parts["constants"], "mean_ttft_ms").items() if images else ():
            assert images is not None
            (images / f"{name}.svg").write_text(standalone(svg), encoding="utf-8")
    if "limits" in parts:
        print(limits_table(parts["limits"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("constants", "limits", "draw"))
    parser.add_argument("files", nargs="*", type=Path, help="draw: what --json wrote")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("FAIRLEAD_DATA"), help="folder with traces/"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds from 1 on")
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--workloads", default="", help="only these, with commas")
    parser.add_argument("--json", type=Path, help="append entries to this file, one a line")
    parser.add_argument("--images", type=Path, help="draw: folder for drawings")
    args = parser.parse_args()
    if args.part == "draw":
        draw(args.files, args.images)
        return
    known = sources(Path(args.data) if args.data else None, args.requests)
    chosen = args.workloads.split(",") if args.workloads else list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"no workload {', '.join(unknown)} (there are: {', '.join(known)})")
    make = constants if args.part == "constants" else limits
    for name in chosen:
        for entry in make(known[name], range(1, args.seeds + 1), args.requests):
            line = json.dumps({"part": args.part, "workload": name, **entry})
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            else:
                print(line, flush=True)
        print(f"{name}: done", file=sys.stderr)


if __name__ == "__main__":
    main()
