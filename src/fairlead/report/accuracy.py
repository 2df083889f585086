"""Compares simulations with measured runs of the same arrivals."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

from fairlead.report.numbers import NONE, points, ratio, shown
from fairlead.report.results import Result
from fairlead.report.study import (
    ATTAINMENT,
    HIT_RATE,
    MEAN_TPOT,
    MEAN_TTFT,
    P99_TTFT,
    THROUGHPUT,
    Group,
    Measure,
    Study,
)
from fairlead.report.tables import Cell, Table, comparison

P50_TTFT = Measure("P50 TTFT", itemgetter("p50_ttft_ms"), "ms", "low", "half of the requests had it sooner")
P50_TPOT = Measure("P50 TPOT", itemgetter("p50_tpot_ms"), "ms", "low", "half of the requests had less")
P99_TPOT = Measure("P99 TPOT", itemgetter("p99_tpot_ms"), "ms", "low", "the slowest hundredth")
COMPARED = (MEAN_TTFT, P50_TTFT, P99_TTFT, MEAN_TPOT, P50_TPOT, P99_TPOT, HIT_RATE, THROUGHPUT, ATTAINMENT)


@dataclass(frozen=True, slots=True)
class Pair:
    """A simulation and a replay of the same arrivals, by the same policies as far as those are known."""

    measured: Group
    simulated: Group
    seeds: tuple[int, ...]
    """Seeds of the workload that both have."""

    def means(self, measure: Measure) -> tuple[float | None, float | None]:
        """Return the measure's means over the seeds, measured and simulated."""
        return self._mean(measure, self.measured), self._mean(measure, self.simulated)

    def error(self, measure: Measure) -> str:
        """Return simulated against measured: in percent of what was measured, shares in points."""
        measured, simulated = self.means(measure)
        if measured is None or simulated is None:
            return NONE
        if measure.unit == "share":
            return points(simulated - measured)
        return ratio(simulated / measured) if measured > 0 else NONE

    def warnings(self) -> list[str]:
        """Return why the two may differ other than by the simulator's fault."""
        said = []
        for seed in self.seeds:
            measured, simulated = self.measured.seeds[seed], self.simulated.seeds[seed]
            there, here = (r["settings"].get("identity") for r in (measured, simulated))
            if there and here and there != here:
                said.append(f"Seed {seed}: not the same requests (other options, or some left out).")
            speed = measured["settings"].get("speed", 1)
            if speed != 1:
                said.append(f"Seed {seed}: sent {speed:g} times as fast as simulated.")
            states = {side["utilisation"]["label"] == "saturated" for side in (measured, simulated)}
            if len(states) > 1:
                said.append(f"Seed {seed}: only one of the two fell behind what arrived.")
        return said

    def _mean(self, measure: Measure, group: Group) -> float | None:
        values = [measure.of(group.seeds[seed]) for seed in self.seeds]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None


def pairs(study: Study, load: float) -> list[Pair]:
    """Return every simulation at the load, with each replay that it may be compared with."""
    groups = study.at(load)
    found = []
    for measured in (group for group in groups if group.live):
        for simulated in groups:
            seeds = tuple(sorted(measured.seeds.keys() & simulated.seeds.keys()))
            if not simulated.live and seeds and _alike(measured.seeds.values(), simulated.seeds[seeds[0]]):
                found.append(Pair(measured, simulated, seeds))
    return found


def _alike(measured: Iterable[Result], simulated: Result) -> bool:
    """Return whether the policies are the same, if the replay names its own."""
    return all(
        replay[name] in {"live", simulated[name]} for replay in measured for name in ("policy", "order")
    )


def accuracy(pair: Pair) -> Table:
    """Return figures down; measured, simulated and the error across."""
    seeds = f", means over {len(pair.seeds)} seeds" if len(pair.seeds) > 1 else ""
    table = Table(
        f"{pair.simulated.policy}, against {pair.measured.policy}{seeds}",
        ["", "measured", "simulated", "error"],
        notes=pair.warnings(),
    )
    for measure in COMPARED:
        measured, simulated = pair.means(measure)
        if measured is None and simulated is None:
            continue
        table.rows.append(
            [
                Cell(measure.name),
                *(Cell(shown(v, measure.unit)) for v in (measured, simulated)),
                Cell(pair.error(measure)),
            ]
        )
    return table


def compared(study: Study, load: float) -> list[Table]:
    """Return the study's main tables: simulations against what was measured, then policies side by side."""
    found = pairs(study, load)
    tables = [accuracy(pair) for pair in found]
    if len(found) != 1 or len(study.at(load)) > 2:  # one pair's table says everything
        tables.append(comparison(study, load))
    return tables
