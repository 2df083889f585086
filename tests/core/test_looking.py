"""Reading the dispatcher, as metrics do, changes no decision."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core import events as ev
from fairlead.core.commands import Command
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.routing import POLICIES

from .driver import CLIENTS, WEIGHTS, Driver, make_dispatcher


class Watched(Dispatcher):
    """A dispatcher that is looked at after every event."""

    def step(self, event: ev.Event) -> list[Command]:
        commands = super().step(event)
        fleet = self.fleet
        for values in (fleet.kv_used, fleet.kv_cached, fleet.hit_rate, fleet.pending_prefill_tokens):
            assert len(values) == len(fleet.ids)
        for slot in fleet.slots.values():
            # What was counted once is what counting again gives: nothing changed unmarked.
            counts = fleet.kv_used[slot], fleet.kv_running[slot], fleet.kv_cached[slot]
            assert counts == self.workers[slot].count_kv()
            for client in CLIENTS:
                self.ordering.credit(slot, client)
        return commands


def history(routing: str, ordering: str, seed: int, kind: type[Dispatcher]) -> list[str]:
    limits = Settings(max_queued=20, queue_timeout_us=2_000_000, max_attempts=2)
    plain = make_dispatcher(routing, ordering)
    driver = Driver(
        kind(plain.routing, plain.ordering, limits, WEIGHTS),
        random.Random(seed),
        check=False,
    )
    driver.worker_up("w1")
    driver.worker_up("w2", precise=True)
    for _ in range(150):
        driver.step()
    return driver.log


@pytest.mark.pure_only("inherits from a compiled class")
@pytest.mark.parametrize(
    ("routing", "ordering"), [(r, "dlpm") for r in POLICIES.names()] + [("marginal", "vtc")]
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_a_dispatcher_that_is_watched_decides_the_same(routing: str, ordering: str, seed: int) -> None:
    assert history(routing, ordering, seed, Watched) == history(routing, ordering, seed, Dispatcher)
