"""A run folded into a result: every figure against its definition, on runs small enough to check by hand."""

import json
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.model import Costs
from fairlead.report.metrics import summarise
from fairlead.report.run import CANCELLED, DONE, FAILED, OUTCOMES, REJECTED, UNFINISHED, Fairness, Requests
from tests.report.runs import add, empty_series, make_run, queue_run

MS = 1000


def two_clients() -> Requests:
    rows = Requests()
    add(rows, 0, 0, 100 * MS, 1100 * MS, prompt=1000, cached=600, output=11)
    add(rows, 1, 500 * MS, 3000 * MS, 3000 * MS, prompt=500, output=1)
    add(rows, 0, 1000 * MS, 1300 * MS, 2100 * MS, prompt=200, cached=-1, output=5)
    add(rows, 1, 1500 * MS, worker=-1, ended=1500 * MS, outcome=REJECTED)
    add(rows, 1, 2000 * MS, 2200 * MS, 2500 * MS, prompt=300, cached=100, output=4, outcome=CANCELLED)
    return rows


def test_a_small_run_by_hand() -> None:
    run = make_run(("ann", "ben"), two_clients(), duration_us=4_000_000, reachable_hit_rate=0.7)
    found = summarise(run, {"ttft": 500, "tpot": 150})
    assert (found["num_prompts"], found["completed"], found["failed"]) == (5, 3, 2)
    assert found["outcomes"] == {"done": 3, "rejected": 1, "cancelled": 1, "failed": 0, "unfinished": 0}
    assert found["mean_ttft_ms"] == pytest.approx((100 + 2500 + 300) / 3, abs=1e-3)
    assert found["median_ttft_ms"] == 300
    # TPOT only of requests with more than one output token
    assert found["mean_tpot_ms"] == pytest.approx((1000 / 10 + 800 / 4) / 2)
    assert found["mean_e2el_ms"] == pytest.approx((1100 + 2500 + 1100) / 3, abs=1e-3)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (1700, 17)
    assert found["request_throughput"] == 0.75
    assert found["input_throughput"] == 425
    assert found["output_throughput"] == 4.25
    assert found["total_token_throughput"] == 429.25
    assert found["request_rate"] == 2.0
    # The second misses TTFT, the third TPOT; rejected and cancelled miss too.
    assert found["request_goodput"] == 0.25
    assert found["attainment"] == 0.2
    assert found["attainment_of_completed"] == pytest.approx(1 / 3, abs=1e-6)
    # What was delivered to the cancelled request was delivered; unknown hits count as none.
    assert found["service"] == (400 + 22) + (500 + 2) + (200 + 10) + (200 + 8)
    assert found["service_vtc"] == 2000 + 2 * 21
    assert found["hit_rate"] == pytest.approx(700 / 1800, abs=1e-6)
    assert found["reachable_hit_rate"] == 0.7


def test_clients_and_victims() -> None:
    run = make_run(
        ("ann", "ben"), two_clients(), duration_us=4_000_000, misbehaving=("ben",), weights=[1.0, 2.0]
    )
    found = summarise(run)
    ann, ben = found["clients"]
    assert (ann["name"], ann["misbehaving"], ann["completed"]) == ("ann", False, 2)
    assert (ben["name"], ben["misbehaving"], ben["weight"], ben["completed"]) == ("ben", True, 2, 1)
    assert found["victims"]["mean_ttft_ms"] == ann["mean_ttft_ms"] == 200
    assert found["victims"]["clients"] == 1
    assert sum(c["service"] for c in found["clients"]) == found["service"]
    assert summarise(make_run(("ann", "ben"), two_clients()))["victims"] is None


def test_prices_of_service_are_an_option() -> None:
    found = summarise(make_run(("ann", "ben"), two_clients()), costs=Costs(extend=0, output=1))
    assert found["service"] == 21


def test_itl_comes_from_the_pooled_gaps() -> None:
    run = make_run(("ann", "ben"), two_clients(), itl={10 * MS: 99, 500 * MS: 1})
    found = summarise(run)
    assert found["median_itl_ms"] == 10
    assert found["mean_itl_ms"] == pytest.approx(14.9)
    assert found["p99.9_itl_ms"] == pytest.approx(10 + 490 * 0.901)  # rank 98.901 of 0 to 99


def test_the_bound_is_checked_as_a_share() -> None:
    fairness = Fairness(500.0, ("ann", "ben"), 2000.0, "a formula")
    found = summarise(make_run(("ann", "ben"), two_clients(), fairness=fairness))["fairness"]
    assert (found["worst_gap"], found["bound"], found["bound_share"]) == (500, 2000, 0.25)
    none = summarise(make_run(("ann", "ben"), two_clients()))["fairness"]
    assert (none["bound"], none["bound_share"]) == (None, None)


def test_jain_looks_at_the_time_of_arrivals_and_not_at_the_drained_end() -> None:
    rows, series = Requests(), empty_series(2)
    for second in range(1, 11):  # Ben is served at once, Ann when everything has arrived
        at = second * 10**6
        add(rows, 0, at, 20 * 10**6, 20 * 10**6)
        add(rows, 1, at, at, at)
    for second in range(1, 21):
        series.service[0].append(1000.0 if second == 20 else 0.0)
        series.service[1].append(100.0 * min(second, 10))
        for client in (0, 1):
            series.demand[client].append(100.0 * min(second, 10))
    found = summarise(make_run(("ann", "ben"), rows, series))["fairness"]
    assert found["jain"] == found["jain_uncapped"] == 0.5
    assert found["windowed"]["window_s"] == 10  # no more than the time of arrivals
    assert found["windowed"]["max"] == 100  # Ann wanted 1,000 in 10 s and Ben got as much more


def test_hits_lower_what_counts_as_wanted() -> None:
    rows = Requests()
    for second in range(1, 11):
        for client, cached in ((0, 900), (1, 0)):
            at = second * 10**6
            add(rows, client, at, at + 1, at + 2, prompt=1000, cached=cached)
    series = empty_series(2)
    for second in range(1, 11):
        series.service[0].append(100.0 * second)
        series.service[1].append(1000.0 * second)
        for client in (0, 1):
            series.demand[client].append(1000.0 * second)
    found = summarise(make_run(("ann", "ben"), rows, series))["fairness"]
    assert found["jain"] == pytest.approx(1)  # both got all they asked for
    assert found["jain_uncapped"] < 0.7


@pytest.mark.parametrize(("load", "label"), [(0.3, "light"), (0.9, "loaded"), (1.3, "saturated")])
def test_utilisation_is_labelled(load: float, label: str) -> None:
    assert summarise(queue_run(load=load))["utilisation"]["label"] == label


def test_rejecting_what_does_not_fit_is_saturation_too() -> None:
    rows = Requests()
    for second in range(100):
        lost = second % 3 == 0
        at = second * 10**6
        if lost:
            add(rows, 0, at, ended=at, outcome=REJECTED, worker=-1)
        else:
            add(rows, 0, at, at + 1000, at + 2000, output=1)
    assert summarise(make_run(("ann",), rows))["utilisation"]["label"] == "saturated"


def test_series_are_thinned_and_keep_their_last_sample() -> None:
    series = empty_series(1, 1, 100_000)
    for k in range(1, 5001):
        series.service[0].append(float(k))
        series.demand[0].append(float(k))
        for column in (series.queued[0], series.running[0], series.waiting[0], series.prefilled[0]):
            column.append(k)
        series.kv_used[0].append(0.5)
    found = summarise(make_run(("ann",), two_clients_of_one(), series))["series"]
    assert len(found["client_times_s"]) == len(found["service"][0]) <= 600
    assert len(found["worker_times_s"]) == len(found["kv_used"][0]) <= 600
    assert (found["client_times_s"][-1], found["service"][0][-1]) == (500.0, 5000.0)


def two_clients_of_one() -> Requests:
    rows = two_clients()
    for i in range(len(rows)):
        rows.client[i] = 0
    return rows


def test_speed_of_the_simulation() -> None:
    run = make_run(("ann", "ben"), two_clients(), elapsed_s=0.001)
    assert summarise(run)["simulated_requests_per_s"] == 5000
    assert summarise(make_run(("ann", "ben"), two_clients()))["simulated_requests_per_s"] is None


@pytest.mark.parametrize(
    ("slos", "words"), [({"ttlt": 1.0}, "no such SLO"), ({"ttft": 0.0}, "not a positive time")]
)
def test_wrong_slos_are_refused(slos: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        summarise(make_run(), slos)


def test_names_that_vllm_bench_serve_uses() -> None:
    found = summarise(queue_run())
    names = [
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
        "duration",
        "completed",
        "failed",
    ]
    names += ["total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput"]
    names += ["output_throughput", "total_token_throughput"]
    names += [
        f"{w}_{m}_ms" for w in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl", "e2el")
    ]
    assert [name for name in names if name not in found] == []
    assert found["std_ttft_ms"] > 0


outcomes = st.sampled_from([DONE, REJECTED, CANCELLED, FAILED, UNFINISHED])
row = st.tuples(st.integers(0, 2), st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 9), outcomes)


@settings(max_examples=60)
@given(st.lists(row, max_size=40))
def test_any_run_is_folded_as_the_definitions_say(drawn: list[tuple[int, int, int, int, int]]) -> None:
    rows = Requests()
    for client, at, wait, output, outcome in sorted(drawn, key=lambda r: r[1]):
        served = outcome == DONE or (outcome in {CANCELLED, UNFINISHED} and output > 0)
        first = (at + wait) * MS if served else -1
        ended = first + output * 7 * MS if served else at * MS
        add(rows, client, at * MS, first, ended, 50, 20, output if served else 0, outcome)
    found = summarise(make_run(("a", "b", "c"), rows), {"ttft": 1000})
    json.dumps(found, allow_nan=False)
    done = [i for i in range(len(rows)) if rows.outcome[i] == DONE]
    ttfts = [(rows.first[i] - rows.arrived[i]) / MS for i in done]
    tpots = [7 * rows.output[i] / (rows.output[i] - 1) for i in done if rows.output[i] > 1]
    assert found["completed"] == len(done)
    assert sum(found["outcomes"][name] for name in OUTCOMES) == len(rows)
    for name, values in (("ttft", ttfts), ("tpot", tpots)):
        mean = found[f"mean_{name}_ms"]
        assert mean == (pytest.approx(statistics.fmean(values), abs=1e-3) if values else None)
    good = sum(1 for t in ttfts if t <= 1000)
    assert found["attainment"] == (pytest.approx(good / len(rows), abs=1e-6) if len(rows) else None)
    assert sum(c["num_prompts"] for c in found["clients"]) == len(rows)
