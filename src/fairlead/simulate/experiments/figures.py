"""The few figures of a result that experiments keep, their means over seeds, and grids of them."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.report.numbers import NONE, TIMES, change, digits, percent, shown
from fairlead.report.statistics import Difference, is_amount, paired
from fairlead.report.tables import Cell, Table
from fairlead.simulate.experiments.base import CellFigures, Planned

DIGITS = 5
_SATURATED = "* fell behind what arrived: times grow with the length of the run"


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of an entry."""

    key: str
    name: str
    unit: str = ""
    """``ms``, ``share``, ``index``, ``units``, or nothing."""


TOKENS = Measure("tokens_per_s", "throughput, prompt and output tokens/s")
SERVICE = Measure("service_per_s", "service rate, units/s")
HIT = Measure("hit_rate", "hit rate", "share")
TTFT = Measure("ttft_mean", "mean TTFT", "ms")
TTFT50 = Measure("ttft_p50", "P50 TTFT", "ms")
TTFT99 = Measure("ttft_p99", "P99 TTFT", "ms")
TPOT = Measure("tpot_mean", "mean TPOT", "ms")
TPOT99 = Measure("tpot_p99", "P99 TPOT", "ms")
VICTIMS = Measure("victims_ttft_mean", "victims' mean TTFT", "ms")
VICTIMS50 = Measure("victims_ttft_p50", "victims' P50 TTFT", "ms")
VICTIMS99 = Measure("victims_ttft_p99", "victims' P99 TTFT", "ms")
VICTIMS_E2E50 = Measure("victims_e2el_p50", "victims' P50 E2E", "ms")
VICTIMS_E2E99 = Measure("victims_e2el_p99", "victims' P99 E2E", "ms")
WORST99 = Measure("worst_client_e2el_p99", "P99 E2E of the worst-served victim", "ms")
JAIN = Measure("jain_windows", "Jain's index in 60 s windows, mean", "index")
GAP = Measure("gap", "worst service gap, units")
BOUND = Measure("bound_share", "worst gap as a share of the bound", "share")


def entry(planned: Planned, result: Mapping[str, Any], extra: Mapping[str, float | None]) -> dict[str, Any]:
    """Return what is kept of one cell."""
    settings = planned.cell.settings
    found: dict[str, Any] = {
        "part": planned.part,
        "workload": planned.workload,
        "contender": planned.contender.label,
        "x": planned.x,
        "seed": settings.seed,
        "order": planned.contender.order,
        "policy": planned.contender.policy,
        "topology": settings.topology,
        "workers": settings.workers,
        "load": planned.cell.load,
        "requests": result["num_prompts"],
        "state": result["utilisation"]["label"],
    }
    figures = {**_figures(result), **extra}
    return found | {"figures": {k: _rounded(v) for k, v in figures.items() if v is not None}}


def _figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    fairness, several = result["fairness"], len(result["clients"]) > 1
    found: dict[str, float | None] = {
        "tokens_per_s": result["total_token_throughput"],
        "service_per_s": result["service_rate"],
        "hit_rate": result["hit_rate"],
        "reachable": result["reachable_hit_rate"],
        "not_completed": result["failed"],
        "preemptions": result["preemptions"],
        **_latencies("", result, ("mean", "p50", "p99"), ("ttft", "tpot", "e2el")),
    }
    if several:
        found |= {
            "jain": fairness["jain"],
            "jain_windows": fairness["windowed"]["jain_mean"],
            "gap": fairness["worst_gap"],
            "bound": fairness["bound"],
            "bound_share": fairness["bound_share"],
        }
    if result["victims"]:
        found |= _latencies("victims_", result["victims"], ("mean", "p50", "p99"), ("ttft", "e2el"))
        each = [c["p99_e2el_ms"] for c in result["clients"] if not c["misbehaving"] and c["completed"]]
        found["worst_client_e2el_p99"] = max(each, default=None)
        others = [c["p99_ttft_ms"] for c in result["clients"] if c["misbehaving"] and c["completed"]]
        found["misbehaving_ttft_p99"] = max(others, default=None)
    return found


def _latencies(
    prefix: str, block: Mapping[str, Any], which: Sequence[str], metrics: Sequence[str]
) -> dict[str, float | None]:
    return {f"{prefix}{metric}_{w}": block[f"{w}_{metric}_ms"] for metric in metrics for w in which}


def _rounded(value: float) -> float:
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def select(entries: Iterable[CellFigures], **wanted: object) -> list[CellFigures]:
    """Return the entries with these values."""
    return [e for e in entries if all(e[key] == value for key, value in wanted.items())]


def names(entries: Iterable[CellFigures], key: str) -> list[Any]:
    """Return the values of a key in the order in which they first occur."""
    return list(dict.fromkeys(e[key] for e in entries))


def values(entries: Iterable[CellFigures], measure: Measure) -> dict[int, float]:
    """Return a figure by seed. The entries are of one contender on one workload."""
    return {e["seed"]: e["figures"][measure.key] for e in entries if measure.key in e["figures"]}


def mean(entries: Iterable[CellFigures], measure: Measure) -> float | None:
    """Return the mean over seeds, None where nothing was measured."""
    found = values(entries, measure)
    return statistics.fmean(found.values()) if found else None


def difference(
    before: Iterable[CellFigures], after: Iterable[CellFigures], measure: Measure
) -> Difference | None:
    """Return ``after`` against ``before`` on the same seeds."""
    return paired(values(before, measure), values(after, measure), as_ratio=is_amount(measure.unit))


def ratio(
    entries: Iterable[CellFigures], measure: Measure, above: str, below: str, **wanted: object
) -> float | None:
    """Return contender ``above``'s figure over ``below``'s (geometric mean over seeds)."""
    chosen = select(entries, **wanted)
    found = difference(select(chosen, contender=below), select(chosen, contender=above), measure)
    return found.ratio if found else None


def times(value: float | None) -> str:
    """Return a factor as text, such as 2.41x."""
    return NONE if value is None else f"{digits(value)}{TIMES}"


def span(found: Mapping[str, float | None]) -> str:
    """Return the least and the most of some factors with their names: 1.02x (judge) to 2.4x (doc-qa)."""
    known = sorted((v, k) for k, v in found.items() if v is not None)
    if not known:
        return NONE
    (low, where), (high, there) = known[0], known[-1]
    one = f"{times(high)} ({there})"
    return one if len(known) == 1 else f"{times(low)} ({where}) to {one}"


def grid(
    entries: Sequence[CellFigures],
    part: str,
    measure: Measure,
    *,
    caption: str = "",
    against: str = "",
    by: str = "workload",
    head: str = "",
) -> Table:
    """Return rows of workloads (or of ``x``), a column a contender; below each, its change ``against`` one.

    A run that fell behind what arrived is marked with an asterisk.
    """
    chosen = select(entries, part=part)
    columns = names(chosen, "contender")
    table = Table(caption or measure.name, [head or by, *columns])
    for row in names(chosen, by):
        mine = select(chosen, **{by: row})
        base = select(mine, contender=against)
        cells = [Cell(row if isinstance(row, str) else f"{row:,.10g}")]
        for label in columns:
            group = select(mine, contender=label)
            detail = "" if label == against or not base else _change(base, group, measure)
            mark = "*" if group and all(e["state"] == "saturated" for e in group) else ""
            cells.append(Cell(shown(mean(group, measure), measure.unit) + mark, detail))
        table.rows.append(cells)
    if any("*" in cell.text for row in table.rows for cell in row[1:]):
        table.notes.append(_SATURATED)
    return table


def _change(base: Sequence[CellFigures], group: Sequence[CellFigures], measure: Measure) -> str:
    found = difference(base, group, measure)
    return "" if measure.unit == "index" else change(found)


def across(
    entries: Sequence[CellFigures], part: str, measures: Sequence[Measure], caption: str, **wanted: object
) -> Table:
    """Return rows of contenders, a column a measure."""
    chosen = select(entries, part=part, **wanted)
    table = Table(caption, ["", *(m.name for m in measures)])
    for label in names(chosen, "contender"):
        group = select(chosen, contender=label)
        mark = "*" if all(e["state"] == "saturated" for e in group) else ""
        table.rows.append([Cell(label + mark), *(Cell(shown(mean(group, m), m.unit)) for m in measures)])
    if any(row[0].text.endswith("*") for row in table.rows):
        table.notes.append(_SATURATED)
    return table


def over(
    entries: Sequence[CellFigures],
    part: str,
    measure: Measure,
    label: str,
    others: Sequence[str],
    *,
    high: bool = False,
) -> dict[str, float | None]:
    """Return, by workload, ``label``'s mean over that of the best of ``others``.

    Best is the least, or the most where ``high``.
    """
    found: dict[str, float | None] = {}
    for row in names(select(entries, part=part), "workload"):
        mine = select(entries, part=part, workload=row)
        own = mean(select(mine, contender=label), measure)
        means = [mean(select(mine, contender=other), measure) for other in others]
        known = [value for value in means if value is not None]
        if known:
            rival = max(known) if high else min(known)
            found[row] = own / rival if own is not None and rival else None
    return found


def swept(
    entries: Sequence[CellFigures], part: str, caption: str, head: str, measures: Sequence[Measure]
) -> Table:
    """Return rows of ``x``, a column a measure, of a part with one contender."""
    chosen = select(entries, part=part)
    table = Table(caption, [head, *(m.name for m in measures)])
    for x in sorted(names(chosen, "x")):
        group = select(chosen, x=x)
        table.rows.append([Cell(f"{x:,.10g}"), *(Cell(shown(mean(group, m), m.unit)) for m in measures)])
    return table


def bounds(entries: Sequence[CellFigures]) -> str:
    """Say how much of their bounds the worst gaps take, and which runs pass theirs."""
    found = [(e["figures"][BOUND.key], e) for e in entries if BOUND.key in e["figures"]]
    inside = [value for value, _ in found if value <= 1]
    most_inside = percent(max(inside, default=0.0))
    text = f"Of {len(found):,} runs with a bound {len(inside):,} stay inside it (at most {most_inside})."
    passed: dict[str, tuple[float, int]] = {}
    for value, e in found:
        if value > 1:
            name = f"{e['contender']} on {e['workload']}"
            most, preempted = passed.get(name, (0.0, 0))
            passed[name] = max(most, value), max(preempted, e["figures"].get("preemptions", 0))
    told = [
        f"{name} ({percent(most)}; {preempted:,} preemptions)" for name, (most, preempted) in passed.items()
    ]
    return text + (f" Past it: {'; '.join(told)}." if told else "")
