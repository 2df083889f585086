"""ServeGen: requests drawn from clients' rates and lengths."""

import json
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.trace.arrivals import Gap, gamma_gap, weibull_gap
from fairlead.trace.model import TraceError
from fairlead.trace.reading import read_trace
from fairlead.trace.servegen import Histogram, Window, client_arrivals, parse_windows


def chunk(path: Path, number: int, windows: str, lengths: dict[str, tuple[str, str]] | None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / f"chunk-{number}-trace.csv").write_text(windows)
    if lengths is not None:
        table = {at: {"input_tokens": i, "output_tokens": o} for at, (i, o) in lengths.items()}
        (path / f"chunk-{number}-dataset.json").write_text(json.dumps(table))


def two_clients(path: Path) -> Path:
    chunk(path / "m", 0, "0,2.0,1,Gamma,1,0.5\n600,0,0,,0,0\n", {"0": ("{100: 0.5, 200: 0.5}", "{7: 1.0}")})
    chunk(
        path / "m",
        1,
        "0,0,0,,0,0\n600,4.0,2,Weibull,0.5,0.1\n",
        {"0": ("{}", "{}"), "600": ("{5: 1}", "{0: 1}")},
    )
    return path


def test_each_client_follows_its_own_rates_and_lengths(tmp_path: Path) -> None:
    trace = read_trace(two_clients(tmp_path / "s"), duration_s=1200)
    by_client: dict[str, list[tuple[int, int, int]]] = {"client-0": [], "client-1": []}
    for session in trace.sessions():
        by_client[session.client].append((session.at, *session.turns[0][:2]))
    # 1,200 Poisson arrivals: five standard deviations are 173. Weibull gaps of shape 0.5 are burstier.
    assert 1_027 < len(by_client["client-0"]) < 1_373
    assert 1_300 < len(by_client["client-1"]) < 3_500
    assert all(at <= 600_000_000 for at, _, _ in by_client["client-0"])
    assert all(at >= 599_000_000 for at, _, _ in by_client["client-1"])
    assert {lengths[1:] for lengths in by_client["client-0"]} == {(100, 7), (200, 7)}
    assert {lengths[1:] for lengths in by_client["client-1"]} == {(5, 1)}


def test_seed_scale_and_stretch_are_options(tmp_path: Path) -> None:
    path = two_clients(tmp_path / "s")
    one = read_trace(path, duration_s=300)
    assert list(one.sessions()) == list(read_trace(path, duration_s=300).sessions())
    other = read_trace(path, duration_s=300, seed=2)
    assert list(one.sessions()) != list(other.sessions())
    assert one.identity != other.identity
    assert read_trace(path, duration_s=300, scale=4).requests > 2.5 * one.requests
    late = read_trace(path, duration_s=300, start_s=700)
    assert set(late.clients) == {"client-1"}
    assert any("300 s from 700 s, rates times 1, seed 1" in label for label in late.labels)


def test_a_client_does_not_change_when_another_one_goes(tmp_path: Path) -> None:
    whole = read_trace(two_clients(tmp_path / "s"), duration_s=300)
    (tmp_path / "s/m/chunk-1-trace.csv").unlink()
    (tmp_path / "s/m/chunk-1-dataset.json").unlink()
    alone = read_trace(tmp_path / "s", duration_s=300)
    kept = [s.turns[0][:2] for s in whole.sessions() if s.client == "client-0"]
    assert kept == [s.turns[0][:2] for s in alone.sessions()]


def test_clients_without_lengths_and_models_to_choose_from(tmp_path: Path) -> None:
    path = two_clients(tmp_path / "s")
    chunk(path / "m", 2, "0,2.0,1,Gamma,1,0.5\n600,4,1,Gamma,1,0.5\n", None)
    trace = read_trace(path, duration_s=60)
    assert [(repair.count, repair.example) for repair in trace.repairs] == [(1, "chunk-2 of m")]
    assert any("left out: 50% of the source's requests" in label for label in trace.labels)
    chunk(path / "n", 0, "0,2.0,1,Gamma,1,0.5\n", {"0": ("{1: 1}", "{1: 1}")})
    with pytest.raises(TraceError, match=r"several models: choose one with model= \(there are: m, n\)"):
        read_trace(path)
    assert read_trace(path, model="n", duration_s=60).name == "s:n"
    with pytest.raises(TraceError, match="no model 'k'"):
        read_trace(path, model="k")


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        ("0,2.0,1,Pareto,1,1\n", "line 1: family is 'Pareto', not Gamma or Weibull"),
        ("0,1,1,Gamma,1,1\n600,-2.0,1,Gamma,1,1\n", "line 2: start 600, rate -2 or cv 1 is negative"),
        ("0,fast,1,Gamma,1,1\n", "line 1: could not convert"),
        ("0,1\n", "line 1: "),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, windows: str, says: str) -> None:
    with pytest.raises(ValueError, match="line") as wrong:
        parse_windows(windows.encode())
    assert says in str(wrong.value)
    chunk(tmp_path / "s/m", 0, windows, {"0": ("{1: 1}", "{1: 1}")})
    with pytest.raises(TraceError) as refused:
        read_trace(tmp_path / "s")
    assert f"m/chunk-0-trace.csv: {says}" in str(refused.value)


def test_bad_lengths_are_named(tmp_path: Path) -> None:
    chunk(tmp_path / "s/m", 0, "0,1,1,Gamma,1,1\n", {"0": ("{many: 1}", "{1: 1}")})
    with pytest.raises(TraceError, match=r"chunk-0-dataset.json: .*'many'"):
        read_trace(tmp_path / "s")


@pytest.mark.parametrize(
    ("gap", "cv"), [(gamma_gap(1), 1.0), (gamma_gap(0), 0.0), (gamma_gap(2), 2.0), (weibull_gap(0.7), 1.462)]
)
def test_gaps_have_mean_one_and_the_stated_variation(gap: Gap, cv: float) -> None:
    rng = Random("gaps")
    drawn = [gap(rng) for _ in range(40_000)]
    assert mean(drawn) == pytest.approx(1, rel=0.05)
    assert pstdev(drawn) == pytest.approx(cv, rel=0.08, abs=1e-9)


def test_bursts_cross_the_borders_of_windows() -> None:
    """With a metronome's gaps, a window of half the rate continues the gap that was begun before it."""
    windows = [Window(0, 1.0, gamma_gap(0)), Window(10, 0.5, gamma_gap(0)), Window(20, 0.0, gamma_gap(0))]
    times = list(client_arrivals(Random(1), windows, 0, 100, 1.0))
    steps = [b - a for a, b in pairwise(times)]
    assert steps[:9] == pytest.approx([1.0] * 9)
    assert 1 < steps[9] < 2
    assert steps[10:] == pytest.approx([2.0] * len(steps[10:]))
    assert times[-1] < 20


@given(shares=st.dictionaries(st.integers(0, 10**6), st.floats(0, 1), min_size=1), seed=st.integers(0, 99))
def test_only_lengths_with_a_share_are_drawn(shares: dict[int, float], seed: int) -> None:
    histogram = Histogram(shares)
    assert bool(histogram) == any(shares.values())
    if histogram:
        rng = Random(seed)
        drawn = {histogram.draw(rng) for _ in islice(range(20), 20)}
        assert drawn <= {max(1, length) for length, share in shares.items() if share > 0}
