"""No input of one client bends another's charge, share or order, but by capacity that it was charged for.

The rows of docs/threat-model.md that the core decides. What the gateway reads is held in
``tests/gateway/test_isolation.py``.
"""

from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fairlead
from fairlead.core.model import Limits, Request
from fairlead.testing import FakeEngine, World


def path(turns: list[bool]) -> list[int]:
    """Chained keys: a path in a small tree of prompts."""
    here = 1
    return [here := here * 3 + turn + 1 for turn in turns]


numbers = st.integers(1, 3_000)
hostile = st.lists(
    st.fixed_dictionaries(
        {
            "prompt_tokens": numbers,
            "output_tokens": numbers,
            "max_tokens": st.sampled_from([None, 1, 10**6]),
            "keys": st.lists(st.booleans(), max_size=20).map(path),
            "at_us": st.integers(0, 20_000_000),
            "session": st.sampled_from(["", "s", "victim's"]),
        }
    ),
    max_size=60,
)


def own_keys(start: int) -> range:
    """Blocks that no other client has."""
    return range(10**15 * start, 10**15 * start + 20)


def run(order: str, attack: list[dict], hang_ups: list[int]) -> World:
    """The victim's twenty requests, with whatever else comes."""
    patient = fairlead.Settings(queue_timeout_us=0)
    engines = [FakeEngine(name, Limits(4, 20_000)) for name in ("a", "b")]
    world = World(fairlead.make_dispatcher(order, settings=patient), engines)
    for n in range(20):
        world.send("victim", 400, 50, own_keys(1 + n % 5), at_us=n * 500_000)
    rids = [world.send("mallory", **request) for request in attack]
    for at, rid in zip(hang_ups, rids, strict=False):
        world.cancel(rid, at)
    world.run()
    return world


@pytest.mark.parametrize("order", ["dlpm:quantum=1000", "vtc", "fcfs"])
@settings(max_examples=15, deadline=None)
@given(attack=hostile, hang_ups=st.lists(st.integers(0, 20_000_000), max_size=20))
def test_a_client_is_charged_for_its_own_work_alone(
    order: str, attack: list[dict], hang_ups: list[int]
) -> None:
    world = run(order, attack, hang_ups)
    mine = [o for o in world.outcomes.values() if o.request.client == "victim"]
    assert {o.result for o in mine} == {"done"}
    work = sum(o.request.prompt_tokens - o.cached_tokens + 2 * o.output_tokens for o in mine)
    assert world.service("victim") == work
    credit = world.dispatcher.ledger.accounts["victim"]
    assert credit.charged == work


@settings(max_examples=20, deadline=None)
@given(
    prompt=numbers,
    output=numbers,
    limit=st.sampled_from([None, 1, 10**6]),
    shared=st.booleans(),
    weight=st.sampled_from([0.5, 1, 3]),
)
def test_whatever_a_flood_is_made_of_a_waiting_client_gets_its_share(
    prompt: int, output: int, limit: int | None, shared: bool, weight: float
) -> None:
    """Both wait throughout: |W_v/w_v - W_m/w_m| <= 2 (U + Q) / the smaller weight, U being what runs."""
    quantum = 2_000
    dispatcher = fairlead.make_dispatcher(f"dlpm:quantum={quantum}", weights={"victim": weight})
    world = World(dispatcher, [FakeEngine("a", Limits(4, 40_000))], check=False)
    for _ in range(400):
        world.send("mallory", prompt, output, range(1, prompt // 16) if shared else (), max_tokens=limit)
        world.send("victim", 400, 50)
    world.run(until_us=20_000_000)
    assume(all(dispatcher.shares.count(client) for client in ("victim", "mallory")))
    in_flight = 4 * max(prompt + 2 * output, 400 + 2 * 50)
    gap = abs(world.service("victim") / weight - world.service("mallory"))
    assert gap <= 2 * (in_flight + quantum) / min(1, weight)


def test_anothers_failures_do_not_use_up_a_clients_retries() -> None:
    halves = fairlead.Settings(retry_share=0.5)
    dispatcher = fairlead.make_dispatcher("fcfs", "round_robin", settings=halves)
    for name in ("a", "b"):
        dispatcher.step(fairlead.WorkerUp(0, name, Limits(1_000, 10**9)))
    for rid in range(1, 1_000):
        dispatcher.step(fairlead.Arrived(1, Request(rid, "mallory", 10)))
        while rid in dispatcher.requests:
            dispatcher.step(fairlead.Failed(1, rid, retryable=True, reason="poison"))
    dispatcher.step(fairlead.Arrived(1, Request(1_000, "victim", 10)))
    (again,) = dispatcher.step(fairlead.Failed(1, 1_000, retryable=True, reason="a worker died"))
    assert isinstance(again, fairlead.Dispatch)
    dispatcher.check()


def admitted_at_once(outputs: list[int]) -> int:
    """How many of a victim's requests run at once, after mallory's answers of these lengths."""
    dispatcher = fairlead.make_dispatcher("fcfs", "round_robin")
    dispatcher.step(fairlead.WorkerUp(0, "a", Limits(1_000, 10_000)))
    numbers: Iterator[int] = iter(range(1, 10_000))
    for client, length in [("victim", 100)] * 30 + [("mallory", length) for length in outputs]:
        rid = next(numbers)
        dispatcher.step(fairlead.Arrived(1, Request(rid, client, 10)))
        dispatcher.step(fairlead.Finished(2, rid, 10, 0, length))
    return sum(
        len(dispatcher.step(fairlead.Arrived(3, Request(next(numbers), "victim", 500, streamed=False))))
        for _ in range(40)
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 5_000, 10**6]), max_size=40))
def test_the_length_of_anothers_answers_reserves_nothing_for_mine(outputs: list[int]) -> None:
    assert admitted_at_once(outputs) == admitted_at_once([])
