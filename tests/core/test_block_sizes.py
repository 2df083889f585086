from statistics import median_high

from hypothesis import given
from hypothesis import strategies as st

from fairlead.core import block_sizes
from fairlead.core.block_sizes import BlockSizes
from fairlead.core.events import Arrived, Finished, Tick, WorkerUp
from fairlead.core.make import make_dispatcher
from fairlead.core.model import Limits, Request

SIZES = st.floats(8, 64)


@given(st.lists(st.tuples(st.sampled_from("abcd"), SIZES)), st.lists(SIZES, max_size=50))
def test_it_is_the_median_over_clients_however_much_one_of_them_says(traffic, of_one):
    sizes = BlockSizes(16.0)
    assert sizes.median == 16.0
    for client, size in traffic:
        sizes.heard(client, size)
    for size in of_one:
        sizes.heard("loud", size)
        assert sizes.median > 0
    last = {**dict(traffic), **({"loud": of_one[-1]} if of_one else {})}
    assert sizes.median == (median_high(last.values()) if last else 16.0)


def test_voices_are_bounded(monkeypatch):
    monkeypatch.setattr(block_sizes, "_MOST_CLIENTS", 10)
    sizes = BlockSizes(16.0)
    for number in range(100):
        sizes.heard(f"c{number}", 20.0 + number)
    assert len(sizes._sizes) == 10
    assert sizes.median == 20 + 95


def test_one_client_s_estimate_does_not_bend_the_books_of_the_others():
    """Before, the last request said what every block stands for."""
    dispatcher = make_dispatcher("fcfs", "round_robin")
    dispatcher.step(WorkerUp(0, "w", Limits(kv_tokens=16_000)))
    for rid, (client, size) in enumerate(
        [("a", 16.0), ("b", 15.0), ("c", 17.0), *[("loud", 8.0)] * 50, *[("loud", 64.0)] * 50]
    ):
        dispatcher.step(Arrived(0, Request(rid, client, 200, (rid,), size)))
        dispatcher.step(Finished(0, rid, 200, 0, 1))
        dispatcher.step(Tick(rid * 1000))
        assert 15.0 <= dispatcher.fleet.block_tokens <= 17.0
