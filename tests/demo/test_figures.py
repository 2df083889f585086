"""The demo's own arithmetic, on examples computed by hand."""

import math

import pytest

from fairlead.demo.figures import Phase, Seen, fair_shares, jain, percentile
from fairlead.demo.workload import CLIENTS, plan


def test_percentiles_interpolate_as_numpy_does() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([1, 2, 3, 4, 5], 0.99) == pytest.approx(4.96)
    assert percentile([7], 0.99) == 7
    assert math.isnan(percentile([], 0.5))


def test_jain_is_one_for_equals_and_one_over_n_for_a_monopoly() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([5, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == 1


def test_fair_shares_give_small_demands_in_full_and_split_the_rest() -> None:
    assert fair_shares({"a": 10, "b": 100, "c": 100}, 90) == {"a": 10, "b": 40, "c": 40}
    assert fair_shares({"a": 1, "b": 2}, 90) == {"a": 1, "b": 2}


def test_a_phase_reports_service_and_fairness() -> None:
    good = Seen(completed=1, prompt_tokens=100, cached_tokens=80, output_tokens=10, demanded=40)
    flood = Seen(completed=1, prompt_tokens=60, output_tokens=10, demanded=1000)
    phase = Phase("t", "fcfs", "round_robin", {"good": good, "flood": flood}, 2.0)
    assert good.service == 40
    assert flood.service == 80
    assert phase.jain == pytest.approx(1)
    assert phase.tokens_per_s == 90
    assert phase.hit_rate == 0.5
    assert phase.as_json()["clients"]["good"]["ttft_p50_ms"] is None  # type: ignore[index]


def test_the_plan_is_the_same_for_every_phase_and_shares_what_it_says() -> None:
    first, second = plan(3.0), plan(3.0)
    assert first == second
    assert [p.at for p in first] == sorted(p.at for p in first)
    for client in CLIENTS:
        prompts = [p.prompt for p in plan(20.0) if p.client is client]
        starts = {prompt[: client.shared_tokens * 4] for prompt in prompts}
        if client.documents:
            assert len(starts) == client.documents
        assert len(set(prompts)) == len(prompts)
