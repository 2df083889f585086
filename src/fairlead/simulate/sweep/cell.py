"""One cell of a sweep: what it is, and how a worker process runs it.

What this module imports, directly or not, is what a result depends on: ``sweep.cache.code_hash``.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from fairlead.report.metrics import summarise
from fairlead.simulate.capacity import Capacity, at_load
from fairlead.simulate.runner import REACH_LIMIT, prepare, simulate
from fairlead.simulate.settings import Settings
from fairlead.simulate.sweep.sample import ALL, Sample
from fairlead.trace.model import Trace
from fairlead.trace.reachable import Reach, reach
from fairlead.trace.transform import gamma_arrivals
from fairlead.trace.workload import Workload

REFERENCE_SEED = 1
"""Seed of the workload whose maximum load is measured, for the cells of every seed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation of a sweep.

    Cells with equal ``workload``, ``load`` and ``sample`` see the same requests at the same times,
    whatever their policies: common random numbers. Give ``workload`` and ``settings`` the same seed.
    """

    workload: Workload
    settings: Settings
    load: float = 0.0
    """Share of the maximum that the fleet serves of this workload without its attacker; 0: as it comes."""
    label: str = ""
    """How progress and errors call it; empty: policies, load, seed and source."""
    sample: Sample = ALL

    @property
    def name(self) -> str:
        """The label, or one made of what the cell is."""
        if self.label:
            return self.label
        load = f", load {self.load:g}" if self.load else ""
        settings = self.settings
        return f"{settings.order} + {settings.policy}{load}, seed {settings.seed}, {self.workload.source}"


def reference_of(workload: Workload) -> Workload:
    """Return the workload whose maximum counts for this one: seed 1, no attacker, loops or say who is whose.

    The maximum is measured with policies that do not look at clients. One maximum for all seeds makes a
    load the same requests a second in each of them.
    """
    plain = replace(
        workload, seed=REFERENCE_SEED, assign="", weights={}, attack="", attack_at_s=0.0, concurrency={}
    )
    return replace(plain, clients=0) if Path(workload.source).exists() else plain


class Maximum(NamedTuple):
    """Work for a process: measure how much of a workload a fleet serves."""

    workload: Workload
    settings: Settings


class Task(NamedTuple):
    """Work for a process: one cell."""

    cell: Cell
    capacity: Capacity | None
    slos: Mapping[str, float] | None

    @property
    def group(self) -> Hashable:
        """Tasks of equal groups can share what a process has in memory."""
        return _source(self.cell)


def measure_maximum(work: Maximum) -> Capacity:
    """Return the maximum load, from the disk if it was measured before."""
    _, capacity = prepare(work.workload, work.settings, 1.0)
    assert capacity is not None
    return capacity


def run_cell(task: Task) -> dict[str, Any]:
    """Simulate one cell and return its result. Raises what a workload or settings at fault raise."""
    cell = task.cell
    trace = _TRACES.get(_source(cell), lambda: cell.sample.of(cell.workload.open(), cell.workload.seed))
    if task.capacity is not None:
        if cell.sample.gaps and not trace.duration_us:  # it has no times of its own: other ones every seed
            trace = gamma_arrivals(trace, 1.0, seed=cell.workload.seed)
        trace = at_load(trace, task.capacity, cell.load)
    trace = cell.workload.looped(cell.workload.attacked(trace))
    # Without an attacker the load moves arrivals and not their order, and with it no hit.
    same = (_source(cell), (cell.load, task.capacity) if cell.workload.attack else None)
    reached = _REACHES.get(same, lambda: reach(trace, REACH_LIMIT))
    run = simulate(trace, cell.settings, load=cell.load, capacity=task.capacity, reachable=reached.hit_rate)
    if not reached.whole:
        run.labels = [*run.labels, f"reachable hit rate of the first {reached.requests:,} requests"]
    return summarise(run, task.slos, cell.settings.costs)


def _source(cell: Cell) -> Hashable:
    return repr(cell.workload), cell.sample


V = TypeVar("V")


class _Recent(Generic[V]):
    """Keeps the last few values: traces are large, and a process uses one after the other."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value of ``key``, made if it is not here."""
        if key not in self._values:
            while (
                len(self._values) >= self._most
            ):  # first, so that two large ones are never in memory together
                self._values.popitem(last=False)
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]


_TRACES: _Recent[Trace] = _Recent(1)
_REACHES: _Recent[Reach] = _Recent(1_000)
