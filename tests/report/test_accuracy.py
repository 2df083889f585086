"""Simulations held against replays: who against whom, by how much they are off, and what is said of it."""

import copy
from typing import Any

import pytest

from fairlead.report.accuracy import accuracy, compared, pairs
from fairlead.report.html import page
from fairlead.report.markdown import document
from fairlead.report.metrics import summarise
from fairlead.report.numbers import MINUS, NONE, TIMES
from fairlead.report.study import HIT_RATE, MEAN_TPOT, MEAN_TTFT, Study, studies
from fairlead.report.verdict import verdict
from tests.report.runs import queue_run


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    return {**summarise(queue_run(requests=40, load=0.5)), "load": 0.0}


def measured(simulated: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the same requests as a live endpoint would have served them."""
    found = copy.deepcopy(simulated)
    found |= {"kind": "replay", "policy": "live", "order": "live", "workers": 0, "topology": "live"}
    return {**found, **changes}


def together(*results: dict[str, Any]) -> Study:
    found = studies(results)
    assert len(found) == 1
    return found[0]


def test_errors_are_of_the_simulation_in_percent_of_what_was_measured(simulated: dict[str, Any]) -> None:
    live = measured(simulated, mean_ttft_ms=200.0, mean_tpot_ms=20.0, hit_rate=0.6)
    study = together({**simulated, "mean_ttft_ms": 150.0, "mean_tpot_ms": 70.0, "hit_rate": 0.5}, live)
    (pair,) = pairs(study, 0.0)
    assert pair.means(MEAN_TTFT) == (200, 150)
    assert [pair.error(m) for m in (MEAN_TTFT, MEAN_TPOT, HIT_RATE)] == [
        f"{MINUS}25%",
        f"3.50{TIMES}",
        f"{MINUS}10 points",
    ]
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in accuracy(pair).rows}
    assert rows["mean TTFT"] == ["200 ms", "150 ms", f"{MINUS}25%"]
    assert list(rows) == [
        *("mean TTFT", "P50 TTFT", "P99 TTFT", "mean TPOT", "P50 TPOT", "P99 TPOT"),
        *("hit rate", "tokens/s", "met SLOs"),
    ]


def test_means_are_over_the_seeds_that_both_have(simulated: dict[str, Any]) -> None:
    runs = [{**simulated, "seed": seed, "mean_ttft_ms": 100.0 * seed} for seed in (1, 2, 3)]
    lives = [measured({**simulated, "seed": seed, "mean_ttft_ms": 200.0}) for seed in (2, 3, 4)]
    (pair,) = pairs(together(*runs, *lives), 0.0)
    assert pair.seeds == (2, 3)
    assert pair.means(MEAN_TTFT) == (200, 250)
    assert "Means over 2 seeds" in verdict(together(*runs, *lives)).confidence


def test_a_replay_is_held_against_the_policies_that_it_was_told(simulated: dict[str, Any]) -> None:
    other = {**simulated, "policy": "lmetric"}
    every = pairs(together(simulated, other, measured(simulated)), 0.0)
    assert len(every) == 2
    (told,) = pairs(together(simulated, other, measured(simulated, policy="lmetric")), 0.0)
    assert told.simulated.policy == "lmetric, simulated"


def test_what_was_not_measured_has_no_error(simulated: dict[str, Any]) -> None:
    (pair,) = pairs(together(simulated, measured(simulated, hit_rate=None)), 0.0)
    assert pair.error(HIT_RATE) == NONE
    nothing = {"mean_ttft_ms": None, "mean_tpot_ms": None, "hit_rate": None}
    said = verdict(together(simulated, measured(simulated, **nothing)))
    assert "nothing to compare" in said.headline


def test_the_verdict_says_what_is_off_and_what_is_not(simulated: dict[str, Any]) -> None:
    live = measured(simulated, mean_ttft_ms=simulated["mean_ttft_ms"] / 2)
    assert (
        verdict(together(simulated, live)).headline
        == "Simulated against measured: mean TTFT +100%; equal in mean TPOT and hit rate."
    )


def test_other_requests_other_speeds_and_one_sided_saturation_are_said(simulated: dict[str, Any]) -> None:
    here = {**simulated, "settings": {"identity": "a"}, "utilisation": {"label": "light"}}
    there = measured(simulated, settings={"identity": "b", "speed": 2.0})
    there["utilisation"] = {"label": "saturated"}
    said = verdict(together(here, there)).points
    for words in ("not the same requests", "2 times as fast", "only one of the two fell behind"):
        assert any(words in point for point in said), words


def test_one_pair_needs_no_second_table_and_more_do(simulated: dict[str, Any]) -> None:
    live = measured(simulated)
    assert len(compared(together(simulated, live), 0.0)) == 1
    assert len(compared(together(simulated, {**simulated, "policy": "lmetric"}, live), 0.0)) == 3


def test_both_are_in_one_plot_and_in_one_section(simulated: dict[str, Any]) -> None:
    html = page([simulated, measured(simulated)])
    assert html.count('<section class="study">') == 1
    assert "Simulated against measured" in html
    assert "Fairness and throughput" not in html
    drawing = html.split("Distribution of TTFT", 1)[1].split("</svg>", 1)[0]
    assert drawing.count('<polyline class="line s') == 2
    assert "| mean TTFT |" in document([simulated, measured(simulated)])
