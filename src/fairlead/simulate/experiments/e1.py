"""E1: DLPM on one worker, with a client that misbehaves."""

from collections.abc import Sequence

from fairlead.report.numbers import digits, short
from fairlead.report.tables import Table
from fairlead.simulate.experiments.base import (
    DLPM,
    DRR,
    FCFS,
    K_LPM,
    LPM,
    OURS,
    PAPER_GPU,
    PLAS,
    VTC,
    CellFigures,
    Contender,
    Experiment,
    Options,
    Planned,
    papers_dlpm,
    planned,
)
from fairlead.simulate.experiments.draw import scatter
from fairlead.simulate.experiments.figures import (
    BOUND,
    GAP,
    JAIN,
    SERVICE,
    TOKENS,
    VICTIMS50,
    VICTIMS99,
    VICTIMS_E2E50,
    VICTIMS_E2E99,
    WORST99,
    bounds,
    grid,
    mean,
    names,
    ratio,
    select,
    span,
)
from fairlead.simulate.experiments.workloads import PAPER, generated, kv_tokens

LOAD = 0.9
"""What the well-behaved clients make up."""
SHARE = 1.5
"""What the misbehaving one adds, as a share of their demand: 2.25 times the maximum in all."""
RIVALS = (K_LPM, PLAS, DRR)
"""Of other papers and projects; on the main part only."""
QUANTA = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
MAIN = "one worker"
HELD = "in the gateway"
SWEEP = "quantum"
LARGE = "whole KV pool"
ATTACKS = ("more", "longer")


def cells(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return all cells."""
    found: list[Planned] = []
    orders = (FCFS, LPM, VTC, DLPM, OURS)
    for name in PAPER[2:3] if options.quick else PAPER:
        for attack in ATTACKS:
            found += _on(options, MAIN, name, attack, (*orders, *RIVALS))
        if not options.quick:
            found += _on(options, HELD, name, "more", [c.held() for c in orders[:-1]])
            if kv_tokens(name):
                found += _on(options, LARGE, name, "more", orders, large=True)
        for quantum in QUANTA[::4] if options.quick else QUANTA:
            one = DLPM._replace(order=papers_dlpm(quantum))
            found += _on(options, SWEEP, name, "more", [one], x=quantum)
    return found


def _on(
    options: Options,
    part: str,
    name: str,
    attack: str,
    contenders: Sequence[Contender],
    *,
    x: float | None = None,
    large: bool = False,
) -> list[Planned]:
    requests = 250 if options.quick else 1_500
    return [
        planned(
            part,
            f"{name}, {attack}",
            contender,
            generated(name, requests, seed, attack=f"{attack}:{SHARE:g}"),
            load=LOAD,
            workers=1,
            engine=PAPER_GPU,
            kv_tokens=0 if large else kv_tokens(name),
            seed=seed,
            x=x,
        )
        for contender in contenders
        for seed in options.seeds
    ]


def seen(entries: Sequence[CellFigures]) -> list[str]:
    """Tell DLPM's throughput against VTC's, its gap, and what locality alone would give."""
    rows = names(select(entries, part=MAIN), "workload")

    def by_row(above: str, below: str) -> dict[str, float | None]:
        return {row: ratio(entries, TOKENS, above, below, part=MAIN, workload=row) for row in rows}

    slower = {row: ratio(entries, VICTIMS99, "DLPM", "VTC", part=MAIN, workload=row) for row in rows}
    lost = [row for row, value in slower.items() if value is not None and value > 1]
    return [
        f"DLPM's throughput over VTC's: {span(by_row('DLPM', 'VTC'))}.",
        f"DLPM's throughput over LPM's, which is fair to nobody: {span(by_row('DLPM', 'LPM'))}.",
        bounds(select(entries, part=MAIN)),
        f"Victims' P99 TTFT under DLPM over VTC's: {span(slower)}."
        + (f" DLPM loses on {'; '.join(lost)}." if lost else ""),
        f"Our ordering's throughput over DLPM's: {span(by_row('ours', 'DLPM'))}.",
        *_rivals_words(entries, rows),
        *_pareto_words(entries),
    ]


def _rivals_words(entries: Sequence[CellFigures], rows: Sequence[str]) -> list[str]:
    """Set each of ``RIVALS`` beside DLPM; nothing of those that did not run."""
    said = []
    for rival in (one.label for one in RIVALS if one.label in names(entries, "contender")):
        parts = []
        for measure in (TOKENS, GAP, VICTIMS99):
            by = {row: ratio(entries, measure, rival, "DLPM", part=MAIN, workload=row) for row in rows}
            parts.append(f"{measure.name} {span(by)}")
        said.append(f"{rival} over DLPM: {'; '.join(parts)}.")
    return said


def _pareto_words(entries: Sequence[CellFigures]) -> list[str]:
    said = []
    for row in names(select(entries, part=SWEEP), "workload"):
        mine = select(entries, part=SWEEP, workload=row)
        ends = [select(mine, x=x) for x in (min(names(mine, "x")), max(names(mine, "x")))]
        tokens = [mean(end, TOKENS) or 0.0 for end in ends]
        gaps = [digits(mean(end, GAP)) for end in ends]
        quanta = [short(end[0]["x"]) for end in ends]
        said.append(
            f"Q from {quanta[0]} to {quanta[1]} on {row}: throughput {tokens[1] / tokens[0] - 1:+.0%}, worst"
            f" gap {gaps[0]} to {gaps[1]} units."
        )
    return said


def tables(entries: Sequence[CellFigures]) -> list[Table]:
    """Return grids of workloads by contenders, then the sweep."""
    found = [grid(entries, MAIN, TOKENS, against="VTC", caption="Throughput, tokens/s, against VTC")]
    found += [grid(entries, MAIN, m) for m in (SERVICE, GAP, BOUND, JAIN)]
    latencies = (VICTIMS50, VICTIMS99, VICTIMS_E2E50, VICTIMS_E2E99, WORST99)
    found += [grid(entries, MAIN, m, against="VTC", caption=f"{m.name}, against VTC") for m in latencies]
    if select(entries, part=HELD):
        held = "The papers' orderings in our gateway instead of the engine"
        found += [grid(entries, HELD, m, caption=f"{held}: {m.name}") for m in (TOKENS, VICTIMS99, GAP)]
        large = "The same with a KV pool that holds all that is shared (449,000 tokens)"
        found += [grid(entries, LARGE, TOKENS, against="VTC", caption=f"{large}: tokens/s, against VTC")]
    for row in names(select(entries, part=SWEEP), "workload"):
        mine = select(entries, workload=row)
        found.append(_sweep(mine, row))
    return found


def _sweep(entries: Sequence[CellFigures], row: str) -> Table:
    table = Table(
        f"Sweep of Q: {row}", ["Q", "throughput, tokens/s", "worst gap", "Jain", "victims' P99 TTFT"]
    )
    for measure in (TOKENS, GAP, JAIN, VICTIMS99):
        one = grid(entries, SWEEP, measure, by="x")
        for at, cells_ in enumerate(one.rows):
            if measure is TOKENS:
                table.rows.append([cells_[0]])
            table.rows[at].append(cells_[1])
    return table


def charts(entries: Sequence[CellFigures]) -> dict[str, str]:
    """Return fairness against throughput, a chart a workload."""
    found = {}
    for row in names(select(entries, part=SWEEP), "workload"):
        mine = select(entries, part=SWEEP, workload=row)
        points = [_point(select(mine, x=x), f"Q {short(x)}") for x in names(mine, "x")]
        groups = {"DLPM": points}
        others = select(entries, part=MAIN, workload=row)
        for label in ("VTC", "LPM", "ours"):
            groups[label] = [_point(select(others, contender=label), label)]
        found[f"{row}: worst gap against throughput"] = scatter(
            f"pareto {row}",
            f"{row}: fairness against throughput",
            groups,
            ("prompt and output tokens/s, more is better", short, False),
            ("worst service gap, units, logarithmic, lower is fairer", short, True),
        )
    return {name: svg for name, svg in found.items() if svg}


def _point(group: Sequence[CellFigures], text: str) -> tuple[float, float, str]:
    return mean(group, TOKENS) or 0.0, mean(group, GAP) or 1.0, text


E1 = Experiment(
    name="e1",
    title="DLPM on one worker",
    source="[DLPM] arXiv 2501.14312",
    paper="DLPM reaches up to 2.87 times VTC's throughput with service gaps inside its bound (Llama 3.1"
    " 8B and 3.2 3B on A10G and A100, SGLang; long-document QA on LooGLE, tree of thoughts on GSM8K, LLM as"
    " a judge, multi-turn chat; one client sends more or longer requests).",
    why=(
        "DLPM gains what prefix reuse is worth. On long documents, VTC takes clients in turn and knows no "
        "cache, so each client's document evicts the one before it. DLPM stays with a client, and its "
        "document, for one quantum. How much that gives depends on how many documents compete for the KV "
        "pool; the paper's 2.87 is its best case.\n\n"
        "On trees and judges, prompts are shorter in relation to their answers, so a hit saves less. In "
        "chats, the reuse comes after a pause that the cache may not survive under any order, and DLPM is "
        "level with VTC or a little behind it. With the whole KV pool of an A100, the order changes "
        "almost nothing on trees and chats, and less on judges. That is why these workloads run with a "
        "pool of 64,000 tokens.\n\n"
        "DLPM loses in the victims' tail on small requests. Inside a client it serves the longest match "
        "first, so a client's own requests without a match wait, and one quantum is many small requests. "
        "Ours loses less there, and on two of the four rows it is ahead of VTC: its quantum is eight "
        "requests of the workload, of equal matches the shortest prompt goes first and long ones age, and "
        "a client whose requests all run goes first when it comes back.\n\n"
        "VTC exceeds its bound on documents because it charges prompts in full, while cached tokens cost "
        "nothing: equal charges are then unequal service.\n\n"
        "The quantum Q: nearly all of the throughput is there at the smallest quantum, because the order "
        "inside a client is by longest match anyway. The gap grows with Q."
    ),
    stages=(cells,),
    seen=seen,
    tables=tables,
    charts=charts,
)
