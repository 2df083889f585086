"""Closed loops: max-min entitlement, and what a run's record says of it."""

from array import array
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.model import Costs
from fairlead.report.entitlement import closed_loops, max_min_slots
from fairlead.report.fairness import fair_shares
from fairlead.report.markdown import document
from fairlead.report.metrics import summarise
from fairlead.report.run import DONE, UNFINISHED, Loops, Requests, Run
from fairlead.report.tables import closed_loops as table_of
from fairlead.simulate.runner import simulate
from fairlead.simulate.settings import Settings
from fairlead.trace.generators import generate
from fairlead.trace.loops import with_loops
from fairlead.trace.model import Loop
from tests.report.runs import add, empty_series, make_run

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("wanted", "weights", "slots", "owed"),
    [
        ([50, 2], [1, 1], 4, [2, 2]),
        ([50, 4], [1, 1], 4, [2, 2]),
        ([50, 1], [1, 1], 4, [3, 1]),
        ([50, 8, 8], [1, 1, 1], 30, [14, 8, 8]),
        ([50, 50], [1, 3], 8, [2, 6]),
        ([50, 50, 1], [1, 3, 3], 9, [2, 6, 1]),
        ([3, 2], [1, 1], 10, [3, 2]),
    ],
)
def test_water_filling_by_hand(
    wanted: Sequence[float], weights: Sequence[float], slots: float, owed: Sequence[float]
) -> None:
    assert max_min_slots(wanted, weights, [1.0] * len(wanted), slots) == pytest.approx(owed)


def test_a_client_whose_requests_take_longer_for_the_same_service_needs_more_slots_for_it() -> None:
    """A slot gives one client half the service: equal service is 2 slots against 1."""
    assert max_min_slots([50, 50], [1, 1], [1.0, 2.0], 3) == pytest.approx([2, 1])


AMOUNTS = st.floats(0.01, 100)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), min_size=1, max_size=8), AMOUNTS)
def test_nobody_gets_more_than_it_wants_and_who_gets_less_has_the_most_by_weight(
    clients: list[tuple[float, float, float]], slots: float
) -> None:
    wanted, weights, rates = (list(column) for column in zip(*clients, strict=True))
    owed = max_min_slots(wanted, weights, rates, slots)
    assert sum(owed) == pytest.approx(min(slots, sum(wanted)))
    levels = [s * r / w for s, r, w in zip(owed, rates, weights, strict=True)]
    for s, want, level in zip(owed, wanted, levels, strict=True):
        assert 0 <= s <= want * (1 + 1e-9)
        if s < want * (1 - 1e-9):
            assert level >= max(levels) * (1 - 1e-9)
    equal = max_min_slots(wanted, weights, [1.0] * len(wanted), slots)
    assert equal == pytest.approx(fair_shares(wanted, weights, slots))


def by_hand(topology: str = "gateway") -> Run:
    """Two clients on 4 slots: "many" keeps 3 open, "few" 1; every request takes 1 s, none waits.

    "few" pauses 1 s after each answer, so it wants half a slot.
    """
    requests = Requests()
    rows = [(0, at * SECOND) for at in range(20) for _ in range(3)]
    rows += [(1, at * SECOND) for at in range(0, 20, 2)]
    for client, at in sorted(rows, key=lambda row: (row[1], row[0])):
        add(requests, client, at, at + 250_000, at + SECOND, prompt=100, output=50, outcome=DONE)
    series = empty_series(2)
    for second in range(1, 31):
        series.service[0].append(600.0 * min(second, 20))
        series.service[1].append(100.0 * min(second, 20))
        for demand, service in zip(series.demand, series.service, strict=True):
            demand.append(service[-1])
    return make_run(("many", "few"), requests, series, loops=Loops(4, [3, 1], [0, SECOND]), topology=topology)


def test_a_pause_lowers_what_is_wanted() -> None:
    found = closed_loops(by_hand(), Costs())
    assert found is not None
    assert (found["slots"], found["until_s"]) == (4, 19.0)
    many, few = found["clients"]
    assert many["wanted_slots"] == many["owed_slots"] == pytest.approx(3, rel=0.01)
    assert few["wanted_slots"] == pytest.approx(0.5, rel=0.06)
    assert few["entitled_share"] == pytest.approx(1 / 7, rel=0.06)
    assert few["service_share"] == pytest.approx(1 / 7)
    assert few["ratio"] == pytest.approx(1, rel=0.06)
    assert many["mean_ttft_ms"] == few["p99_ttft_ms"] == 250
    assert (many["pause_s"], few["pause_s"]) == (0, 1)


def test_who_orders_in_the_engine_holds_a_slot_from_the_first_token() -> None:
    run = by_hand("engine")
    found = closed_loops(run, Costs())
    assert found is not None
    assert found["clients"][1]["wanted_slots"] == pytest.approx(0.75 / 1.75, rel=0.07)


def test_a_client_that_sends_by_the_clock_wants_what_it_sends() -> None:
    run = by_hand()
    run.loops = Loops(4, [3, 0], [0, 0])
    found = closed_loops(run, Costs())
    assert found is not None
    assert found["clients"][1]["open"] is None
    assert found["clients"][1]["wanted_slots"] == pytest.approx(9 / 17.1, rel=0.01)


def test_without_loops_there_is_nothing_to_say() -> None:
    run = by_hand()
    run.loops = None
    assert closed_loops(run, Costs()) is None
    result = summarise(run)
    assert result["closed_loops"] is None
    assert not table_of(result).rows


def test_a_run_too_short_for_its_series_has_no_shares_but_waits() -> None:
    run = by_hand()
    run.series.interval_us = 60 * SECOND
    run.series.service = [array("d", [12_000.0]), array("d", [2_000.0])]
    run.series.demand = run.series.service
    found = closed_loops(run, Costs())
    assert found is not None
    assert found["most_over_least"] is None
    assert [c["service_share"] for c in found["clients"]] == [None, None]
    assert found["clients"][0]["mean_ttft_ms"] == 250
    assert any("too short" in note for note in table_of(summarise(run)).notes)


def test_who_got_no_answer_at_all_wants_what_it_has_open() -> None:
    run = by_hand()
    requests = run.requests
    for row in range(len(requests)):
        if requests.client[row] == 1:
            requests.first[row], requests.ended[row], requests.outcome[row] = -1, -1, UNFINISHED
    run.series.service[1] = array("d", [0.0] * 30)
    found = closed_loops(run, Costs())
    assert found is not None
    assert found["clients"][1]["wanted_slots"] == 1
    assert found["clients"][1]["ratio"] == 0
    assert found["clients"][1]["p99_ttft_ms"] is None
    assert found["most_over_least"] is None


def test_the_unfair_order_gives_the_heavy_client_several_times_what_it_is_owed() -> None:
    """Simulated: one client keeps 50 requests open and one 2, on 4 slots."""
    trace = generate(
        "shared-prefix:shared_tokens=0,unique_tokens=415,output_tokens=100", requests=400, clients=2
    )
    trace = with_loops(trace, {"client-0": Loop(50), "client-1": Loop(2)})
    found = {}
    for order in ("fcfs", "vtc"):
        chosen = Settings(order=order, workers=1, max_num_seqs=4, until_us=60 * SECOND)
        result = summarise(simulate(trace, chosen, reachable=0.0))
        loops = result["closed_loops"]
        assert [c["owed_slots"] for c in loops["clients"]] == pytest.approx([2, 2], rel=0.02)
        rows = {row[0].text: row for row in table_of(result).rows}
        assert rows["client-0"][1].text == "50"
        assert "Closed loops" in document([result])
        found[order] = loops["most_over_least"]
    assert found["fcfs"] > 15
    assert 1.3 < found["vtc"] < 2.5


def test_rows_are_ordered_by_what_each_got_of_its_due() -> None:
    table = table_of(summarise(by_hand()))
    ratios = [float(row[5].text) for row in table.rows]
    assert all(before >= after for before, after in pairwise(ratios))
    assert table.heads[5] == "got/owed"
