"""The cells of E7: clients that keep requests open, few or many, and the figures of what each gets.

Heavy clients keep far more open than they are owed. Light ones keep about what they are owed, twice as many,
or two with so much think time that they want less than they are owed. All requests are alike (415 prompt and
100 output tokens on average, nothing shared), so that slots and service are shared alike.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fairlead.simulate.experiments.base import (
    H100,
    OURS,
    CellFigures,
    Contender,
    Options,
    Planned,
    papers_dlpm,
    planned,
)
from fairlead.simulate.experiments.workloads import DOC_QA
from fairlead.simulate.settings import GATEWAY
from fairlead.trace.loops import EVERYONE
from fairlead.trace.model import Loop
from fairlead.trace.workload import Workload

ALIKE: Final = "shared-prefix:shared_tokens=0,unique_tokens=415,output_tokens=100,spread=0.2"
"""Requests as in the measurements on the gateway; some are longer than others, as there."""
ALONE_S: Final = 0.8
"""About how long such a request takes by itself: 100 output tokens of some 8 ms."""


def _ours(label: str, order: str) -> Contender:
    return Contender(label, order, OURS.policy, GATEWAY)


PRIORITY = _ours("light first", "priority")
"""Serves the light client whenever it waits: what no order can beat without keeping slots free."""
SWEPT = _ours("DLPM", "dlpm")
"""Whose quantum is swept."""
ORDERS = (
    _ours("FCFS", "fcfs"),
    _ours("LPM", "lpm"),
    _ours("k-LPM", "k_lpm"),
    _ours("PLAS", "plas"),
    _ours("DRR", "drr"),
    _ours("VTC", "vtc:scope=fleet"),
    _ours("DLPM, as published", papers_dlpm()),
    _ours("DLPM, Q 1k", "dlpm:quantum=1000"),
    OURS,
)
"""All with our routing and the queue in the gateway: what differs is the order."""
_UNALIKE = tuple(one for one in ORDERS if one.label not in ("LPM", "k-LPM", "PLAS"))
"""Without those that serve by arrival where nothing is shared and no request belongs to a session."""
ALONE = _ours("alone", "fcfs")
RESERVED, RESERVED_THINKS = _ours("slots kept", "fcfs"), _ours("slots kept, thinks 1 s", "fcfs")

TABLE, FLOOR, CROWD, DOCUMENTS = "two clients", "floor", "crowd", "documents"
WAITING, BY_ITSELF = "waiting", "alone"
QUANTA, LOCALITY, TURNS, TURNS_LOCALITY = "quantum", "locality", "turn", "locality by turn"
ROWS = ((4, 2), (4, 4), (8, 8))
"""Slots, and what the light client keeps open beside 50 of the heavy one's."""
FLOOR_SLOTS = (2, 4, 8, 16, 32)
SWEEP = tuple(512 * 2**i for i in range(8))
"""Quanta from 512 to 64k."""
TURN = (1, 2, 3, 4, 6, 8, 16)
"""Requests of median size that a quantum pays for."""
SLOTS: Final = 8
HEAVY = (1, 5, 20, 50)
WORKERS = (1, 2, 4, 8)
EVEN, DOUBLE, THINKS, RESTS, LIGHT = "even", "double", "thinks", "rests", "light"
WANTS = {THINKS: 0.8, RESTS: 0.5}
"""Shares of what they are owed that light clients want who think between requests."""


class Crowd:
    """Heavy clients and light ones on a fleet, and what each keeps open."""

    def __init__(self, heavy: int, slots: int, lights: Sequence[str]) -> None:
        self.heavy = heavy
        self.slots = slots
        self.level = slots / (heavy + len(lights))
        """Slots of each if all want as many."""
        even = max(1, int(self.level))
        most = (50 if heavy <= 5 else 8) * max(1, slots // SLOTS)
        kinds = {EVEN: Loop(even), DOUBLE: Loop(2 * even)}
        for kind, share in WANTS.items():
            think_s = 2 * even * ALONE_S / (share * self.level) - ALONE_S
            kinds[kind] = Loop(2 * even, round(1e6 * max(0.5, think_s)))
        self.loops = {f"client-{i}": Loop(most) for i in range(heavy)}
        self.loops |= {f"client-{heavy + i}": kinds[kind] for i, kind in enumerate(lights)}


def _alike(loops: Mapping[str, Loop], seed: int, weights: Mapping[str, float] | None = None) -> Workload:
    clients = len(loops)
    return Workload(
        source=ALIKE, requests=max(600, 40 * clients), clients=clients, seed=seed, concurrency=loops,
        weights=weights or {},
    )  # fmt: skip


def _cell(
    part: str, name: str, one: Contender, workload: Workload, seconds: float, slots: int, *, workers: int = 1,
    x: float | None = None,
) -> Planned:  # fmt: skip
    return planned(
        part, name, one, workload, load=0.0, workers=workers, engine=H100, seed=workload.seed, x=x,
        max_num_seqs=slots, until_us=round(1e6 * seconds),
    )  # fmt: skip


def _two(count: int) -> dict[str, Loop]:
    return {"client-0": Loop(50), "client-1": Loop(count)}


def _named(slots: int, count: int) -> str:
    return f"{slots} slots, light opens {count}"


def table(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return two clients, the heavy one with 50 requests open."""
    seconds = 20 if options.quick else 90
    return [
        _cell(TABLE, _named(slots, count), one, _favoured(_two(count), seed, one), seconds, slots)
        for slots, count in (ROWS[:1] if options.quick else ROWS)
        for one in (*ORDERS, PRIORITY)
        for seed in options.seeds
    ]


def _favoured(loops: Mapping[str, Loop], seed: int, one: Contender) -> Workload:
    """Return the workload; for strict priority, the last client, the light one, has a higher weight.

    It is higher by next to nothing: strict priority needs no more, and what is owed stays the same.
    """
    return _alike(loops, seed, {list(loops)[-1]: 1.001} if one is PRIORITY else None)


def floor(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return a light client that always goes first, and one by itself on slots that are kept for it."""
    seconds = 20 if options.quick else 90
    found = []
    for slots in FLOOR_SLOTS[1:2] if options.quick else FLOOR_SLOTS:
        half = slots // 2
        for seed in options.seeds:
            first = _favoured(_two(half), seed, PRIORITY)
            found.append(_cell(FLOOR, FLOOR, PRIORITY, first, seconds, slots, x=slots))
            for think_us in (0, 1_000_000):
                kept = RESERVED_THINKS if think_us else RESERVED
                alone = _alike({"client-0": Loop(half, think_us)}, seed)
                found.append(_cell(FLOOR, kept.label, kept, alone, seconds, half, x=slots))
    return found


def quanta(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return quanta from 512 to 64k, and quanta of a number of requests: light clients, and locality."""
    found: list[Planned] = []
    thinking = Crowd(20, SLOTS, (THINKS,))
    swept = [(QUANTA, LOCALITY, "quantum", value) for value in (SWEEP[::4] if options.quick else SWEEP)]
    swept += [(TURNS, TURNS_LOCALITY, "turn", value) for value in (TURN[:1] if options.quick else TURN)]
    for part, local, name, value in swept:
        one = SWEPT._replace(order=f"{SWEPT.order}:{name}={value}")
        for seed in options.seeds:
            found += [
                _cell(
                    part, _named(slots, count), one, _alike(_two(count), seed),
                    20 if options.quick else 60, slots, x=value,
                )
                for slots, count in (ROWS[:1] if options.quick else ROWS)
            ]  # fmt: skip
            if not options.quick:
                crowded = _alike(thinking.loops, seed)
                found.append(_cell(part, _crowd_name(THINKS), one, crowded, 150, SLOTS, x=value))
                found.append(_documents(local, one, seed, 200, value))
    return found


def documents(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return eight clients with 8 questions open each, where the order decides what is found cached."""
    seconds = 30 if options.quick else 200
    return [_documents(DOCUMENTS, one, seed, seconds) for one in ORDERS for seed in options.seeds]


def _documents(part: str, one: Contender, seed: int, seconds: float, x: float | None = None) -> Planned:
    workload = Workload(source=DOC_QA, requests=1_000, clients=8, seed=seed, concurrency={EVERYONE: Loop(8)})
    return _cell(part, DOC_QA, one, workload, seconds, 2 * SLOTS, x=x)


def crowd(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return one to fifty heavy clients with a light one of each kind, on one to eight workers."""
    if options.quick:
        sizes = [(1, 5)]
    else:
        sizes = [(workers, heavy) for workers in WORKERS for heavy in (HEAVY if workers == 1 else HEAVY[::2])]
    found = []
    for workers, heavy in sizes:
        made = Crowd(heavy, SLOTS * workers, (EVEN, DOUBLE, THINKS))
        seconds = 20 if options.quick else 120 if workers == 1 else 240 / workers
        name = f"{workers} {'worker' if workers == 1 else 'workers'}, {heavy} heavy"
        found += [
            _cell(CROWD, name, one, _alike(made.loops, seed), seconds, SLOTS, workers=workers, x=heavy)
            for one in _UNALIKE
            for seed in options.one_seed
        ]
    return found


def waiting(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return a light client beside 20 heavy ones on 8 slots, and alone with the slots that it is owed."""
    seconds = 20 if options.quick else 300
    found = []
    for kind in (THINKS,) if options.quick else (DOUBLE, THINKS, RESTS):
        made = Crowd(20, SLOTS, (kind,))
        name, owed = _crowd_name(kind), max(1, int(made.level))
        for seed in options.seeds:
            alone = _alike({"client-0": list(made.loops.values())[-1]}, seed)
            found.append(_cell(BY_ITSELF, name, ALONE, alone, seconds, owed))
            found += [
                _cell(WAITING, name, one, _favoured(made.loops, seed, one), seconds, SLOTS)
                for one in (*_UNALIKE, PRIORITY)
            ]
    return found


def _crowd_name(kind: str) -> str:
    how = {DOUBLE: "never thinks", THINKS: "wants 4/5 of its share", RESTS: "wants half of its share"}
    return f"20 heavy on {SLOTS} slots, light opens 2, {how[kind]}"


def figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what heavy and light clients got of what they are owed, and what the light ones waited.

    Heavy are those with the most open; of the light ones whoever thinks, and of the others whoever has fewer
    open ("even"), are told apart. A client by itself counts as light.
    """
    loops = result["closed_loops"]
    if loops is None:
        return {}
    clients = loops["clients"]
    most = max(client["open"] for client in clients)
    heavy = [c for c in clients if c["open"] == most] if len(clients) > 1 else []
    light = sorted((c for c in clients if c not in heavy), key=lambda c: (c["pause_s"] > 0.1, c["open"]))
    found: dict[str, float | None] = {"most_over_least": loops["most_over_least"]}
    if len(clients) == 1:
        found["busy"] = clients[0]["wanted_slots"] / clients[0]["open"]
    for name, client in zip((LIGHT,) if len(light) == 1 else (EVEN, DOUBLE, THINKS), light, strict=False):
        found[f"{name}_ratio"] = client["ratio"]
        found[f"{name}_ttft_mean"] = client["mean_ttft_ms"]
        found[f"{name}_ttft_p99"] = client["p99_ttft_ms"]
    if heavy:
        found["heavy_ratio"] = statistics.fmean(client["ratio"] for client in heavy)
        if len(light) == 1 and light[0]["service_share"]:
            each = statistics.fmean(client["service_share"] for client in heavy)
            found["heavy_over_light"] = each / light[0]["service_share"]
    return found
