"""The fakes behave as they say, and find what is wrong with a policy."""

from collections.abc import Callable
from random import Random

import pytest

import fairlead
from fairlead.core.ordering.fcfs import Fcfs
from fairlead.core.routing.least_requests import LeastRequests
from fairlead.testing import Clock, FakeEngine, World, check_dispatcher


def test_a_clock_does_not_go_back() -> None:
    clock = Clock()
    clock.move_to(5)
    assert clock() == 5
    with pytest.raises(ValueError, match="it is 5 us"):
        clock.move_to(4)


def test_times_of_an_engine_by_hand() -> None:
    """1,000 tokens at 10,000 a second take 0.1 s; the second prompt comes after it, less what is cached."""
    engine = FakeEngine("w", fairlead.Limits(8, 10_000), prefill_tokens_per_s=10_000, token_us=20_000)
    keys = range(1, 63)  # 62 blocks of 16: 992 tokens
    first = engine.take(0, fairlead.Request(1, "ann", 1_000, keys), 11)
    assert first == (100_000, 300_000, 0)
    again = engine.take(0, fairlead.Request(2, "ann", 1_000, keys), 1)
    assert again == (100_800, 100_800, 992)
    engine.forget()
    assert engine.take(0, fairlead.Request(3, "ann", 1_000, keys), 1).cached_tokens == 0


def test_a_small_cache_keeps_the_beginning_of_the_last_prompt() -> None:
    engine = FakeEngine("w", fairlead.Limits(8, 160))
    engine.take(0, fairlead.Request(1, "ann", 320, range(20)), 1)
    assert engine.cached_blocks(range(20)) == 10


def test_a_request_through_a_world() -> None:
    world = World(fairlead.make_dispatcher(), [FakeEngine("w")])
    rid = world.send("ann", prompt_tokens=1_000, output_tokens=11)
    world.run()
    outcome = world.outcomes[rid]
    assert (outcome.result, outcome.worker, outcome.wait_us) == ("done", "w", 0)
    assert (outcome.ttft_us, outcome.ended_us) == (100_000, 300_000)
    assert world.service("ann") == 1_000 + 2 * 11
    assert world.service("nobody") == 0


def test_equal_clients_with_a_backlog_get_equal_service() -> None:
    world = World(fairlead.make_dispatcher(order="dlpm:quantum=1000"), [FakeEngine("w")], check=False)
    for _ in range(300):
        world.send("noisy")
    for _ in range(100):
        world.send("quiet")
    world.run(until_us=20_000_000)
    assert world.dispatcher.shares.count("quiet"), "quiet must have had something waiting throughout"
    assert abs(world.service("noisy") - world.service("quiet")) < 6_000


def test_a_death_moves_requests_and_a_hang_up_ends_one() -> None:
    world = World(fairlead.make_dispatcher(), [FakeEngine("a"), FakeEngine("b")])
    rids = [world.send("ann", prompt_tokens=5_000) for _ in range(4)]
    world.worker_down("a", 1_000)
    world.worker_up("a", 60_000_000)
    world.cancel(rids[3], 2_000)
    world.run()
    assert [world.outcomes[rid].result for rid in rids] == ["done", "done", "done", "cancelled"]
    assert {world.outcomes[rid].worker for rid in rids[:3]} == {"b"}


@pytest.mark.parametrize("order", ["fcfs", "lpm", "vtc", "dlpm:quantum=500"])
@pytest.mark.parametrize("policy", ["marginal", "d2lpm", "round_robin"])
def test_fairleads_own_policies_pass(order: str, policy: str) -> None:
    check_dispatcher(lambda: fairlead.make_dispatcher(order, policy), seeds=range(2), requests=60)


class Forgetful(LeastRequests):
    """Decides by something that is not in its inputs."""

    calls = 0

    def choose(self, request, match, fleet, now):  # type: ignore[no-untyped-def]
        Forgetful.calls += 1
        return fairlead.Choice(fleet.candidates[Forgetful.calls % len(fleet.candidates)])


class Stuck(Fcfs):
    """Lets nobody go."""

    def make_queue(self, number, matched):  # type: ignore[no-untyped-def]
        queue = super().make_queue(number, matched)
        queue.head = lambda fits=None: None
        return queue


def with_policies(routing: type, ordering: type) -> Callable[[], fairlead.Dispatcher]:
    return lambda: fairlead.Dispatcher(
        routing(fairlead.RoutingContext(Random(0))), ordering(fairlead.OrderingContext())
    )


@pytest.mark.pure_only("subclasses policies")
def test_a_policy_with_hidden_state_is_found() -> None:
    with pytest.raises(AssertionError, match="decided differently"):
        check_dispatcher(with_policies(Forgetful, Fcfs), seeds=[1, 3], requests=41)


@pytest.mark.pure_only("replaces a method")
def test_a_queue_that_lets_nobody_go_is_found() -> None:
    with pytest.raises(AssertionError, match="idles while"):
        check_dispatcher(with_policies(LeastRequests, Stuck))
