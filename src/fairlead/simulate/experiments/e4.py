"""E4: ours against all of them, also under attack, and what shared deficits are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from fairlead.report.numbers import percent
from fairlead.report.tables import Table
from fairlead.simulate.experiments.base import (
    BALANCE_ROUTE,
    CACHE_AWARE,
    D2LPM,
    DUALMAP,
    H100,
    LMETRIC,
    OURS,
    PREBLE,
    PREBLE_LPM,
    VLLM,
    CellFigures,
    Contender,
    Experiment,
    Options,
    Planned,
    planned,
)
from fairlead.simulate.experiments.draw import curves
from fairlead.simulate.experiments.e3 import Made
from fairlead.simulate.experiments.figures import (
    BOUND,
    GAP,
    HIT,
    TOKENS,
    TPOT,
    TTFT,
    TTFT99,
    VICTIMS,
    VICTIMS99,
    Measure,
    grid,
    names,
    over,
    select,
    span,
)
from fairlead.simulate.experiments.tuning import (
    AT_LOAD,
    FEW,
    SPECS,
    TUNED,
    TUNING,
    TUNING_SEED,
    contender,
    search_table,
    tuned,
)
from fairlead.simulate.experiments.workloads import (
    AGENTS,
    CODING,
    CONVERSATION,
    JUDGE,
    PAPER,
    SHORTER,
    drawn,
    generated,
    kv_tokens,
    missing,
    present,
)

LOAD = 0.95
ATTACKED_LOAD = 0.6
ADDED = 0.8
"""What the attacker adds, as a share of the maximum."""
RECORDED = (CONVERSATION, CODING)
PEACE, ATTACK, GAPS = "everything", "attack", "shared deficits"
D2LPM_LARGE = D2LPM._replace(label="D2LPM, Qw 1M", policy="d2lpm:quantum=1000000")
RIVALS = (
    PREBLE,
    PREBLE_LPM,
    DUALMAP,
    LMETRIC,
    LMETRIC.held(),
    D2LPM,
    D2LPM.held(),
    D2LPM_LARGE,
)
OTHERS = (VLLM, CACHE_AWARE, BALANCE_ROUTE, *RIVALS)
"""Also those that come nowhere near; not on recorded traces, which take long."""
D2LPMS = tuple(c.label for c in (D2LPM, D2LPM.held(), D2LPM_LARGE))
LMETRICS = tuple(c.label for c in (LMETRIC, LMETRIC.held()))
PREBLES = tuple(c.label for c in (PREBLE, PREBLE_LPM))
GAP_QUANTUM = 4_096
WORKERS = (1, 2, 4, 8)


def _workers(options: Options) -> int:
    return 2 if options.quick else 8


def _sources(options: Options) -> dict[str, tuple[bool, int, Made]]:
    """Return workloads by name: whether recorded, the KV pool, and how one is made from a seed."""
    quick = options.quick
    found: dict[str, tuple[bool, int, Made]] = {
        trace.name: (True, 0, partial(trace.workload, options, requests=500 if quick else 0))
        for trace in present(options, RECORDED[:1] if quick else RECORDED)
    }
    for name in (JUDGE,) if quick else (*PAPER, AGENTS):
        made = partial(generated, name, 300 if quick else 3_200, options=SHORTER.get(name, ""))
        found[name] = (False, 0 if name == AGENTS else kv_tokens(name), made)
    return found


def tuning(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return the search for a linear score."""
    specs = FEW if options.quick else SPECS[::2]
    return [
        planned(
            TUNING, name, contender(spec), make(seed=TUNING_SEED), load=AT_LOAD, workers=_workers(options),
            engine=H100, seed=TUNING_SEED, kv_tokens=kv, sample=drawn(recorded),
        )
        for name, (recorded, kv, make) in _sources(options).items()
        for spec in specs
    ]  # fmt: skip


def everything(options: Options, entries: Sequence[CellFigures]) -> list[Planned]:
    """Return all policies on all workloads, and the recorded ones under attack."""
    found: list[Planned] = []
    for name, (recorded, kv, make) in _sources(options).items():
        best = tuned(entries, name)
        on = partial(_on, options, name, make, recorded, kv)
        found += on((*(RIVALS if recorded else OTHERS), best, OURS), PEACE, LOAD)
        if recorded or options.quick:
            found += on((*RIVALS, best, OURS), ATTACK, ATTACKED_LOAD, f"more:{ADDED / ATTACKED_LOAD:.4f}")
    return found


def _on(
    options: Options, name: str, make: Made, recorded: bool, kv: int, contenders: Sequence[Contender],
    part: str, load: float, attack: str = "",
) -> list[Planned]:  # fmt: skip
    return [
        planned(
            part, name, one, replace(make(seed=seed), attack=attack), load=load, workers=_workers(options),
            engine=H100, seed=seed, kv_tokens=kv, sample=drawn(recorded),
        )
        for one in contenders
        for seed in options.seeds
    ]  # fmt: skip


def shared(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
    """Return DLPM with deficits of each worker's own and with shared ones, on one to eight workers."""
    found = []
    for workers in (2,) if options.quick else WORKERS:
        for policy in ("round_robin", "lmetric", OURS.policy):
            for scope in ("worker", "fleet"):
                order = f"dlpm:scope={scope},quantum={GAP_QUANTUM}"
                one = Contender(f"{scope}: {policy}", order, policy, OURS.topology)
                found += [
                    planned(
                        GAPS,
                        JUDGE,
                        one,
                        generated(
                            JUDGE,
                            (100 if options.quick else 500) * workers,
                            seed,
                            attack=f"more:{ADDED / ATTACKED_LOAD:.4f}",
                        ),
                        load=ATTACKED_LOAD,
                        workers=workers,
                        engine=H100,
                        kv_tokens=kv_tokens(JUDGE),
                        seed=seed,
                        x=workers,
                    )
                    for seed in options.seeds
                ]
    return found


def seen(entries: Sequence[CellFigures]) -> list[str]:
    """Tell ours against the best of each rival, everywhere and under attack."""
    rivals = {
        "LMetric": LMETRICS,
        "Preble": PREBLES,
        "D2LPM": D2LPMS,
        DUALMAP.label: (DUALMAP.label,),
        "the tuned linear score": (TUNED,),
    }
    known = names(entries, "contender")
    rivals = {who: labels for who, labels in rivals.items() if set(labels) & set(known)}
    found = [
        f"At {LOAD:.0%} of the maximum, mean TTFT of ours over that of {who}:"
        f" {span(over(entries, PEACE, TTFT, 'ours', labels))}."
        for who, labels in rivals.items()
    ]
    found += _rows_lost(entries)
    for row in names(select(entries, part=ATTACK), "workload"):
        found.append(_under_attack(entries, row, rivals))
    for workers in names(select(entries, part=GAPS), "x"):
        mine = [{**e, "workload": "gap"} for e in select(entries, part=GAPS, x=workers)]
        parts = []
        for policy in ("round_robin", "lmetric", OURS.policy):
            factor = over(mine, GAPS, GAP, f"fleet: {policy}", [f"worker: {policy}"])["gap"]
            parts.append(f"{policy} {percent(factor)}")
        found.append(
            f"Worst gap with shared deficits over independent ones, {workers:g} workers: {', '.join(parts)}."
        )
    return found


def _under_attack(entries: Sequence[CellFigures], row: str, rivals: Mapping[str, Sequence[str]]) -> str:
    mine = select(entries, part=ATTACK, workload=row)
    lower = []
    for who, labels in rivals.items():
        factor = over(mine, ATTACK, VICTIMS99, "ours", labels).get(row)
        lower.append(f"{1 / factor:.3g} times below {who}" if factor else f"not compared with {who}")
    tokens = over(mine, ATTACK, TOKENS, "ours", LMETRICS, high=True).get(row) or 0.0
    return (
        f"{row} under attack: victims' P99 TTFT of ours is {', '.join(lower)} (the best of each); throughput"
        f" {tokens - 1:+.1%} against LMetric."
    )


def _rows_lost(entries: Sequence[CellFigures]) -> list[str]:
    """Say where ours is beaten by one of the papers' policies by more than 5%."""
    papers = (*LMETRICS, *D2LPMS, *PREBLES, DUALMAP.label)
    found = []
    for measure in (TTFT, TTFT99):
        factors = over(entries, PEACE, measure, "ours", papers)
        lost = [f"{row} ({f:.2f} times the best)" for row, f in factors.items() if f is not None and f > 1.05]
        told = "; ".join(lost) if lost else "nowhere"
        found.append(
            f"Ours loses to the best of the other papers' policies by more than 5% in {measure.name}: {told}."
        )
    return found


_PEACE: tuple[Measure, ...] = (TTFT, TTFT99, TPOT, HIT, TOKENS, GAP)
_ATTACK: tuple[Measure, ...] = (VICTIMS, VICTIMS99, TOKENS, HIT, GAP, BOUND)


def tables(entries: Sequence[CellFigures]) -> list[Table]:
    """Return grids of workloads by contenders without and with the attack, the gaps, and the search."""
    found = []
    for part, measures in ((PEACE, _PEACE), (ATTACK, _ATTACK)):
        what = (
            f"load {LOAD:.0%}"
            if part == PEACE
            else f"others at {ATTACKED_LOAD:.0%} of the maximum while one client adds {ADDED:.0%}"
        )
        found += [
            grid(entries, part, m, against="LMetric", caption=f"{m.name}, against LMetric; {what}")
            for m in measures
        ]
    caption = f"{GAP.name}, by workers: a deficit for each worker, or one for the fleet (Q = {GAP_QUANTUM:,})"
    found.append(grid(entries, GAPS, GAP, by="x", head="workers", caption=caption))
    return found + [search_table(entries, row) for row in names(select(entries, part=TUNING), "workload")]


def charts(entries: Sequence[CellFigures]) -> dict[str, str]:
    """Return the worst gap by workers."""
    svg = curves(entries, GAPS, GAP, JUDGE, "workers", log_x=True)
    return {"worst gap by workers, separate and shared deficits": svg} if svg else {}


E4 = Experiment(
    name="e4",
    title="Ours against all of them, and an attack",
    source="fairlead",
    paper="Nothing of ours is published. What we hold ourselves to: at 95% of the maximum mean TTFT at least"
    " 15% (conversation) and 30% (coding agents) below LMetric; under attack victims' P99 TTFT at least 2.5"
    " times below the best D2LPM and 10 times below LMetric and Preble, at no less throughput; on 8 workers a"
    " worst service gap of at most 45% of independent DLPM's; nowhere clearly worse than both papers.",
    why=(
        "Three things make the difference; each was tried alone. Placement: marginal does not multiply "
        "what waits by the batch, so it stays with warm workers longer than LMetric. Order: the longest "
        "match goes first, as in DLPM; of equal matches (most often none) the shortest prompt goes first, "
        "which halves the mean where requests queue, and long prompts age. Fairness: there is one deficit "
        "for the whole fleet, and a worker that has nobody with credit takes a request from another's "
        "queue. So an attacker's backlog delays nobody. In the papers' set-ups, each engine keeps "
        "deficits of its own, and a victim waits wherever its worker has only the attacker to serve.\n\n"
        "Recorded traces are run with all their requests, and with other arrival times for each seed. The "
        "bursts in these arrivals cause several seconds of queue at 95% of a maximum that is a mean.\n\n"
        "Where nothing queues (trees, chats, judges), there is nothing to reorder, and all good policies "
        "are level. There ours loses a few percent in tails, perhaps because the gateway holds requests "
        "until a worker has capacity for their prefill.\n\n"
        "On 16 workers (E3) ours is 22% below LMetric on coding agents instead of a third: with more "
        "workers, more of them are idle. At half of the maximum LMetric is ahead of ours there, by 12%. "
        "On coding agents the tuned linear score is level with ours in mean TTFT. On conversations its "
        "P99 is a tenth lower than ours, at four times the mean.\n\n"
        "The worst gap with shared deficits is a larger share of that with separate ones than before "
        "light clients were looked after (23% and 10% on 8 workers): credit may be three quanta now, "
        "and was one."
    ),
    stages=(tuning, everything, shared),
    seen=seen,
    tables=tables,
    charts=charts,
    missing=lambda options: missing(options, RECORDED),
)
