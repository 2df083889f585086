"""Run with pytest, after ``pip install .``: what every policy must do, and what these two do besides."""

import pytest

import fairlead
from fairlead.testing import FakeEngine, World, check_dispatcher


@pytest.mark.parametrize(
    ("order", "policy"),
    [("fcfs", "warmest"), ("round_robin_clients", "marginal"), ("round_robin_clients", "warmest:slack=2")],
)
def test_they_keep_every_promise(order: str, policy: str) -> None:
    """Nothing is lost, no worker idles while somebody waits, and a second run decides the same."""
    check_dispatcher(lambda: fairlead.make_dispatcher(order, policy))


def test_warmest_goes_where_the_prompt_is_cached() -> None:
    world = World(fairlead.make_dispatcher("fcfs", "warmest"), [FakeEngine("a"), FakeEngine("b")])
    prompts = [range(start, start + 20) for start in (1, 101)]
    rids = [world.send("ann", 400, 10, prompt, at_us=n * 5_000_000) for n, prompt in enumerate(prompts * 3)]
    world.run()
    first, second = ({world.outcomes[rid].worker for rid in rids[n::2]} for n in (0, 1))
    assert len(first) == len(second) == 1
    assert all(world.outcomes[rid].cached_tokens == 320 for rid in rids[2:])


def test_clients_take_turns() -> None:
    world = World(
        fairlead.make_dispatcher("round_robin_clients"), [FakeEngine("a", fairlead.Limits(1, 9_999))]
    )
    clients = [world.send("noisy") for _ in range(6)] + [world.send("quiet") for _ in range(3)]
    world.run()
    by_time = sorted(clients, key=lambda rid: world.outcomes[rid].dispatched_us)
    served = [world.outcomes[rid].request.client for rid in by_time]
    assert served[1:7] == ["noisy", "quiet"] * 3 or served[1:7] == ["quiet", "noisy"] * 3


def test_they_know_their_parameters() -> None:
    with pytest.raises(fairlead.PolicyError, match="did you mean 'slack'"):
        fairlead.make_dispatcher(policy="warmest:slak=3")
