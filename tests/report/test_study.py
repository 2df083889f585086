"""What is compared with what, and what never is."""

import copy
from typing import Any

import pytest

from fairlead.report.metrics import summarise
from fairlead.report.naming import policy_names
from fairlead.report.statistics import Difference
from fairlead.report.study import MEAN_TTFT, Group, difference, studies
from fairlead.report.verdict import verdict
from tests.report.runs import queue_run

SETUP: dict[str, Any] = {
    "kind": "simulate",
    "engine": "toy",
    "workers": 1,
    "topology": "gateway",
    "policy": "d2lpm",
    "order": "dlpm",
}


def result(**changes: Any) -> dict[str, Any]:
    return summarise(queue_run(requests=40, **changes))


def labelled(found: dict[str, Any], label: str, ttft: float) -> dict[str, Any]:
    changed = copy.deepcopy(found)
    changed["utilisation"]["label"] = label
    changed["mean_ttft_ms"] = ttft
    return changed


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return result()


def group(policy: str, one: dict[str, Any], *rows: tuple[int, str, float]) -> Group:
    return Group(policy, 0.8, {seed: labelled(one, label, ttft) for seed, label, ttft in rows})


def test_policies_are_named_by_what_differs() -> None:
    runs = [
        {**SETUP, "policy": p, "order": o, "load": 0.5, "seed": 1, "settings": {}}
        for p, o in (("marginal", "dlpm"), ("lmetric", "dlpm"))
    ]
    assert policy_names(runs) == ["marginal", "lmetric"]
    for run in runs:
        run["policy"] = "marginal"
    runs[1]["order"] = "fcfs"
    assert policy_names(runs) == ["dlpm", "fcfs"]
    assert policy_names(runs[:1]) == ["marginal + dlpm"]


def test_runs_alike_but_for_a_setting_are_told_apart_by_it() -> None:
    runs = [
        {**SETUP, "load": 0.5, "seed": s, "settings": {"quantum": q, "seed": s}}
        for s in (1, 2)
        for q in (4000, 8000)
    ]
    assert policy_names(runs) == ["d2lpm + dlpm, quantum=4000", "d2lpm + dlpm, quantum=8000"] * 2


def test_other_workloads_are_other_studies_and_other_loads_are_not() -> None:
    runs = [result(load=0.5), result(load=0.8), result(workload="another")]
    first, second = studies(runs)
    assert first.loads == [0.5, 0.8]
    assert second.loads == [0.8]
    assert (first.number, second.number) == (0, 1)


def test_the_baseline_can_be_named() -> None:
    runs = [result(policy="lmetric"), result(policy="marginal")]
    assert studies(runs)[0].baseline == "lmetric"
    assert studies(runs, "marg")[0].policies == ["marginal", "lmetric"]
    with pytest.raises(ValueError, match="there are lmetric; marginal"):
        studies(runs, "d2lpm")


def test_saturated_seeds_are_never_averaged_with_others(one: dict[str, Any]) -> None:
    mixed = group("a", one, (1, "loaded", 100), (2, "loaded", 200), (3, "saturated", 90_000))
    assert mixed.mean(MEAN_TTFT) == 150
    assert mixed.state == "1 of 3 seeds saturated"
    full = group("a", one, (1, "saturated", 1000), (2, "saturated", 3000))
    assert full.mean(MEAN_TTFT) == 2000
    assert full.state == "saturated"


def test_only_seeds_in_the_same_state_are_compared(one: dict[str, Any]) -> None:
    before = group("a", one, (1, "loaded", 100), (2, "loaded", 200), (3, "saturated", 90_000))
    after = group("b", one, (1, "light", 50), (2, "saturated", 9000), (3, "saturated", 80_000))
    found = difference(MEAN_TTFT, before, after)
    assert isinstance(found, Difference)
    assert (found.pairs, found.before, found.after) == (1, 100, 50)
    assert difference(MEAN_TTFT, before, group("c", one, (1, "saturated", 7.0))) is None
    both = difference(MEAN_TTFT, before, group("c", one, (3, "saturated", 45_000)))
    assert both is not None
    assert both.ratio == pytest.approx(0.5)


def test_the_main_load_is_the_highest_that_half_of_the_policies_keep_up_with(one: dict[str, Any]) -> None:
    one = {**one, "victims": None}
    runs = []
    for policy, breaks in (("a", 0.9), ("b", 0.7), ("c", 0.7)):
        for load in (0.5, 0.7, 0.9):
            run = labelled(one, "saturated" if load >= breaks else "loaded", 100 * load)
            runs.append({**run, "policy": policy, "load": load})
    study = studies(runs)[0]
    assert study.main_load == 0.5
    assert studies(runs[:6])[0].main_load == 0.7
    assert "saturated" in (study.knee("b") or pytest.fail("no knee")).why


def test_under_attack_the_main_load_is_the_highest_that_the_others_alone_would_fit(
    one: dict[str, Any],
) -> None:
    runs = [{**labelled(one, "saturated", 100), "load": load} for load in (0.5, 0.9, 1.1)]
    assert studies(runs)[0].main_load == 0.9
    assert studies(runs[2:])[0].main_load == 1.1
    said = verdict(studies([runs[1], {**runs[1], "policy": "b"}])[0])
    assert "Every policy fell behind what arrived." in said.points


def test_a_verdict_names_the_best_and_says_when_nothing_is_seen(one: dict[str, Any]) -> None:
    def runs(other: list[float]) -> list[dict[str, Any]]:
        found = []
        for policy, values in (("a", [100.0, 120.0, 140.0]), ("b", other)):
            for seed, value in enumerate(values):
                run = {**labelled(one, "loaded", value), "policy": policy, "seed": seed, "victims": None}
                found.append(run)
        return found

    clear = verdict(studies(runs([40.0, 48.5, 55.5]))[0])
    assert clear.headline == "Mean TTFT of b is 2.50 times lower than that of a, the next best."
    assert "3 paired seeds" in clear.confidence
    open_ = verdict(studies(runs([90.0, 135.0, 128.0]))[0])
    assert open_.headline.startswith("No difference seen in mean TTFT between b and a")
    single = verdict(studies([r for r in runs([50.0, 60.0, 70.0]) if r["seed"] == 0])[0])
    assert "on one seed" in single.headline
    assert "One seed" in single.confidence


def test_a_verdict_looks_past_the_policies_that_are_level_with_the_best(one: dict[str, Any]) -> None:
    rows = (("a", [400.0, 480.0, 560.0]), ("b", [90.0, 135.0, 128.0]), ("c", [100.0, 120.0, 140.0]))
    runs = [
        {**labelled(one, "loaded", value), "policy": policy, "seed": seed, "victims": None}
        for policy, values in rows
        for seed, value in enumerate(values)
    ]
    said = verdict(studies(runs)[0]).headline
    assert said.startswith("Mean TTFT of b is 4.")
    assert said.endswith("times lower than that of a; no difference seen to c.")


def test_a_policy_that_alone_keeps_up_wins_without_figures_of_the_others(one: dict[str, Any]) -> None:
    kept, fell = labelled(one, "loaded", 500), {**labelled(one, "saturated", 10), "policy": "b"}
    said = verdict(studies([kept, fell])[0])
    assert said.headline == "Only marginal kept up."
    assert "Saturated at this load: b." in said.points


def test_leaving_the_bound_is_said_aloud(one: dict[str, Any]) -> None:
    broken = copy.deepcopy(one)
    broken["fairness"]["bound_share"] = 1.2
    assert any("120% of the bound: OUTSIDE" in point for point in verdict(studies([broken])[0]).points)
    both = verdict(studies([one, {**broken, "policy": "b"}])[0])
    assert "OUTSIDE the fairness bound: b (120% of it)." in both.points


def simulated(**changes: Any) -> dict[str, Any]:
    return {**result(), "load": 0.0, **changes}


def replayed(**changes: Any) -> dict[str, Any]:
    live = {"kind": "replay", "policy": "live", "order": "live", "topology": "live", "workers": 0}
    return {**simulated(), **live, "engine": "a-model", **changes}


def test_a_replay_alone_is_a_live_endpoint_and_no_fleet_of_none() -> None:
    study = studies([replayed()])[0]
    assert study.title == "by hand \N{MIDDLE DOT} live endpoint a-model \N{MIDDLE DOT} misbehaving: flood"
    assert study.policies == ["live endpoint"]


def test_a_replay_stands_beside_the_simulations_of_its_arrivals_only() -> None:
    runs = [simulated(), result(load=0.7), simulated(workload="another"), replayed()]
    beside, loaded, another = studies(runs)
    assert beside.policies == ["live endpoint", "marginal + dlpm, simulated"]
    assert beside.title.split(" \N{MIDDLE DOT} ")[1:3] == [
        "live endpoint a-model",
        "simulated: 2 \N{MULTIPLICATION SIGN} toy, the gateway holds the queue",
    ]
    assert (loaded.loads, loaded.policies) == ([0.7], ["marginal + dlpm"])
    assert another.policies == ["marginal + dlpm"]
    assert studies(runs, "simulated")[0].baseline == "marginal + dlpm, simulated"


def test_simulations_of_other_fleets_beside_a_replay_are_told_apart() -> None:
    study = studies([simulated(), simulated(workers=4), replayed()])[0]
    assert study.policies == [
        "live endpoint",
        "marginal + dlpm, 2 workers, simulated",
        "marginal + dlpm, 4 workers, simulated",
    ]


def test_replays_are_named_by_what_they_were_told_and_numbered_when_repeated() -> None:
    slow = replayed(settings={"url": "http://b"})
    runs = [replayed(policy="lmetric"), replayed(), replayed(), slow]
    assert policy_names(runs) == [
        "lmetric, measured, url=None",
        "live endpoint, url=None",
        "live endpoint, url=None, run 2",
        "live endpoint, url=http://b",
    ]
