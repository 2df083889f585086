"""The demo's own arithmetic, on examples computed by hand."""

import math

import pytest

from fairlead.demo.figures import Phase, Seen
from fairlead.demo.workload import CLIENTS, plan


def test_percentiles_of_ttft_need_no_order_and_there_may_be_none() -> None:
    assert Seen(ttft_ms=[4, 1, 3, 2]).ttft(50) == 2.5
    assert Seen(ttft_ms=[5, 2, 3, 4, 1]).ttft(99) == pytest.approx(4.96)
    assert math.isnan(Seen().ttft(50))


def test_jain_counts_a_client_that_got_all_it_wanted_as_content() -> None:
    little, more = Seen(output_tokens=5, demanded=10), Seen(output_tokens=20, demanded=400)
    assert Phase("t", "fcfs", "round_robin", {"a": little, "b": more, "c": more}, 1.0).jain == pytest.approx(
        1
    )
    starved = Seen(output_tokens=5, demanded=400)
    assert Phase("t", "fcfs", "round_robin", {"a": starved, "b": more}, 1.0).jain < 0.8


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
