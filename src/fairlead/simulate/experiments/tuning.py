"""The search for the best linear score on a workload: a grid over every preset's weights.

Tuned with one seed, at the load that is reported, and reported with others: of a generator those are
other requests, of a recorded trace the same ones at other times.
"""

from collections.abc import Iterator, Sequence

from fairlead.report.numbers import duration, percent
from fairlead.report.tables import Cell, Table
from fairlead.simulate.experiments.base import CellFigures, Contender
from fairlead.simulate.experiments.figures import HIT, TTFT, TTFT99, mean, names, select

TUNING = "tuning"
TUNED = "linear, tuned"
AT_LOAD = 0.95
TUNING_SEED = 101
"""Not one of those that are reported."""
PRESETS = {
    "production": "linear:preset=production",
    "Dynamo": "linear:preset=dynamo",
    "Dynamo 1.7": "linear:preset=dynamo-1.7",
    "llm-d": "linear:preset=llm-d",
}
"""At their projects' defaults."""


def _specs() -> Iterator[str]:
    for alpha in (0.4, 0.7, 0.9):
        for split in (0.0, 0.5, 1.0):
            beta = round((1 - alpha) * split, 4)
            gamma = round(1 - alpha - beta, 4)
            yield f"linear:preset=production,alpha={alpha:g},beta={beta:g},gamma={gamma:g}"
    for weight in (0.25, 0.5, 2, 4, 8):
        yield f"linear:preset=dynamo,overlap_weight={weight:g}"
    for prefix in (1, 3, 8):
        for queue, kv in ((2, 2), (4, 0.5)):
            yield f"linear:preset=llm-d,prefix_weight={prefix:g},queue_weight={queue:g},kv_weight={kv:g}"


SPECS = tuple(_specs())
FEW = SPECS[1::6]
"""For quick forms."""


def contender(spec: str) -> Contender:
    """Return the linear score ``spec`` in front of engines that serve in order."""
    return Contender(spec.removeprefix("linear:"), "fcfs", spec)


def tuned(entries: Sequence[CellFigures], workload: str) -> Contender:
    """Return the spec with the least mean TTFT when tuned; the first preset before that ran."""
    mine = select(entries, part=TUNING, workload=workload)
    if not mine:
        return Contender(TUNED, "fcfs", PRESETS["production"])
    found = min(mine, key=lambda e: e["figures"].get(TTFT.key, float("inf")))
    return Contender(TUNED, "fcfs", found["policy"])


def search_table(entries: Sequence[CellFigures], workload: str) -> Table:
    """Return every point of the search, the best first."""
    mine = select(entries, part=TUNING, workload=workload)
    table = Table(f"Search for the linear score, {workload}: load {AT_LOAD:.0%}", ["weights"])
    table.heads = ["weights", TTFT.name, TTFT99.name, HIT.name]
    for spec in sorted(names(mine, "contender"), key=lambda s: mean(select(mine, contender=s), TTFT) or 0.0):
        group = select(mine, contender=spec)
        hit = percent(mean(group, HIT), 1)
        cells = (duration(mean(group, TTFT)), duration(mean(group, TTFT99)), hit)
        table.rows.append([Cell(spec), *map(Cell, cells)])
    return table


def points(entries: Sequence[CellFigures], workload: str) -> dict[str, list[tuple[float, float, str]]]:
    """Return hit rate and mean TTFT of each point, by preset, for a chart."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for entry in select(entries, part=TUNING, workload=workload):
        preset = entry["policy"].partition("preset=")[2].partition(",")[0]
        figures = entry["figures"]
        found.setdefault(preset, []).append((figures["hit_rate"], figures["ttft_mean"], ""))
    return found
