"""E2: D2LPM on one to eight workers, with a client that misbehaves."""

from collections.abc import Sequence

from fairlead.report.numbers import short
from fairlead.report.tables import Table
from fairlead.simulate.experiments.base import (
    D2LPM,
    LPM,
    OURS,
    PAPER_GPU,
    PREBLE,
    PREBLE_LPM,
    VTC,
    CellFigures,
    Contender,
    Experiment,
    Options,
    Planned,
    planned,
)
from fairlead.simulate.experiments.draw import curves
from fairlead.simulate.experiments.figures import (
    BOUND,
    GAP,
    HIT,
    JAIN,
    TOKENS,
    VICTIMS_E2E50,
    VICTIMS_E2E99,
    WORST99,
    bounds,
    grid,
    names,
    over,
    select,
    span,
    swept,
)
from fairlead.simulate.experiments.workloads import (
    CHAT,
    CLIENTS,
    DOC_QA,
    JUDGE,
    PAPER,
    SHORTER,
    TREE,
    generated,
    kv_tokens,
)

LOAD, SHARE = 0.9, 1.5
"""The well-behaved clients' share of the maximum, and what one more adds to it: 2.25 times the maximum."""
REQUESTS = {DOC_QA: 200, TREE: 600, JUDGE: 300, CHAT: 600}
"""Of the well-behaved clients, a worker: enough that trees and chats, which pause, fill it."""
WORKERS = (1, 2, 4, 8)
MOST = 4
"""Workers of the sweeps."""
QUANTA = (4_000, 16_000, 64_000, 256_000, 1_000_000)
CLIENT_COUNTS = (5, 10, 20, 50)
BY_WORKERS, LONGER, SWEEP, BY_CLIENTS = "by workers", "longer requests", "Qw", "by clients"
CONTENDERS = (
    LPM._replace(label="round robin + LPM"),
    VTC._replace(label="round robin + VTC"),
    PREBLE,
    PREBLE_LPM,
    D2LPM,
    D2LPM.held(),
    OURS,
)
PREBLES = (PREBLE.label, PREBLE_LPM.label)


def cells(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return all cells."""
    quick = options.quick
    found: list[Planned] = []
    for name in (JUDGE,) if quick else PAPER:
        for workers in (2,) if quick else WORKERS:
            found += _on(options, BY_WORKERS, f"{name}, {workers} workers", name, "more", CONTENDERS, workers)
        if not quick:
            found += _on(options, LONGER, name, name, "longer", CONTENDERS, MOST)
        for quantum in QUANTA[::4] if quick else QUANTA:
            one = D2LPM._replace(policy=f"{D2LPM.policy}:quantum={quantum}")
            workers = 2 if quick else MOST
            found += _on(options, SWEEP, name, name, "more", [one], workers, x=quantum)
    for name in () if quick else (DOC_QA, CHAT):
        for clients in CLIENT_COUNTS:
            few = (PREBLE, D2LPM, OURS)
            found += _on(options, BY_CLIENTS, name, name, "more", few, MOST, x=clients, clients=clients)
    return found


def _on(
    options: Options,
    part: str,
    row: str,
    name: str,
    attack: str,
    contenders: Sequence[Contender],
    workers: int,
    *,
    x: float | None = None,
    clients: int = CLIENTS,
) -> list[Planned]:
    requests = (80 if options.quick else REQUESTS[name]) * workers
    seeds = options.one_seed if part in (SWEEP, BY_CLIENTS) else options.seeds
    return [
        planned(
            part,
            row,
            contender,
            generated(
                name,
                requests,
                seed,
                attack=f"{attack}:{SHARE:g}",
                clients=clients,
                options=SHORTER.get(name, ""),
            ),
            load=LOAD,
            workers=workers,
            engine=PAPER_GPU,
            kv_tokens=kv_tokens(name),
            seed=seed,
            x=workers if part == BY_WORKERS else x,
        )
        for contender in contenders
        for seed in seeds
    ]


def seen(entries: Sequence[CellFigures]) -> list[str]:
    """Tell how the victims fare under D2LPM, against both Prebles, and under ours, against both D2LPMs."""
    found = []
    for rival in PREBLES:
        for measure in (VICTIMS_E2E50, VICTIMS_E2E99):
            factors = over(entries, BY_WORKERS, measure, D2LPM.label, [rival])
            lower = {row: 1 / value for row, value in factors.items() if value}
            worse = sum(factor < 1 for factor in lower.values())
            found.append(
                f"{measure.name} under D2LPM is lower than under {rival} by {span(lower)};"
                f" it is higher on {worse} of {len(lower)} rows."
            )
    for measure in (VICTIMS_E2E50, VICTIMS_E2E99):
        ours = over(entries, BY_WORKERS, measure, "ours", [D2LPM.label, D2LPM.held().label])
        found.append(f"{measure.name} under ours over the better D2LPM's: {span(ours)}.")
    found.append(bounds(entries))
    for label in (D2LPM.label, "ours"):
        tokens = over(entries, BY_WORKERS, TOKENS, label, PREBLES, high=True)
        found.append(f"Throughput of {label} over the better Preble's: {span(tokens)}.")
    return found


def tables(entries: Sequence[CellFigures]) -> list[Table]:
    """Return grids of workloads and workers by contenders, and the sweeps."""
    found = []
    for part in (BY_WORKERS, LONGER):
        if not select(entries, part=part):
            continue
        what = "one client sends more" if part == BY_WORKERS else f"one client sends longer, {MOST} workers"
        for measure in (VICTIMS_E2E50, VICTIMS_E2E99, TOKENS):
            caption = f"{measure.name}, against Preble; {what}"
            found.append(grid(entries, part, measure, against=PREBLE.label, caption=caption))
    found += [grid(entries, BY_WORKERS, m) for m in (WORST99, HIT, GAP, BOUND, JAIN)]
    for row in names(select(entries, part=SWEEP), "workload"):
        found.append(swept(select(entries, workload=row), SWEEP, f"Sweep of Qw: {row}", "Qw", _SWEPT))
    for row in names(select(entries, part=BY_CLIENTS), "workload"):
        mine = select(entries, workload=row)
        for measure in (VICTIMS_E2E50, VICTIMS_E2E99):
            caption = f"{row}: {measure.name} by well-behaved clients, against Preble"
            found.append(
                grid(mine, BY_CLIENTS, measure, by="x", head="clients", against=PREBLE.label, caption=caption)
            )
    return found


_SWEPT = (TOKENS, HIT, GAP, VICTIMS_E2E50, VICTIMS_E2E99)


def charts(entries: Sequence[CellFigures]) -> dict[str, str]:
    """Return the victims' tail by workers, and by clients."""
    found = {}
    for name in PAPER:
        mine = [
            {**e, "workload": name}
            for e in select(entries, part=BY_WORKERS)
            if e["workload"].startswith(f"{name},")
        ]
        found[f"{name}: victims' P99 E2E by workers"] = curves(
            mine, BY_WORKERS, VICTIMS_E2E99, name, "workers", log_x=True
        )
    for row in names(select(entries, part=BY_CLIENTS), "workload"):
        found[f"{row}: victims' P99 E2E by clients"] = curves(
            entries, BY_CLIENTS, VICTIMS_E2E99, row, "well-behaved clients", log_x=True
        )
    return {name: svg for name, svg in found.items() if svg}


E2 = Experiment(
    name="e2",
    title=f"D2LPM on {short(WORKERS[0])} to {short(WORKERS[-1])} workers",
    source="[DLPM] arXiv 2501.14312",
    paper="Under D2LPM the latency of well-behaved clients is up to 7.18 times lower than under Preble"
    " (Llama 3.1 8B, 1 to 8 A100, SGLang; the workloads of E1).",
    why=(
        "Preble's engines queue in order of arrival, so one client's backlog stands before everyone. "
        "There D2LPM's victims gain most. How much depends on the length of that backlog: the paper's "
        "7.18 is a figure of its overload, as ours are of this one.\n\n"
        "With engines that order by longest match, Preble has all of the reuse and a good median, but no "
        "guarantee. A victim's tail depends on who shares most, because that client goes first.\n\n"
        "D2LPM loses where placement matters more than order. It sends a request to workers where the "
        "client has credit, whatever waits there. A small Qw sends requests away from their prefix, which "
        "means less reuse and less throughput than Preble. A large Qw lets the loads of workers drift "
        "apart (see the sweep).\n\n"
        "In trees and chats, clients wait for their own answers. So one misbehaving client cannot build "
        "much of a backlog, and there is little to gain.\n\n"
        "The bound of separate deficits is N times that of one worker. It does not cover a client that "
        "waits at one worker while others are served elsewhere. With placement by prefix, clients of the "
        "document workload are on few workers each, and D2LPM exceeds the bound. VTC exceeds its own "
        "bound because it charges cached tokens."
    ),
    stages=(cells,),
    seen=seen,
    tables=tables,
    charts=charts,
)
