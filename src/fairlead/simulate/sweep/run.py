"""Many simulations: in several processes or on Ray, each kept on disk by content as it ends.

An interrupted sweep goes on where it was, and a repeated one only reads. A fault in one cell is told at
the end and does not lose the others.
"""

import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.report.metrics import check_slos
from fairlead.simulate.capacity import Capacity, cache_folder
from fairlead.simulate.sweep.cache import Keys, Store
from fairlead.simulate.sweep.cell import Cell, Maximum, Task, measure_maximum, reference_of, run_cell
from fairlead.simulate.sweep.pool import Call, Ended, Ends, Failure, run_here, run_in_processes
from fairlead.simulate.sweep.ray import run_on_ray
from fairlead.simulate.sweep.sample import ALL, Sample

__all__ = ["ALL", "Cell", "CellsError", "Sample", "SweepState", "results_folder", "run_cells"]


class SweepState(NamedTuple):
    """How far a sweep is."""

    doing: str
    """``maximum`` while maximum loads are measured, then ``cells``."""
    done: int
    """Cells (or maximum loads) that ended, those that were kept included."""
    total: int
    kept: int = 0
    """How many were on disk already."""
    failed: int = 0
    requests: int = 0
    """Requests simulated by this sweep."""
    elapsed_s: float = 0.0
    """Since this was begun: the maxima, or the cells."""


Progress = Callable[[SweepState], None]


class CellsError(RuntimeError):
    """Some cells raised. The text names each with its fault."""

    def __init__(self, failures: Sequence[tuple[str, str]], results: Sequence[dict[str, Any] | None]) -> None:
        super().__init__("\n".join(f"{name}: {text}" for name, text in failures))
        self.failures = failures
        """Names of cells, and what was wrong."""
        self.results = results
        """What the cells gave, in their order; None for those that failed."""


def results_folder() -> Path:
    """Return where results are kept if nobody says otherwise."""
    return cache_folder() / "results"


def run_cells(
    cells: Iterable[Cell],
    *,
    processes: int | None = None,
    folder: Path | None = None,
    ray_address: str = "",
    progress: Progress | None = None,
    slos: Mapping[str, float] | None = None,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Run every cell and return their results, as ``summarise`` makes them, in the cells' order.

    ``processes``: how many at once, default one a core; 1 stays in this process. ``folder``: where results
    are kept. ``ray_address``: of a Ray cluster that runs the cells instead. ``progress`` is called after
    every cell and several times a second. ``slos``: limits in milliseconds (default: ``SLOS``).
    ``fresh``: run also what is kept, and keep the new results.

    Raises ValueError (``PolicyError`` is one) naming the cell, before any runs, for settings that cannot
    be, and ``CellsError`` after all have run if some raised. KeyboardInterrupt passes, with what was
    done kept and all processes ended.
    """
    if slos is not None:
        check_slos(slos)
    if processes is not None and processes < 1:
        raise ValueError(f"processes: at least 1, not {processes}")
    return _Sweep(
        list(cells),
        Store(folder or results_folder()),
        Keys(slos),
        slos,
        _Runner(processes or os.cpu_count() or 1, ray_address),
        progress or (lambda _: None),
        fresh,
    ).run()


class _Runner(NamedTuple):
    """Where work is done."""

    processes: int
    ray_address: str

    def __call__(self, calls: Sequence[Call]) -> Ends:
        if self.ray_address:
            return run_on_ray(calls, self.ray_address)
        if self.processes == 1:
            return run_here(calls)
        return run_in_processes(calls, self.processes)


class _Sweep:
    """One call of ``run_cells``."""

    def __init__(
        self,
        cells: list[Cell],
        store: Store,
        keys: Keys,
        slos: Mapping[str, float] | None,
        runner: _Runner,
        progress: Progress,
        fresh: bool,
    ) -> None:
        self.cells, self.store, self.keys, self.slos = cells, store, keys, slos
        self.runner, self.progress, self.fresh = runner, progress, fresh
        self.results: list[dict[str, Any] | None] = [None] * len(cells)
        self.faults: dict[int, str] = {}
        """By the cell's place."""

    def run(self) -> list[dict[str, Any]]:
        for cell in self.cells:
            self._check(cell)
        capacities = self._capacities()
        waiting = self._look_up(capacities)
        self._run_cells(waiting, capacities)
        if self.faults:
            failures = [(self.cells[place].name, text) for place, text in sorted(self.faults.items())]
            raise CellsError(failures, self.results)
        return [result for result in self.results if result is not None]

    def _check(self, cell: Cell) -> None:
        try:
            if not 0 <= cell.load <= 100:
                raise ValueError(f"load is a share of the maximum, such as 0.7, not {cell.load:g}")
            self.keys.of(cell, None)
            cell.settings.dispatcher({})  # some parameters contradict each other
        except ValueError as error:
            raise type(error)(f"{cell.name}: {error}") from None

    def _capacities(self) -> list[Capacity | None]:
        """Return each cell's maximum load, measured once for all that share it."""
        wanted: dict[str, tuple[Maximum, list[int]]] = {}
        for place, cell in enumerate(self.cells):
            if cell.load:
                work = Maximum(reference_of(cell.workload), cell.settings)
                wanted.setdefault(self.keys.of_maximum(work), (work, []))[1].append(place)
        found: list[Capacity | None] = [None] * len(self.cells)
        missing = []
        for key, (work, places) in wanted.items():
            kept = self.store.maximum(key)
            if kept is None:
                missing.append((key, work, places))
            for place in places:
                found[place] = kept
        calls = [Call(measure_maximum, work) for _, work, _ in missing]
        with closing(self._all("maximum", calls)) as ended:
            for at, value in ended:
                key, _, places = missing[at]
                if isinstance(value, Failure):
                    self.faults |= dict.fromkeys(places, f"maximum load: {value.text}")
                    continue
                self.store.put_maximum(key, value)
                for place in places:
                    found[place] = value
        return found

    def _look_up(self, capacities: list[Capacity | None]) -> dict[str, list[int]]:
        """Fill in results that are kept, and return the places of the others by name."""
        waiting: dict[str, list[int]] = {}
        for place, (cell, capacity) in enumerate(zip(self.cells, capacities, strict=True)):
            if place in self.faults:
                continue
            key = self.keys.of(cell, capacity)
            result = None if self.fresh else self.store.get(key)
            if result is None:
                waiting.setdefault(key, []).append(place)
            else:
                self.results[place] = result
        return waiting

    def _run_cells(self, waiting: dict[str, list[int]], capacities: list[Capacity | None]) -> None:
        kept = sum(result is not None for result in self.results)
        keys = list(waiting)
        tasks = [Task(self.cells[places[0]], capacities[places[0]], self.slos) for places in waiting.values()]
        calls = [Call(run_cell, task, task.group) for task in tasks]
        with closing(self._all("cells", calls, kept)) as ended:
            for at, value in ended:
                places = waiting[keys[at]]
                if isinstance(value, Failure):
                    self.faults |= dict.fromkeys(places, value.text)
                    continue
                result = self.store.put(keys[at], value)
                for place in places:
                    self.results[place] = result

    def _all(self, doing: str, calls: list[Call], kept: int = 0) -> Generator[Ended, None, None]:
        """Do all the work, yield what ended, and tell how far it is."""
        done = requests = failed = 0
        began = time.monotonic()

        def tell() -> None:
            elapsed = time.monotonic() - began
            total = len(calls) + kept
            self.progress(SweepState(doing, done + kept, total, kept, failed, requests, elapsed))

        if calls or doing == "cells":
            tell()
        if not calls:
            return
        with closing(self.runner(calls)) as ended:
            for one in ended:
                if one is not None:
                    done += 1
                    if isinstance(one[1], Failure):
                        failed += 1
                    elif doing == "cells":
                        requests += one[1]["num_prompts"]
                    yield one
                tell()
