"""The demo's own arithmetic, on examples computed by hand."""

import asyncio
import math
from itertools import islice, pairwise

import pytest

from fairlead.demo.clients import Traffic
from fairlead.demo.figures import Phase, Seen
from fairlead.demo.workload import CLIENTS, TASK_TURNS, plan, turns


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
        if not client.rate:
            assert not [p for p in first if p.client is client]
            continue
        prompts = [p.prompt for p in plan(20.0) if p.client is client]
        starts = {prompt[: client.shared_tokens * 4] for prompt in prompts}
        if client.documents:
            assert len(starts) == client.documents
        assert len(set(prompts)) == len(prompts)


def test_a_task_goes_on_from_its_last_prompt_and_is_the_same_in_every_phase() -> None:
    (agent,) = (client for client in CLIENTS if not client.rate)
    task = list(islice(turns(agent, 0), 2 * TASK_TURNS))
    assert task == list(islice(turns(agent, 0), 2 * TASK_TURNS))
    assert task[0] != next(turns(agent, 1))
    first, second = task[:TASK_TURNS], task[TASK_TURNS:]
    for one in (first, second):
        for before, after in pairwise(one):
            assert after.prompt.startswith(before.prompt)
    assert not second[0].prompt.startswith(first[0].prompt)
    assert second[0].prompt[: agent.shared_tokens * 4] == first[0].prompt[: agent.shared_tokens * 4]


def test_what_is_owed_is_the_max_min_share_and_never_more_than_was_wanted() -> None:
    light = Seen(output_tokens=5, demanded=30)
    heavy = Seen(output_tokens=45, demanded=900)
    assert Phase("t", "fcfs", "round_robin", {"a": light, "b": heavy}, 1.0).owed == {"a": 30, "b": 70}
    content = Seen(output_tokens=5, demanded=8)
    assert Phase("t", "fcfs", "round_robin", {"a": content, "b": heavy}, 1.0).owed == {"a": 10, "b": 90}


def test_a_closed_loop_wants_what_it_would_use_without_waiting() -> None:
    """A task's cycle: 0.2 s of thought, 0.3 s at best to the first token, 0.5 s to the last."""

    async def wanted() -> dict[str, float]:
        traffic = Traffic("http://127.0.0.1:9", [], {})
        traffic.started -= 4.0
        traffic.seen["agent"] = Seen(
            ttft_ms=[2000, 300],
            completed=2,
            prompt_tokens=200,
            cached_tokens=100,
            output_tokens=50,
            held_s=1.0,
        )
        traffic.seen["docs"] = Seen(completed=1, prompt_tokens=100, output_tokens=50)
        traffic.open["docs"] = {1, 2}  # type: ignore[arg-type] # only counted
        return traffic.demands()

    found = asyncio.run(wanted())
    (agent,) = (client for client in CLIENTS if not client.rate)
    each = (100 + 2 * 50) / 2
    assert found["agent"] == pytest.approx(
        each * agent.outstanding * 4.0 / (agent.think_s + 0.3 + 0.5), rel=1e-3
    )
    assert found["docs"] == 3 * 200
