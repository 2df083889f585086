"""The report's tables as plain data, for HTML, Markdown and the terminal to draw."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fairlead.report.numbers import NONE, change, digits, duration, percent, shown
from fairlead.report.results import Result
from fairlead.report.study import (
    ATTAINMENT,
    GAP,
    HIT_RATE,
    JAIN,
    MEAN_TPOT,
    MEASURES,
    P99_TTFT,
    THROUGHPUT,
    Group,
    Study,
    difference,
)

MOST_CLIENTS = 30
SPARE = (JAIN, MEAN_TPOT, HIT_RATE, ATTAINMENT, GAP, P99_TTFT, THROUGHPUT)
"""Measures that a narrow comparison does without, the least important first."""


class Cell(NamedTuple):
    """One cell: what it says, and a smaller second line."""

    text: str
    detail: str = ""


@dataclass(slots=True)
class Table:
    """A table; the first column names the row, the others are numbers."""

    caption: str
    heads: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spare: Sequence[str] = ()
    """Heads of the columns to do without where there is little room, the least important first."""


def comparison(study: Study, load: float) -> Table:
    """Return policies down, measures across; under each figure its difference to the first policy."""
    groups = study.at(load)
    measures = [m for m in MEASURES if any(g.mean(m) is not None for g in groups)]
    seeds = max(len(g.seeds) for g in groups)
    caption = (
        f"Load {percent(load)} of the measured maximum" if load else "Arrivals as they are in the workload"
    )
    table = Table(
        f"{caption}, {seeds} {'seed' if seeds == 1 else 'seeds'}",
        [study.row, *(m.name for m in measures)],
        spare=[m.name for m in SPARE],
    )
    first = groups[0]
    for group in groups:
        cells = [
            Cell(
                shown(group.mean(m), m.unit),
                ""
                if group is first or m.unit == "index"
                else change(difference(m, first, group), "none seen"),
            )
            for m in measures
        ]
        table.rows.append([Cell(group.policy, group.state), *cells])
    if len(groups) > 1:
        table.notes.append(_of_differences(first, seeds))
    if any(g.saturated for g in groups):
        table.notes.append(
            "Saturated runs fell behind what arrived: their times grow with the length of the run. They are"
            " never averaged or compared with runs that kept up."
        )
    return table


def _of_differences(first: Group, seeds: int) -> str:
    if seeds == 1:
        return f"Below each figure, the difference to {first.policy}: one seed, no statement on chance."
    return (
        f"Means over seeds; below each, the difference to {first.policy} on the same seeds with its 95%"
        " confidence interval (Student's t on the pairs; on logarithms, for times and amounts). None seen:"
        " the interval includes no difference."
    )


def clients(result: Result) -> Table:
    """Return a row a client, most service first; beyond 30, only those and the misbehaving ones."""
    ordered = sorted(result["clients"], key=lambda c: -c["service"])
    listed = [c for i, c in enumerate(ordered) if i < MOST_CLIENTS or c["misbehaving"]]
    table = Table(
        "Clients",
        [
            "client",
            "requests",
            "completed",
            "P50 TTFT",
            "P99 TTFT",
            "mean TPOT",
            "hit rate",
            "met SLOs",
            "service",
        ],
        spare=["requests", "mean TPOT", "met SLOs", "hit rate", "completed", "P50 TTFT"],
    )
    for client in listed:
        note = ["misbehaving"] if client["misbehaving"] else []
        note += [f"weight {client['weight']:g}"] if client["weight"] != 1 else []
        table.rows.append(
            [
                Cell(client["name"], ", ".join(note)),
                Cell(f"{client['num_prompts']:,}"),
                Cell(f"{client['completed']:,}", _losses(client)),
                Cell(duration(client["median_ttft_ms"])),
                Cell(duration(client["p99_ttft_ms"])),
                Cell(duration(client["mean_tpot_ms"])),
                Cell(percent(client["hit_rate"])),
                Cell(percent(client["attainment"], 1)),
                Cell(f"{client['service']:,}"),
            ]
        )
    if len(listed) < len(ordered):
        table.notes.append(f"{len(ordered) - len(listed)} clients with less service are left out.")
    return table


def closed_loops(result: Result) -> Table:
    """Return shares against what each client is owed, and its waiting; no rows without closed loops."""
    found = result.get("closed_loops")
    table = Table(
        "Closed loops: shares against max-min entitlement",
        ["client", "open", "slots owed", "owed", "got", "got/owed", "mean TTFT", "P50 TTFT", "P99 TTFT"],
        spare=["P50 TTFT", "slots owed", "mean TTFT"],
    )
    if not found:
        return table
    ordered = sorted(found["clients"], key=lambda c: -(c["ratio"] or 0.0))
    listed = ordered if len(ordered) <= MOST_CLIENTS else [*ordered[:15], *ordered[-15:]]
    for client in listed:
        pause = client["pause_s"] or 0.0
        table.rows.append(
            [
                Cell(client["name"], f"pauses {duration(1000 * pause)}" if pause >= 0.01 else ""),
                Cell(f"{client['open']:,}" if client["open"] else "by the clock"),
                Cell(digits(client["owed_slots"])),
                Cell(percent(client["entitled_share"], 1)),
                Cell(percent(client["service_share"], 1)),
                Cell(digits(client["ratio"])),
                Cell(duration(client["mean_ttft_ms"])),
                Cell(duration(client["median_ttft_ms"])),
                Cell(duration(client["p99_ttft_ms"])),
            ]
        )
    if len(listed) < len(ordered):
        table.notes.append(f"{len(ordered) - len(listed)} clients between these are left out.")
    if found["most_over_least"] is not None:
        most, least = ordered[0]["name"], ordered[-1]["name"]
        table.notes.append(
            f"{most} got {digits(found['most_over_least'])} times as much of what it is owed as {least}."
        )
    else:
        table.notes.append("No shares: the run is too short for its --interval.")
    table.notes.append(
        f"Of {found['slots']:,} slots and all service from {found['from_s']:,.1f} s to"
        f" {found['until_s']:,.1f} s; TTFT of the requests that came in that time."
    )
    return table


def figures(result: Result) -> Table:
    """Return the distribution of each latency of one run."""
    words = ("mean", "p50", "p75", "p90", "p95", "p99", "p99.9")
    table = Table(
        "Latencies", ["", *(w.replace("p", "P") for w in words)], spare=["P75", "P95", "P99.9", "P90"]
    )
    for name, metric in (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2el")):
        table.rows.append([Cell(name), *(Cell(duration(result[f"{w}_{metric}_ms"])) for w in words)])
    return table


def loads(study: Study) -> Table:
    """Return policies down and loads across: mean TTFT, and where the curve breaks."""
    table = Table("Mean TTFT by load", [study.row, *(percent(load) for load in study.loads), "knee"])
    for policy in study.policies:
        row = [Cell(policy)]
        for load in study.loads:
            group = study.groups.get((policy, load))
            row.append(_at_load(group))
        knee = study.knee(policy)
        row.append(
            Cell(percent(knee.load), f"{knee.why} at {percent(knee.breaks_at)}")
            if knee
            else Cell("none seen")
        )
        table.rows.append(row)
    return table


def _at_load(group: Group | None) -> Cell:
    if group is None:
        return Cell(NONE)
    return Cell(duration(group.mean(MEASURES[0])), group.state if group.saturated else "")


def _losses(client: Result) -> str:
    lost = [f"{n:,} {word}" for word, n in client["outcomes"].items() if n and word != "done"]
    return ", ".join(lost)
