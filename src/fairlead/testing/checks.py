"""What every policy must do, whatever its rule: checked over random traffic in small worlds."""

from collections.abc import Callable, Iterable
from dataclasses import astuple
from random import Random

from fairlead.core.dispatcher import Dispatcher
from fairlead.core.model import Limits
from fairlead.testing.engine import FakeEngine
from fairlead.testing.world import World

CLIENTS = ("ann", "bob", "cyd", "dee")


def check_dispatcher(
    make: Callable[[], Dispatcher], *, seeds: Iterable[int] = range(5), requests: int = 120
) -> None:
    """Raise AssertionError if a dispatcher with your policies breaks a promise.

    ``make`` returns a new dispatcher without workers, the same each time. For each seed it gets random
    traffic: clients that share prefixes and hang up, workers of different sizes that die and come back.
    After every event the dispatcher's own invariants are checked (nothing lost, books that balance, no
    worker idle while a request that fits waits for it). At the end every request must have ended in one
    known way, and a second run must have decided the same.
    """
    for seed in seeds:
        once, twice = (_run(make(), seed, requests) for _ in range(2))
        for outcome in once.outcomes.values():
            assert outcome.result, f"seed {seed}: request {outcome.request.rid} never ended"
        assert not once.dispatcher.requests, f"seed {seed}: the dispatcher still holds requests"
        same = list(map(astuple, once.outcomes.values())) == list(map(astuple, twice.outcomes.values()))
        assert same, f"seed {seed}: a second run decided differently; is there state outside the policy?"


def _run(dispatcher: Dispatcher, seed: int, requests: int) -> World:
    rng = Random(seed)
    engines = [
        FakeEngine(f"w{n}", Limits(rng.randrange(1, 6), rng.choice([2_000, 10_000, 100_000])))
        for n in range(rng.randrange(1, 5))
    ]
    world = World(dispatcher, engines)
    at = 0
    for _ in range(requests):
        at += rng.randrange(200_000)
        keys, here = [], rng.randrange(4) + 1
        for _ in range(rng.randrange(9)):  # a path in a small tree of prompts
            here = here * 7 + rng.randrange(2) + 1
            keys.append(here)
        rid = world.send(
            rng.choice(CLIENTS),
            len(keys) * 16 + rng.randrange(1, 400),
            rng.randrange(1, 60),
            keys,
            at_us=at,
            max_tokens=rng.choice([None, 4, 200]),
            session=rng.choice(["", "s1", "s2"]),
        )
        if rng.random() < 0.1:
            world.cancel(rid, at + rng.randrange(3_000_000))
    for _ in range(rng.randrange(3)):
        died, name = rng.randrange(at + 1), rng.choice(engines).name
        world.worker_down(name, died)
        world.worker_up(name, died + rng.randrange(1, 5_000_000))
    world.run()
    return world
