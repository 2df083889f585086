"""E7, closed loops: who is heavy and who is light, what each is owed, and the floor that is derived."""

from typing import Any

import pytest

from fairlead.report.metrics import summarise
from fairlead.simulate.experiments.base import OURS, Options
from fairlead.simulate.experiments.e7 import E7, predicted
from fairlead.simulate.experiments.e7_cells import (
    BY_ITSELF,
    CROWD,
    DOCUMENTS,
    FLOOR,
    ORDERS,
    PRIORITY,
    QUANTA,
    SWEEP,
    TABLE,
    THINKS,
    WAITING,
    WANTS,
    Crowd,
    documents,
    figures,
    quanta,
    table,
    waiting,
)
from fairlead.simulate.experiments.figures import entry, select
from fairlead.simulate.runner import prepare, simulate
from fairlead.simulate.settings import GATEWAY
from fairlead.simulate.sweep.run import run_cells

FULL, QUICK = Options(False, (1, 2)), Options(True, (1,))


def client(open_: int, share: float, ratio: float, pause_s: float = 0.001) -> dict[str, Any]:
    return {
        "open": open_, "pause_s": pause_s, "service_share": share, "ratio": ratio, "wanted_slots": 1.5,
        "mean_ttft_ms": 10.0 * open_, "p99_ttft_ms": 20.0 * open_,
    }  # fmt: skip


def test_two_clients_by_hand() -> None:
    loops = {"clients": [client(50, 0.75, 1.5), client(2, 0.25, 0.5)], "most_over_least": 3.0}
    assert figures({"closed_loops": loops}) == {
        "most_over_least": 3.0, "light_ratio": 0.5, "light_ttft_mean": 20.0, "light_ttft_p99": 40.0,
        "heavy_ratio": 1.5, "heavy_over_light": 3.0,
    }  # fmt: skip


def test_light_clients_are_told_apart_by_what_they_open_and_whether_they_think() -> None:
    clients = [
        client(8, 0.4, 1.1),
        client(8, 0.4, 0.9),
        client(4, 0.05, 0.1, 5.0),
        client(4, 0.1, 0.2),
        client(2, 0.05, 0.3),
    ]
    found = figures({"closed_loops": {"clients": clients, "most_over_least": 11.0}})
    assert (found["even_ratio"], found["double_ratio"], found["thinks_ratio"]) == (0.3, 0.2, 0.1)
    assert found["heavy_ratio"] == 1.0
    assert "heavy_over_light" not in found, "with several light ones there is no one ratio"


def test_a_client_by_itself_is_light_and_its_slots_are_busy_as_it_wants() -> None:
    found = figures({"closed_loops": {"clients": [client(2, 1.0, 1.0)], "most_over_least": 1.0}})
    assert found["busy"] == 0.75
    assert "heavy_ratio" not in found
    assert figures({"closed_loops": None}) == {}


@pytest.mark.parametrize(("heavy", "slots"), [(1, 8), (20, 8), (50, 8), (1, 64), (20, 64)])
def test_a_crowd_wants_more_than_there_is_and_the_thinking_client_less_than_its_share(
    heavy: int, slots: int
) -> None:
    crowd = Crowd(heavy, slots, ("even", "double", "thinks"))
    *heavies, even, double, thinks = crowd.loops.values()
    assert len(heavies) == heavy
    assert sum(loop.open for loop in heavies) >= slots
    assert all(loop.open > double.open for loop in heavies)
    assert even.open == max(1, int(crowd.level))
    assert double.open == 2 * even.open
    wants = thinks.open * 0.8 / (0.8 + thinks.think_us / 1e6)
    assert wants == pytest.approx(WANTS[THINKS] * crowd.level) or thinks.think_us == 500_000


def test_every_order_takes_part_with_our_routing_and_the_production_queue() -> None:
    every = {"fcfs", "lpm", "k_lpm", "plas", "drr", "vtc:scope=fleet", OURS.order}
    for part, stage in ((TABLE, table), (DOCUMENTS, documents), (WAITING, waiting)):
        cells = [p for p in stage(FULL, ()) if p.part == part]
        # Where nothing is shared, these serve as fcfs does.
        left_out = {"lpm", "k_lpm", "plas"} if part == WAITING else set()
        assert {p.contender.order for p in cells} >= every - left_out
        assert {(p.cell.settings.policy, p.cell.settings.topology) for p in cells} == {(OURS.policy, GATEWAY)}
        assert all(p.cell.settings.round_trip_us == 1_000 for p in cells)
    swept = sorted(p.x or 0 for p in quanta(FULL, ()) if p.part == QUANTA)
    assert set(swept) == set(SWEEP)
    assert (swept[0], swept[-1]) == (512, 65_536)


def test_alone_is_the_same_loop_on_the_slots_that_it_is_owed() -> None:
    cells = waiting(FULL, ())
    for alone in (p for p in cells if p.part == BY_ITSELF):
        beside = [p for p in cells if p.part == WAITING and p.workload == alone.workload]
        assert [*alone.cell.workload.concurrency.values()] == [
            list(beside[0].cell.workload.concurrency.values())[-1]
        ]
        assert alone.cell.settings.max_num_seqs == 1, (
            "8 slots for 21 clients: less than one, and at least one"
        )
        assert beside[0].cell.settings.max_num_seqs == 8


@pytest.mark.parametrize("slots", [4, 8])
def test_the_derived_floor_is_what_strict_priority_reaches(slots: int) -> None:
    cell = next(p.cell for p in E7.stages[-1](FULL, ()) if p.part == FLOOR and p.x == slots)
    assert cell.settings.order == PRIORITY.order
    trace, _ = prepare(cell.workload, cell.settings, 0.0)
    found = figures(summarise(simulate(trace, cell.settings, reachable=0.0)))
    assert found["heavy_over_light"] == pytest.approx(predicted(slots), rel=0.06)


def test_tables_and_sentences_come_from_the_quick_form(tmp_path: Any) -> None:
    options = Options(True, (1,), None, tmp_path)
    entries = []
    for stage in E7.stages:
        cells = [
            p
            for p in stage(options, ())
            if p.contender.label in ("ours", "VTC", "DLPM", "alone", "light first")
        ]
        results = run_cells([p.cell for p in cells], processes=1, folder=tmp_path)
        entries += [entry(p, r, E7.own(r)) for p, r in zip(cells, results, strict=True)]
    said = E7.seen(entries)
    assert said[0].startswith("4 slots, light opens 2, the heavy one 50: ")
    assert any("P99 TTFT alone is" in one for one in said)
    captions = [one.caption for one in E7.tables(entries)]
    assert len(set(captions)) == len(captions)
    assert any(caption.startswith("DLPM by quantum") for caption in captions)
    assert any(f"{THINKS}_ratio" in e["figures"] for e in select(entries, part=CROWD))
    assert len(ORDERS) > 5
