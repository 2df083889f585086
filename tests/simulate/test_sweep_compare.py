"""``fairlead compare``: what its flags ask for, what it writes, and how it ends."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cli import main
from fairlead.core.params import PolicyError
from fairlead.report.results import load_all
from fairlead.simulate.commands import compare as compare_command
from fairlead.simulate.commands.compare import cells_from, seeds_mean, slos_from
from fairlead.simulate.commands.compare_arguments import (
    Pair,
    loads_from,
    pairs_from,
    parse_pair,
    samples_from,
    seeds_from,
    specs,
)
from fairlead.simulate.settings import Settings
from fairlead.simulate.sweep import run as sweep
from fairlead.simulate.sweep.run import ALL, Cell, Sample
from tests.simulate.sweeping import mooncake


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")


def cells(*words: str) -> list[Cell]:
    parser = argparse.ArgumentParser()
    compare_command.add_arguments(parser)
    return cells_from(parser.parse_args(words))


SPEC = st.builds(
    lambda name, params: name + ":" * bool(params) + ",".join(f"{k}={v}" for k, v in params.items()),
    st.sampled_from(["linear", "d2lpm", "lmetric", "round_robin"]),
    st.dictionaries(st.sampled_from(["alpha", "beta", "quantum"]), st.sampled_from(["1", "1e+3", "a:b"])),
)


def test_the_page_names_each_flag_and_its_examples_are_policies() -> None:
    page = (Path(__file__).parents[2] / "docs/compare.md").read_text()
    parser = argparse.ArgumentParser(add_help=False)
    compare_command.add_arguments(parser)
    own = next(group for group in parser._action_groups if group.title == "options")
    flags = {action.option_strings[0] for action in own._group_actions}
    assert {flag for flag in flags if not re.search(rf"[` ]{flag}[` ]", page)} == set()
    listed = re.search(r"`--policies\s+(linear:\S+)`", page)
    assert listed
    assert [pair.policy for pair in pairs_from("", listed[1], "", "")] == [
        "linear:preset=production,alpha=0.3",
        "lmetric",
    ]
    for pair in pairs_from("", listed[1], "", ""):
        Settings(policy=pair.policy, order=pair.order).dispatcher({})


@given(st.lists(SPEC, max_size=6))
def test_a_list_of_policies_is_cut_between_policies_only(listed: list[str]) -> None:
    assert specs(",".join(listed)) == listed
    assert specs(", ".join(listed)) == listed


def test_a_parameter_needs_its_policy() -> None:
    with pytest.raises(PolicyError, match="'a=1' is a parameter without a policy"):
        specs("a=1,lmetric")


@pytest.mark.parametrize(
    ("told", "pair"),
    [
        ("dlpm+d2lpm", Pair("dlpm", "d2lpm")),
        ("d2lpm+dlpm", Pair("dlpm", "d2lpm")),
        ("dlpm:quantum=4e+3+d2lpm:quantum=1", Pair("dlpm:quantum=4e+3", "d2lpm:quantum=1")),
        (" fcfs + lmetric ", Pair("fcfs", "lmetric")),
    ],
)
def test_a_pair_is_an_ordering_and_a_routing_policy_either_one_first(told: str, pair: Pair) -> None:
    assert parse_pair(told) == pair


@pytest.mark.parametrize("told", ["dlpm", "dlpm+fcfs", "d2lpm+lmetric", "+", "dlpm+", "dlpn+d2lpm"])
def test_what_is_no_pair_is_refused_with_the_names_there_are(told: str) -> None:
    with pytest.raises(PolicyError, match=r"no pair ORDER\+POLICY.*fcfs.*round_robin"):
        parse_pair(told)


def test_pairs_come_as_listed_or_in_every_combination_the_baseline_first() -> None:
    assert list(map(str, pairs_from("", "lmetric,d2lpm", "fcfs,dlpm", ""))) == [
        "fcfs+lmetric",
        "dlpm+lmetric",
        "fcfs+d2lpm",
        "dlpm+d2lpm",
    ]
    listed = "fcfs+lmetric,dlpm+d2lpm,dlpm+marginal"
    assert list(map(str, pairs_from(listed, "", "", "d2lpm+dlpm"))) == [
        "dlpm+d2lpm",
        "fcfs+lmetric",
        "dlpm+marginal",
    ]
    assert pairs_from(listed, "", "", "marginal")[0] == Pair("dlpm", "marginal")
    assert len(pairs_from("fcfs+lmetric,lmetric+fcfs", "", "", "")) == 1
    assert len(pairs_from("", "", "", "")) == 4


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("dlpm+d2lpm", "lmetric", "", ""), "leave out --policies and --orders"),
        (("dlpm+d2lpm,dlpm+marginal", "", "", "dlpm"), "names several pairs"),
        (("dlpm+d2lpm", "", "", "fcfs+lmetric"), "names none of the pairs; there are dlpm\\+d2lpm"),
        (("", "lmetrics", "", ""), "unknown routing policy 'lmetrics'"),
        (("", "", "dlpn", ""), "unknown ordering policy 'dlpn'"),
        (("", "d2lpm:quantun=3", "", ""), "quantun"),
    ],
)
def test_contradictions_and_unknown_policies_are_refused(flags: tuple[str, str, str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pairs_from(*flags)


def test_loads_and_seeds_are_lists() -> None:
    assert loads_from("", 0.7) == [0.7]
    assert loads_from("0.5,0.9,0.5", 0.7) == [0.5, 0.9]
    assert seeds_from("3") == [1, 2, 3]
    assert seeds_from("6-9") == [6, 7, 8, 9]
    assert seeds_from("4,1,4") == [4, 1]
    for bad in ("0", "", "-1", "9-6", "a", "1,b"):
        with pytest.raises(ValueError, match="--seeds"):
            seeds_from(bad)
    for bad in ("x", "-0.5", "101", "0.5,", "nan"):
        with pytest.raises(ValueError, match="--loads"):
            loads_from(bad, 0.7)


def test_limits_are_named() -> None:
    assert slos_from("") is None
    assert slos_from("ttft=500,tpot=50") == {"ttft": 500.0, "tpot": 50.0}
    for bad in ("ttft", "ttft=x", "ttfb=3", "ttft=0"):
        with pytest.raises(ValueError, match=r"SLO|--slos"):
            slos_from(bad)


def test_what_a_seed_draws_follows_from_what_the_workload_is(tmp_path: Path) -> None:
    trace = str(mooncake(tmp_path / "trace.jsonl"))
    assert samples_from("", "judge", [1, 2]) == [ALL, ALL]
    assert samples_from("", trace, [1, 2]) == [Sample(gaps=True)] * 2
    assert samples_from("", trace, [3]) == [ALL]
    assert samples_from("none", trace, [1, 2]) == [ALL, ALL]
    assert samples_from("windows", trace, [7, 9]) == [
        Sample(window=1, windows=2),
        Sample(window=2, windows=2),
    ]
    meanings = [
        seeds_mean(cells(*words, "--seeds", "2"))
        for words in (
            ("judge",),
            (trace,),
            (trace, "--sample", "windows"),
            (trace, "--sample", "none"),
        )
    ]
    assert len(set(meanings)) == 4
    assert seeds_mean(cells(trace, "--seeds", "1")) == ""


def test_cells_pair_the_seed_of_workload_and_settings() -> None:
    found = cells("judge", "--seeds", "2", "--loads", "0.5,0.9", "--workers", "3", "--attack", "more")
    assert len(found) == 4 * 2 * 2
    assert all(c.workload.seed == c.settings.seed and c.settings.workers == 3 for c in found)
    assert {c.workload.attack for c in found} == {"more"}
    assert [c.load for c in found] == [0.5] * 8 + [0.9] * 8
    assert found[0].label == "fcfs+round_robin, load 0.5, seed 1"


# ------------------------------------------------------------------ the command

SMALL = [
    "shared-prefix",
    "--requests",
    "40",
    "--workers",
    "2",
    "--loads",
    "0",
    "--seeds",
    "2",
    "--processes",
    "1",
]


def test_it_compares_and_writes_what_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [
        "compare",
        *SMALL,
        "--pairs",
        "dlpm+d2lpm,fcfs+lmetric",
        "--baseline",
        "lmetric",
        *("--json", str(out / "json"), "--html", str(out / "a.html"), "--markdown", str(out / "a.md")),
    ]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "4 of 4 cells, 4 simulated" in told.err
    assert "the difference to lmetric + fcfs" in told.out
    assert "A seed makes the whole workload anew" in told.out
    results = load_all([out / "json"])
    assert [(r["policy"], r["seed"]) for r in results] == [
        ("lmetric", 1), ("lmetric", 2), ("d2lpm", 1), ("d2lpm", 2),
    ]  # fmt: skip
    assert "A seed makes the whole workload anew" in (out / "a.md").read_text()
    assert "<html" in (out / "a.html").read_text()

    assert main(words) == 0
    assert "4 of 4 cells, 4 from the cache" in capsys.readouterr().err


def test_a_trace_is_compared_over_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mooncake(tmp_path / "trace.jsonl")
    words = [
        "compare",
        str(path),
        "--workers",
        "2",
        "--seeds",
        "3",
        "--processes",
        "1",
        "--sample",
        "windows",
    ]
    assert main([*words, "--clients", "2", "--json", str(tmp_path / "json")]) == 0
    results = load_all([tmp_path / "json"])
    assert {r["num_prompts"] for r in results} == {20}
    assert any("window 2 of 3" in label for r in results for label in r["labels"])
    assert "3 consecutive windows" in capsys.readouterr().out


def test_a_failed_cell_ends_with_1_and_its_name_and_the_rest_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = sweep.run_cell

    def run_cell(task: Any) -> Any:
        if task.cell.settings.policy == "d2lpm":
            raise RuntimeError("broken")
        return real(task)

    monkeypatch.setattr(sweep, "run_cell", run_cell)
    assert main(["compare", *SMALL, "--pairs", "dlpm+d2lpm,fcfs+lmetric"]) == 1
    told = capsys.readouterr()
    assert "fairlead compare: dlpm+d2lpm, load 0, seed 1, and 1 more cells: RuntimeError: broken" in told.err
    assert "4 of 4 cells, 2 simulated in " in told.err
    assert "2 failed" in told.err
    assert "lmetric" in told.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such-workload", "--loads", "0"], "neither a file nor a generator"),
        (["judge", "--pairs", "dlpm"], "no pair ORDER+POLICY"),
        (["judge", "--policies", "lmetrics"], "unknown routing policy 'lmetrics'"),
        (["judge", "--loads", "none"], "--loads"),
        (["judge", "--workers", "0"], "workers: at least 1"),
        (["judge", "--processes", "0"], "processes: at least 1"),
    ],
)
def test_bad_input_ends_with_a_line_and_no_result(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *words]) in (1, 2)
    shown = capsys.readouterr()
    assert shown.err.count(told) == 1
    assert shown.out == ""


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(task: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_cell", interrupted)
    assert main(["compare", *SMALL]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_limits_reach_the_results(tmp_path: Path) -> None:
    words = ["compare", *SMALL, "--slos", "ttft=0.001", "--json", str(tmp_path / "json")]
    assert main(words) == 0
    for file in (tmp_path / "json").iterdir():
        result = json.loads(file.read_text())
        assert result["slos"] == {"ttft": 0.001}
        assert result["attainment"] == 0
