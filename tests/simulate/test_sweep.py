"""Sweeps: order, pairs, what is kept, what fails, and who is left when they are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.core.params import PolicyError
from fairlead.simulate.capacity import Capacity
from fairlead.simulate.sweep import cache as sweep_cache
from fairlead.simulate.sweep import cell as sweep_cell
from fairlead.simulate.sweep import run as sweep
from fairlead.simulate.sweep.cell import Maximum, reference_of
from fairlead.simulate.sweep.run import Cell, CellsError, Sample, SweepState, run_cells
from fairlead.trace.model import Trace
from fairlead.trace.workload import Workload
from tests.simulate.sweeping import mooncake, small, untimed


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))


def grid() -> list[Cell]:
    return [
        small(policy, order, seed=seed)
        for seed in (2, 1)
        for policy, order in (("lmetric", "fcfs"), ("d2lpm", "dlpm"), ("round_robin", "vtc"))
    ]


def test_results_come_in_the_order_of_the_cells_however_many_processes_run_them(tmp_path: Path) -> None:
    cells = grid()
    here = run_cells(cells, processes=1, folder=tmp_path / "one")
    there = run_cells(cells, processes=3, folder=tmp_path / "three")
    assert [(r["policy"], r["order"], r["seed"]) for r in there] == [
        (c.settings.policy, c.settings.order, c.settings.seed) for c in cells
    ]
    assert list(map(untimed, here)) == list(map(untimed, there))


def test_a_second_run_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_cells(grid(), processes=2)
    monkeypatch.setattr(sweep, "run_cell", pytest.fail)
    states: list[SweepState] = []
    assert run_cells(grid(), processes=1, progress=states.append) == first
    assert (states[-1].kept, states[-1].done, states[-1].total) == (6, 6, 6)


def test_fresh_runs_what_is_kept_again(tmp_path: Path) -> None:
    run_cells([small()], processes=1)
    states: list[SweepState] = []
    run_cells([small()], processes=1, fresh=True, progress=states.append)
    assert (states[-1].kept, states[-1].requests) == (0, 40)


def test_a_file_that_broke_is_made_again(tmp_path: Path) -> None:
    (first,) = run_cells([small()], processes=1, folder=tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:100])
    (again,) = run_cells([small()], processes=1, folder=tmp_path)
    assert untimed(again) == untimed(first)
    assert json.loads(file.read_text()) == again


def test_equal_cells_run_once(tmp_path: Path) -> None:
    states: list[SweepState] = []
    one, other = run_cells(
        [replace(small(), label="one"), replace(small(), label="other")], processes=1, progress=states.append
    )
    assert one == other
    assert states[-1].requests == 40


def test_no_cells_no_results() -> None:
    assert run_cells([]) == []


# ------------------------------------------------------------------ common random numbers


def arrivals(trace: Trace) -> list[tuple[Any, ...]]:
    return [(s.at, s.client, s.name, [tuple(t) for t in s.turns]) for s in trace.sessions()]


def traces_of(cells: list[Cell], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    seen: list[Any] = []
    real = sweep_cell.simulate

    def simulate(trace: Trace, *args: Any, **named: Any) -> Any:
        seen.append(arrivals(trace))
        return real(trace, *args, **named)

    monkeypatch.setattr(sweep_cell, "simulate", simulate)
    run_cells(cells, processes=1, folder=tmp_path)
    return seen


def test_policies_meet_the_same_requests_at_the_same_times_and_seeds_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [
        small(policy, order, seed=seed, load=0.8, attack="more:0.5")
        for seed in (1, 2)
        for policy, order in (("round_robin", "fcfs"), ("d2lpm", "dlpm"))
    ]
    one, same, two, likewise = traces_of(cells, monkeypatch, tmp_path)
    assert one == same
    assert two == likewise
    assert one != two


def test_the_maximum_is_measured_once_for_all_seeds_policies_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(work: Maximum) -> Capacity:
        measured.append(work)
        return Capacity(10.0, 40)

    monkeypatch.setattr(sweep, "measure_maximum", measure)
    cells = [
        small(policy, seed=seed, load=load, attack=attack)
        for policy in ("lmetric", "d2lpm")
        for seed in (1, 2, 3)
        for load in (0.5, 0.9)
        for attack in ("", "more")
    ]
    results = run_cells(cells, processes=1)
    assert len(measured) == 1
    assert {r["settings"]["capacity_requests_per_s"] for r in results} == {10.0}
    bigger = [replace(c, settings=replace(c.settings, workers=3)) for c in cells[:2]]
    run_cells([*bigger, *cells], processes=1)
    assert [work.settings.workers for work in measured] == [2, 3]


def test_the_measured_workload_has_one_seed_and_neither_attacker_nor_clients_by_rule(tmp_path: Path) -> None:
    path = mooncake(tmp_path / "trace.jsonl")
    given = Workload(
        source=str(path), requests=50, clients=3, assign="random", seed=7, attack="more", weights={"a": 2.0}
    )
    assert reference_of(given) == Workload(source=str(path), requests=50, seed=1)
    generated = Workload(source="judge", clients=3, seed=7)
    assert reference_of(generated) == Workload(source="judge", clients=3, seed=1)


def test_one_opened_trace_serves_the_cells_of_a_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = Workload.open
    monkeypatch.setattr(Workload, "open", lambda self: (opened.append(self.seed), real(self))[1])
    run_cells([small(p, seed=s) for p in ("lmetric", "d2lpm") for s in (11, 12)], processes=1)
    assert opened == [11, 12]


def test_what_is_reachable_equals_what_one_simulation_alone_reports(tmp_path: Path) -> None:
    cell = small(attack="longer:0.5")
    (result,) = run_cells([cell], processes=1)
    trace = cell.workload.attacked(cell.workload.open())
    alone = sweep_cell.simulate(trace, cell.settings)
    assert result["reachable_hit_rate"] == alone.reachable_hit_rate


# ------------------------------------------------------------------ faults


def test_an_unknown_policy_is_named_with_its_cell_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "run_cell", pytest.fail)
    bad = replace(small("lmetrics"), label="the third")
    with pytest.raises(PolicyError, match=r"the third: unknown routing policy 'lmetrics'.*lmetric"):
        run_cells([small(), small("lmetric"), bad], processes=1)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (small(load=-1), "share of the maximum"),
        (small("linear:alpha=0.3"), "linear: .*alpha"),  # of another preset than the default one
        (small(sample=Sample(window=3, windows=2)), "window 3 of 2"),
        (replace(small(), settings=replace(small().settings, engine="h1000")), "unknown profile"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cells_name(cell: Cell, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        run_cells([cell], processes=1)
    assert str(error.value).startswith("dlpm + ")


def test_limits_and_processes_are_checked() -> None:
    with pytest.raises(ValueError, match="no such SLO"):
        run_cells([small()], slos={"ttfb": 1})
    with pytest.raises(ValueError, match="processes: at least 1"):
        run_cells([small()], processes=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cell_that_fails_is_named_and_the_others_are_kept(tmp_path: Path, processes: int) -> None:
    cells = [small(), replace(small(source="no-such-thing"), label="the lost one"), small("lmetric")]
    with pytest.raises(CellsError, match="the lost one: 'no-such-thing' is neither") as error:
        run_cells(cells, processes=processes, folder=tmp_path)
    assert [r and r["policy"] for r in error.value.results] == ["d2lpm", None, "lmetric"]
    states: list[SweepState] = []
    run_cells([cells[0], cells[2]], processes=1, folder=tmp_path, progress=states.append)
    assert states[-1].kept == 2


def test_a_maximum_that_cannot_be_measured_fails_its_cells_only(tmp_path: Path) -> None:
    cells = [small(source="no-such-thing", load=0.5), small()]
    with pytest.raises(CellsError, match="maximum load: 'no-such-thing'") as error:
        run_cells(cells, processes=1)
    assert [result is None for result in error.value.results] == [True, False]


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    def stop(state: SweepState) -> None:
        if state.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(grid(), processes=1, folder=tmp_path, progress=stop)
    states: list[SweepState] = []
    run_cells(grid(), processes=1, folder=tmp_path, progress=states.append)
    assert states[-1].kept == 4
    assert states[-1].requests == 2 * 40


# ------------------------------------------------------------------ a real process, stopped

MANY = 200
SCRIPT = f"""
import sys
from pathlib import Path
from fairlead.simulate.sweep import cache as sweep_cache
from fairlead.simulate.sweep.run import run_cells
from tests.simulate.sweeping import small
sweep_cache.code_hash = lambda: "that of the test"
if __name__ == "__main__":
    run_cells([small(seed=s, requests=400) for s in range({MANY})], processes=2, folder=Path(sys.argv[1]))
"""


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(what: Any, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def running(pid: int) -> bool:
    """Whether a process is there and is no zombie, which some containers leave to nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_leaves_its_results_and_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    root = Path(__file__).parents[2]
    folder = tmp_path / "results"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=root,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"},
    )
    try:
        wait_for(lambda: len(list(folder.glob("*.json"))) >= 2 or process.poll() is not None)
        helpers = children(process.pid)
        process.send_signal(how)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert len(helpers) == 2
    assert b"ForkProcess" not in stderr  # no worker tells of an interrupt of its own
    wait_for(lambda: not any(map(running, helpers)))
    kept = len(list(folder.glob("*.json")))
    assert 2 <= kept < MANY

    monkeypatch.setattr(sweep_cache, "code_hash", lambda: "that of the test")  # whoever edits meanwhile
    seen: list[int] = []

    def look(state: SweepState) -> None:
        seen.append(state.kept)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells([small(seed=s, requests=400) for s in range(MANY)], folder=folder, progress=look)
    assert seen == [kept]
