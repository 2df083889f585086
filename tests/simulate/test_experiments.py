"""``fairlead experiment``: what is simulated, what is kept of it, and what is told."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fairlead import cli
from fairlead.report.tables import Table
from fairlead.simulate.commands import experiment as experiment_command
from fairlead.simulate.experiments import EXPERIMENTS
from fairlead.simulate.experiments.base import (
    DLPM,
    H100,
    OURS,
    VTC,
    CellFigures,
    Experiment,
    Options,
    Planned,
    planned,
)
from fairlead.simulate.experiments.document import load, markdown, page, retold
from fairlead.simulate.experiments.e5 import differences
from fairlead.simulate.experiments.figures import GAP, TOKENS, TTFT, grid, mean, over, ratio, span
from fairlead.simulate.experiments.tuning import SPECS, TUNED, TUNING, tuned
from fairlead.simulate.experiments.workloads import ARENA, CODING, CONVERSATION, generated, hot_prefix
from fairlead.simulate.settings import GATEWAY
from fairlead.trace.reading import read_trace

ROOT = Path(__file__).parents[2]


def cells_of(experiment: Experiment, options: Options) -> list[Planned]:
    return [cell for stage in experiment.stages for cell in stage(options, ())]


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FAIRLEAD_DATA", raising=False)
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment of four cells of 30 requests."""

    def cells(options: Options, _: Sequence[CellFigures]) -> list[Planned]:
        return [
            planned(
                "part", "judge, more", one, generated("judge", 30, seed, attack="more:0.5"),
                load=0.0, workers=2, engine=H100, seed=seed, x=2,
            )
            for one in (VTC, OURS)
            for seed in options.seeds
        ]  # fmt: skip

    def tables(entries: Sequence[CellFigures]) -> list[Table]:
        return [grid(entries, "part", TOKENS, against="VTC")]

    found = Experiment(
        name="tiny",
        title="A | tiny one",
        source="nobody",
        paper="Nothing.",
        why="It is <small>.",
        stages=(cells,),
        seen=lambda entries: [f"{len(entries)} cells"],
        tables=tables,
        charts=lambda _: {"chart": '<svg viewBox="0 0 1 1"></svg>'},
    )
    monkeypatch.setitem(EXPERIMENTS, "tiny", found)
    return found


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", ["e1", "e2", "e3", "e4", "e5", "e7"])
def test_cells_can_be_run_and_meet_the_same_requests(name: str, quick: bool, tmp_path: Path) -> None:
    """Every spec resolves; cells of one row, seed and place differ in nothing but the policies."""
    options = Options(quick, (1, 2, 3), None, tmp_path)
    cells = cells_of(EXPERIMENTS[name], options)
    assert len({p.cell.label for p in cells}) == len(cells)
    rows: dict[Any, set[str]] = {}
    for p in cells:
        p.cell.settings.check()
        p.cell.settings.dispatcher({})
        seed = p.cell.settings.seed
        assert p.cell.workload.seed == seed
        told = replace(p.cell.workload, weights={})
        x = p.x if p.part not in ("quantum", "Qw") else None
        row = (p.part, p.workload, x, seed)
        rows.setdefault(row, set()).add(f"{told} {p.cell.load} {p.cell.sample}")
    assert all(len(found) == 1 for found in rows.values())
    assert name == "e2" or name == "e3" or any(p.contender.label == "ours" for p in cells)


def test_full_forms_are_larger_and_quick_ones_small(tmp_path: Path) -> None:
    for experiment in EXPERIMENTS.values():
        full, quick = (
            cells_of(experiment, Options(q, (1,) if q else (1, 2, 3), None, tmp_path)) for q in (False, True)
        )
        assert len(quick) < len(full)
        assert all(p.cell.workload.requests <= 1_000 for p in quick)


def test_ours_is_said_in_one_place(tmp_path: Path) -> None:
    told = {
        (p.cell.settings.order, p.cell.settings.policy, p.cell.settings.topology)
        for experiment in EXPERIMENTS.values()
        for p in cells_of(experiment, Options(True, (1,), None, tmp_path))
        if p.contender.label == "ours"
    }
    assert told == {(OURS.order, OURS.policy, OURS.topology)}


def test_a_run_writes_what_it_showed_and_a_second_only_reads(
    tiny: Experiment, no_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = no_data / "out"
    words = ["experiment", "tiny", "--seeds", "2", "--processes", "1", "--out", str(out)]
    assert cli.main([*words, "--html", str(out / "p.html"), "--markdown", str(out / "p.md")]) == 0
    told = load(out / "tiny.json")
    assert told["seen"] == ["4 cells"]
    assert told["ours"]["policy"] == OURS.policy
    assert [cell["contender"] for cell in told["cells"]] == ["VTC", "VTC", "ours", "ours"]
    assert all(cell["requests"] > 30 and cell["figures"]["tokens_per_s"] > 0 for cell in told["cells"])
    assert {cell["topology"] for cell in told["cells"]} == {"engine", GATEWAY}
    shown = capsys.readouterr().out
    assert "judge, more" in shown
    assert (out / "p.md").read_text() == markdown(tiny, told)
    assert "It is &lt;small&gt;." in (out / "p.html").read_text()
    assert (out / "p.html").read_text() == page([(tiny, told)])
    first = (out / "tiny.json").read_text()
    monkeypatch.setattr("fairlead.simulate.sweep.run.run_cell", lambda _: pytest.fail("it was kept"))
    assert cli.main(words) == 0
    assert (out / "tiny.json").read_text() == first


def test_markdown_escapes_what_tables_are_made_of(tiny: Experiment) -> None:
    told = {"experiment": "tiny", "title": "t", "source": "s", "form": "quick", "seeds": [1], "cells": []}
    entries = [entry(1, "a|b", "VTC", tokens_per_s=10.0), entry(1, "a|b", "ours", tokens_per_s=20.0)]
    text = markdown(tiny, {**told, "paper": "", "seen": [], "missing": [], "why": "", "cells": entries})
    assert "a\\|b" in text
    assert "+100%" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["e9"], "there is no experiment 'e9'"),
        (["e1", "--seeds", "0"], "--seeds"),
        (["e1", "--data", "/nowhere"], "--data"),
    ],
)
@pytest.mark.usefixtures("no_data")
def test_wrong_options_are_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiment", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("no_data")
def test_what_is_missing_and_where_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiment", "--list"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for trace in (CONVERSATION, CODING, ARENA):
        assert f"{trace.name}: left out" in out
    assert "kvcache-ai/Mooncake" in out
    assert "cells one worker" in out


@pytest.mark.usefixtures("no_data")
def test_recorded_traces_take_part_where_they_are(tmp_path: Path) -> None:
    for trace in (CONVERSATION, CODING, ARENA):
        path = tmp_path / "traces" / trace.path
        path.parent.mkdir(parents=True)
        path.touch()
    options = Options(False, (1, 2, 3), tmp_path, tmp_path)
    for name in ("e3", "e4"):
        cells = cells_of(EXPERIMENTS[name], options)
        assert {CONVERSATION.name, CODING.name} < {p.workload for p in cells}
        recorded = [p for p in cells if p.workload == CODING.name]
        assert all(p.cell.sample.gaps for p in recorded)
        tuning = {p.cell.workload.seed for p in recorded if p.part == TUNING}
        assert not tuning & {p.cell.workload.seed for p in recorded if p.part != TUNING}
        assert EXPERIMENTS[name].missing(options) == []


@pytest.mark.usefixtures("no_data", "tiny")
def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment_command, "run_cells", interrupted)
    assert cli.main(["experiment", "tiny"]) == 130
    assert "goes on from there" in capsys.readouterr().err


def entry(seed: int, workload: str, contender: str, **figures: float) -> dict[str, Any]:
    return {
        "part": "part", "workload": workload, "contender": contender, "x": None, "seed": seed,
        "policy": contender, "state": "loaded", "figures": figures,
    }  # fmt: skip


def test_figures_are_means_over_seeds_and_ratios_over_pairs() -> None:
    entries = [
        entry(1, "w", "VTC", tokens_per_s=100.0, gap=5.0),
        entry(2, "w", "VTC", tokens_per_s=400.0, gap=5.0),
        entry(1, "w", "DLPM", tokens_per_s=200.0, gap=7.0),
        entry(2, "w", "DLPM", tokens_per_s=800.0, gap=9.0),
    ]
    assert mean(entries[:2], TOKENS) == 250
    assert ratio(entries, TOKENS, "DLPM", "VTC") == pytest.approx(2.0)
    assert over(entries, "part", GAP, "DLPM", ["VTC"]) == {"w": 8 / 5}
    assert mean(entries, TTFT) is None
    assert (
        span({"a": 2.0, "b": 0.5, "c": None})
        == "0.500\N{MULTIPLICATION SIGN} (b) to 2.00\N{MULTIPLICATION SIGN} (a)"
    )
    entries[0]["state"] = entries[1]["state"] = "saturated"
    table = grid(entries, "part", TOKENS, against="VTC")
    assert [cell.text for cell in table.rows[0]] == ["w", "250*", "500"]
    assert table.notes


def test_the_search_takes_the_least_mean_ttft() -> None:
    cells = [entry(101, "w", spec, ttft_mean=float(abs(i - 7))) for i, spec in enumerate(SPECS)]
    entries = [{**cell, "part": TUNING} for cell in cells]
    assert tuned(entries, "w") == (TUNED, "fcfs", SPECS[7], "engine")
    assert tuned(entries, "another").policy.startswith("linear")
    assert len(set(SPECS)) == len(SPECS)


def test_one_prefix_takes_most_arrivals_of_the_middle_third(tmp_path: Path) -> None:
    path = hot_prefix(tmp_path, 300)
    again = path.read_bytes()
    assert hot_prefix(tmp_path, 300).read_bytes() == again
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    hot = [row["hash_ids"][0] == 500_000 for row in rows]
    assert sum(hot[:100]) == sum(hot[200:]) == 0
    assert 65 <= sum(hot[100:200]) <= 95
    trace = read_trace(path)
    assert trace.requests == 300
    assert not trace.repairs


def test_vtcs_service_difference_by_hand() -> None:
    """Two clients at 10 and 4 units a second; the second one asks for 9: min(10 - 4, 9 - 4) = 5."""
    seconds = [float(s) for s in range(1, 241)]
    result = {
        "series": {
            "client_times_s": seconds,
            "service": [[10 * s for s in seconds], [4 * s for s in seconds]],
            "demand": [[10 * s for s in seconds], [9 * s for s in seconds]],
        },
        "clients": [{"weight": 1.0}, {"weight": 1.0}],
        "load": 0.0,
        "num_prompts": 201,
        "request_rate": 1.0,
        "total_token_throughput": 1_558.0,
    }
    found = differences(result)
    assert found["diff_max"] == pytest.approx(5.0)
    assert found["scaled_max"] == pytest.approx(2.5)
    assert found["diff_mean"] is not None
    assert 4.5 < found["diff_mean"] <= 5.0  # half a window lies before the beginning


def test_the_papers_dlpm_keeps_a_deficit_a_worker() -> None:
    assert "scope=worker" in DLPM.order


def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "draw_experiments", ROOT / "scripts" / "draw_experiments.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_and_its_drawings_are_those_of_the_committed_results() -> None:
    wanted: dict[Path, str] = drawing().files()
    docs = ROOT / "docs"
    assert {
        docs / "experiments.md",
        *(docs / "experiments" / f"{e}.md" for e in EXPERIMENTS),
    } <= wanted.keys()
    stale = [path.name for path, text in wanted.items() if path.read_text("utf-8") != text]
    assert not stale, "run scripts/draw_experiments.py"
    drawn = {path for path in wanted if path.suffix == ".svg"}
    assert drawn == set((ROOT / "docs" / "img" / "experiments").glob("e[0-9]*-*.svg"))


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_committed_results_tell_what_the_code_tells(name: str) -> None:
    path = ROOT / "experiments" / f"{name}.json"
    told = load(path)
    assert told == retold(EXPERIMENTS[name], told)
    assert told["why"]
    assert all(cell["figures"] for cell in told["cells"])


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"fairlead": "0"}')
    with pytest.raises(ValueError, match="schema"):
        load(path)
