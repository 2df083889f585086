"""A light client beside a heavy one, in a real vLLM server with the plugin's default order.

The server runs four requests at a time. ``noisy`` keeps 50 open, ``quiet`` 2 or 4, all the time. Both are
owed two slots. Service is what the plugin's metrics file says.
"""

from pathlib import Path

import pytest
from benchmarks.gateway.closed_loop import Shares
from benchmarks.plugins.closed_loop import DEFAULT, PRIORITY, line, measure

from tests.engines.servers import Engine

SECONDS = 20.0
ROWS = {"fcfs": ("fcfs", 2), "first": (PRIORITY, 2), "two": (DEFAULT, 2), "four": (DEFAULT, 4)}


@pytest.fixture(scope="module")
def rows(fair: list[tuple[Engine, Path]]) -> dict[str, Shares]:
    """What the two clients got, by the names of ``ROWS``."""
    engine, folder = fair[1]
    found = {}
    for name, (order, quiet_open) in ROWS.items():
        found[name] = measure(engine, folder, order, quiet_open, SECONDS)
        print(f"\n{line(found[name])}")
    return found


def test_the_load_is_one_that_starves_a_light_client_in_order_of_arrival(rows: dict[str, Shares]) -> None:
    assert rows["fcfs"].ratio > 10
    assert not sum(row.failed for row in rows.values())


def test_who_opens_twice_what_it_is_owed_gets_what_it_is_owed(rows: dict[str, Shares]) -> None:
    """An eighth of the service may be at the wrong client at the end: a quantum is some requests' worth."""
    assert rows["four"].ratio <= 1.25 * rows["four"].owed


def test_who_opens_what_it_is_owed_gets_almost_what_it_gets_when_it_always_goes_first(
    rows: dict[str, Shares],
) -> None:
    """Its requests have to wait for a slot to come free: no order gives it more than ``priority`` does.

    With slots that come free evenly that is 1.5, and the bar 1.9. Where the way from the engine to the client
    and back takes part of a request's time, as on a slow CPU, it is more.
    """
    assert rows["two"].ratio <= max(1.9, 1.25 * rows["first"].ratio)
