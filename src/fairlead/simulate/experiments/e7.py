"""E7: closed loops. What clients that keep requests open get of what they are owed, and their waiting."""

import re
from collections.abc import Sequence

from fairlead.report.numbers import NONE, digits, duration, percent, shown
from fairlead.report.tables import Cell, Table
from fairlead.simulate.experiments.base import CellFigures, Experiment
from fairlead.simulate.experiments.draw import curves
from fairlead.simulate.experiments.e7_cells import (
    ALONE,
    BY_ITSELF,
    CROWD,
    DOCUMENTS,
    DOUBLE,
    EVEN,
    FLOOR,
    LIGHT,
    LOCALITY,
    PRIORITY,
    QUANTA,
    RESERVED,
    RESERVED_THINKS,
    TABLE,
    THINKS,
    TURNS,
    TURNS_LOCALITY,
    WAITING,
    crowd,
    documents,
    figures,
    floor,
    quanta,
    table,
    waiting,
)
from fairlead.simulate.experiments.figures import (
    HIT,
    TOKENS,
    TTFT,
    TTFT99,
    Measure,
    across,
    grid,
    mean,
    names,
    select,
    swept,
    times,
)

OVER = Measure("heavy_over_light", "service of the heavy client over the light one's")
MOST = Measure("most_over_least", "most over least got/owed of any two clients")
LIGHT_RATIO = Measure(f"{LIGHT}_ratio", "light client's got/owed")
LIGHT_TTFT = Measure(f"{LIGHT}_ttft_mean", "light client's mean TTFT", "ms")
LIGHT99 = Measure(f"{LIGHT}_ttft_p99", "light client's P99 TTFT", "ms")
BUSY = Measure("busy", "share of the time that kept slots are busy", "share")
KINDS = {
    EVEN: "the light client that opens what it is owed",
    DOUBLE: "the light client that opens twice what it is owed",
    THINKS: "the light client that thinks",
}


def predicted(slots: float) -> float:
    """Return the least heavy over light where the light client opens half of the slots: 1 + 2/N."""
    return 1 + 2 / slots


def _beside_alone(entries: Sequence[CellFigures]) -> list[CellFigures]:
    """Return the entries of the part on waiting, and of the light client by itself as one more contender."""
    alone = [{**e, "part": WAITING} for e in select(entries, part=BY_ITSELF)]
    return [*alone, *select(entries, part=WAITING)]


def seen(entries: Sequence[CellFigures]) -> list[str]:
    """Tell shares and waiting under ours, beside the best that an order can do."""
    found = []
    for row in names(select(entries, part=TABLE), "workload"):
        here = select(entries, part=TABLE, workload=row)
        told = [
            f"{digits(mean(select(here, contender=label), OVER))} under {label}"
            for label in names(here, "contender")
            if label in ("ours", "DLPM, as published", "VTC", "FCFS", PRIORITY.label)
        ]
        found.append(
            f"{row}, the heavy one 50: service of the heavy client over the light one's is {', '.join(told)}."
        )
    together = _beside_alone(entries)
    for row in names(together, "workload"):
        here = select(together, workload=row)
        base = mean(select(here, contender=ALONE.label), LIGHT99)
        told = []
        for label in ("ours", "VTC", PRIORITY.label):
            value = mean(select(here, contender=label), LIGHT99)
            if value is not None and base:
                told.append(f"{duration(value)} under {label} ({times(value / base)})")
        found.append(f"{row}: its P99 TTFT alone is {duration(base)}; {', '.join(told)}.")
    least = _least(entries)
    if least:
        found.append(least)
    spread = [
        f"{n:g} slots {digits(mean(select(entries, part=FLOOR, contender=PRIORITY.label, x=n), OVER))}"
        f" (1 + 2/N = {digits(predicted(n))})"
        for n in names(select(entries, part=FLOOR), "x")
    ]
    found.append(f"Least ratio of an order that keeps no slot free, by simulation: {', '.join(spread)}.")
    return found


def _least(entries: Sequence[CellFigures]) -> str:
    """Say which light client of any crowd got least of what it is owed under ours and under VTC."""
    told = []
    for label in ("ours", "VTC"):
        lowest = [
            (e["figures"][key], kind, e["workload"])
            for e in select(entries, part=CROWD, contender=label)
            for kind in KINDS
            if (key := f"{kind}_ratio") in e["figures"]
        ]
        if lowest:
            value, kind, where = min(lowest)
            told.append(f"{percent(value)} under {label} ({KINDS[kind]}; {where})")
    return (
        f"Least share of what it is owed that a light client got in a crowd: {'; '.join(told)}."
        if told
        else ""
    )


def tables(entries: Sequence[CellFigures]) -> list[Table]:
    """Return two clients, waiting beside alone, crowds, quanta, and the floor."""
    found = [
        grid(
            entries, TABLE, OVER, caption=f"Two clients, the heavy one keeps 50 open: {OVER.name} (owed: 1)"
        ),
        grid(entries, TABLE, LIGHT99, caption="The same: light client's P99 TTFT"),
        grid(entries, TABLE, TOKENS, caption="The same: throughput, tokens/s"),
    ]
    together = _beside_alone(entries)
    for measure in (LIGHT_RATIO, LIGHT_TTFT, LIGHT99):
        caption = f"20 heavy clients, 8 open each, and a light one: {measure.name}"
        found.append(grid(together, WAITING, measure, caption=caption, against=ALONE.label))
    for kind, who in KINDS.items():
        ratio = Measure(f"{kind}_ratio", f"got/owed of {who}")
        wait = Measure(f"{kind}_ttft_p99", f"P99 TTFT of {who}", "ms")
        found += [grid(entries, CROWD, m, caption=f"Crowds: {m.name}") for m in (ratio, wait)]
    found.append(grid(entries, CROWD, MOST, caption=f"Crowds: {MOST.name}"))
    found += [
        across(entries, DOCUMENTS, _LOCAL, _ON_DOCUMENTS),
        _swept(entries, QUANTA, "DLPM by quantum: light clients", "quantum"),
        swept(entries, LOCALITY, f"DLPM by quantum: {_ON_DOCUMENTS}", "quantum", _LOCAL),
        _swept(entries, TURNS, "DLPM by turn, the requests that a quantum pays for: light clients", "turn"),
        swept(entries, TURNS_LOCALITY, f"DLPM by turn: {_ON_DOCUMENTS}", "turn", _LOCAL),
        _floor(entries),
    ]
    return [one for one in found if one.rows]


_LOCAL = (HIT, TOKENS, TTFT, TTFT99, MOST)
_ON_DOCUMENTS = "eight clients with 8 questions on documents open each, 16 slots"


def _swept(entries: Sequence[CellFigures], part: str, caption: str, head: str) -> Table:
    """Return a row a value of ``x``, and what the light client gets and waits."""
    here = select(entries, part=part)
    measures = [
        (row, m)
        for row in names(here, "workload")
        for m in ((LIGHT_RATIO if "20 heavy" in row else OVER), LIGHT99)
    ]
    found = Table(caption, [head, *(f"{row}: {_SHORT[m.key]}" for row, m in measures)])
    for x in sorted(names(here, "x")):
        group = select(here, x=x)
        cells = [shown(mean(select(group, workload=row), m), m.unit) for row, m in measures]
        found.rows.append([Cell(f"{x:,.0f}"), *map(Cell, cells)])
    return found


_SHORT = {OVER.key: "heavy/light", LIGHT_RATIO.key: "got/owed", LIGHT99.key: "P99 TTFT"}


def _floor(entries: Sequence[CellFigures]) -> Table:
    found = Table(
        "The light client opens half of N slots: served first, or on slots that are kept for it",
        ["N", "1 + 2/N", "light first: heavy/light", "light first: P99 TTFT", "slots kept: heavy/light",
         "slots kept: P99 TTFT", "kept slots idle", "kept slots idle, it thinks 1 s"],
    )  # fmt: skip
    here = select(entries, part=FLOOR)
    for n in sorted(names(here, "x")):
        first, kept, thinking = (
            select(here, x=n, contender=one.label) for one in (PRIORITY, RESERVED, RESERVED_THINKS)
        )
        busy, thinks = mean(kept, BUSY), mean(thinking, BUSY)
        found.rows.append(
            [
                Cell(f"{n:g}"),
                Cell(digits(predicted(n))),
                Cell(digits(mean(first, OVER))),
                Cell(duration(mean(first, LIGHT99))),
                Cell(digits(1 / busy) if busy else NONE),
                Cell(duration(mean(kept, LIGHT99))),
                Cell(percent(1 - busy, 1) if busy is not None else NONE),
                Cell(percent(1 - thinks, 1) if thinks is not None else NONE),
            ]
        )
    return found


def _short(workload: str) -> str:
    """Return a row's name as there is room for beside a line."""
    light = re.match(r"(\d+) slots, light opens (\d+)", workload)
    if light:
        return f"{light[1]} slots, {light[2]} open"
    return workload.split(",", maxsplit=1)[0]


def charts(entries: Sequence[CellFigures]) -> dict[str, str]:
    """Return shares and waiting by quantum, and light clients' shares by how many heavy ones there are."""
    found = {}
    rows = names(select(entries, part=QUANTA), "workload")
    by_row = [
        {**e, "contender": _short(e["workload"]), "workload": DLPM_BY_QUANTUM}
        for e in select(entries, part=QUANTA)
    ]
    if rows:
        for measure, name in (
            (MOST, "most over least got/owed by quantum"),
            (LIGHT99, "light P99 TTFT by quantum"),
        ):
            svg = curves(by_row, QUANTA, measure, DLPM_BY_QUANTUM, "quantum", log_x=True)
            if svg:
                found[name] = svg
    one = [{**e, "workload": "1 worker"} for e in select(entries, part=CROWD) if e["workers"] == 1]
    for kind, who in KINDS.items():
        measure = Measure(f"{kind}_ratio", f"got/owed of {who}")
        svg = curves(one, CROWD, measure, "1 worker", "heavy clients", log_x=True)
        if svg:
            found[f"got over owed by heavy clients, {kind}"] = svg
    return found


DLPM_BY_QUANTUM = "DLPM"

E7 = Experiment(
    name="e7",
    title="Closed loops",
    source="fairlead",
    paper=(
        "Nothing: VTC's and DLPM's bounds speak of clients that always have something waiting. A client "
        "that keeps a few requests open and waits for their answers does not. What we hold ourselves to: "
        "the heavy client's service over the light one's at most 1.25 where the light one opens twice what "
        "it is owed, at most 1.9 where it opens just that on 4 slots; beside 20 heavy clients, a P99 TTFT "
        "of a light client that wants no more than it is owed within 2 times of what it sees alone with the "
        "slots that it is owed."
    ),
    why=(
        "**What is owed.** S slots are shared max-min: everybody gets what it keeps open, up to a common "
        "level ([definition](../metrics.md#closed-loops)). All requests are alike (415 prompt and 100 "
        "output tokens on average, within 20%; nothing shared), so the share of the slots is the share of "
        "the service. In *crowds* each heavy client keeps 50 requests open for each 8 slots where there are "
        "at most 5 heavy clients, and 8 where there are more. Beside them are three light ones: one opens "
        "what it is owed (at least 1), one twice as much, and one opens twice as much but thinks so long "
        "(exponential) that it wants four fifths of what it is owed. LPM, k-LPM and PLAS serve such "
        "requests by arrival, as FCFS does; they differ on documents only. A client sends its next request "
        "1 ms after an answer. Meanwhile the slot that fell free is given to a request that waits.\n\n"
        "**The floor.** Let the light client open K requests, just what it is owed of N slots, and let "
        "every slot always be full. When one of its requests ends, the slot goes to a request of somebody "
        "else, and its next request waits until another slot falls free. Requests take T, and the N slots "
        "end evenly staggered, so that is T/N on average, even if it is served before everybody. Each of "
        "its K requests is in a slot for T out of T + T/N. It fills K / (1 + 1/N) slots: of 4, with K = 2, "
        "1.6, and the heavy client 2.4. The ratio is 2.4/1.6 = 1.5; with K = N/2 it is 1 + 2/N. The order "
        "`priority`, with the light client first, shows it (last table). No order that keeps every slot "
        "busy can do better. With twice as many open, the light client always has a request that waits, and "
        "the ratio can be 1.\n\n"
        "**What a reservation buys.** If K slots are kept for the light client, its next request is served "
        "at once: the ratio is 1 and nothing waits. The price is that these slots are empty between an "
        "answer and the next request. For a client that asks again at once that is a millisecond in each T. "
        "For one that thinks 1 s it is more than half of the time (last column).\n\n"
        "**Alone.** *Alone* is the same closed loop of the light client, with nobody else, on an engine "
        "with as many slots as it is owed, rounded down, at least 1. With 20 heavy clients on 8 slots a "
        "light one is owed 8/21 = 0.38 slots. If it keeps 2 requests open without thinking, it wants five "
        "times what it is owed, and any fair order must make it wait: by Little's law its requests come "
        "back every 2T/0.38, so they wait 3.5 s on average, whatever the order. A whole slot of its own is "
        "2.6 times what it is owed. So twice the time that it sees alone is within reach of a client only "
        "that wants no more than it is owed. One that wants four fifths of it still uses up its credit now "
        "and then, when its requests happen to come close together, and then waits for a round of "
        "everybody: that is what its P99 shows, and it differs between seeds. One that wants half of it "
        "seldom does.\n\n"
        "**Where ours loses.** A light client that wants more than it is owed gets its share under ours and "
        "under VTC alike, and waits as long on average. But ours serves a quantum of its requests in a row "
        "and then a round of everybody else, so its P99 TTFT is several times VTC's. That is the price of "
        "locality: on documents ours finds far more cached than VTC, as much as LPM nearly, and LPM is fair "
        "to nobody."
    ),
    stages=(table, waiting, crowd, documents, quanta, floor),
    seen=seen,
    tables=tables,
    charts=charts,
    own=figures,
)
