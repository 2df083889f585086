"""What a seed draws of a trace."""

from itertools import pairwise
from math import log2
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.simulate.sweep.sample import ALL, Sample, redrawn_gaps, window
from fairlead.trace.model import Session, Trace, TraceError, Turn


def trace_of(starts: list[int]) -> Trace:
    """Sessions at these times, each known by its name."""
    made = [
        Session(at, f"client-{i % 3}", (Turn(10 + i, 5),), f"session {i}")
        for i, at in enumerate(sorted(starts))
    ]
    return Trace(
        name="made up",
        block_tokens=16,
        sessions=lambda: iter(made),
        requests=len(made),
        duration_us=made[-1].at - made[0].at,
        clients={s.client: 2.0 for s in made},
        identity="made up",
    )


def content(trace: Trace) -> list[Any]:
    return [session._replace(at=0) for session in trace.sessions()]


def times(trace: Trace) -> list[int]:
    return [session.at for session in trace.sessions()]


STARTS = st.lists(st.integers(0, 10**9), min_size=2, max_size=60)


@given(STARTS, st.integers(0, 5))
def test_redrawn_gaps_keep_requests_order_and_duration(starts: list[int], seed: int) -> None:
    trace = trace_of(starts)
    drawn = redrawn_gaps(trace, seed)
    assert content(drawn) == content(trace)
    at = times(drawn)
    assert all(a <= b for a, b in pairwise(at))
    assert drawn.duration_us == trace.duration_us == at[-1] - at[0]
    assert times(redrawn_gaps(trace, seed)) == at
    assert drawn.clients == trace.clients


def test_gaps_are_the_traces_own_in_runs_and_differ_between_seeds() -> None:
    # Every gap is twice the one before it, so that gaps tell where they are from, whatever the scale.
    trace = trace_of([sum(2**k * 10_000 for k in range(n)) for n in range(12)])
    drawn = {seed: times(redrawn_gaps(trace, seed)) for seed in range(1, 6)}
    assert len({tuple(at) for at in drawn.values()}) > 1
    for at in drawn.values():
        gaps = [b - a for a, b in pairwise(at)]
        steps = [log2(b / a) for a, b in pairwise(gaps)]
        assert all(abs(step - round(step)) < 0.05 for step in steps)
        within = [round(step) for i, step in enumerate(steps) if (i + 1) % 3]  # runs of isqrt(11) gaps
        assert set(within) <= {1, -10}


def test_identities_and_labels_tell_samples_apart() -> None:
    trace = trace_of([0, 5, 9, 30, 31, 90])
    samples = [
        trace,
        Sample(gaps=True).of(trace, 1),
        Sample(gaps=True).of(trace, 2),
        Sample(window=1, windows=2).of(trace, 1),
        Sample(window=2, windows=2).of(trace, 1),
        Sample(gaps=True, window=2, windows=2).of(trace, 1),
    ]
    assert len({sample.identity for sample in samples}) == len(samples)
    assert len({sample.labels for sample in samples}) == len(samples)
    assert ALL.of(trace, 3) is trace


def test_a_trace_that_starts_at_once_has_no_gaps_to_draw() -> None:
    trace = trace_of([7, 7, 7])
    assert Sample(gaps=True).of(trace, 1) is trace


@given(STARTS, st.integers(1, 8))
def test_windows_part_the_trace(starts: list[int], count: int) -> None:
    trace = trace_of(starts)
    if count > len(starts):
        with pytest.raises(TraceError, match="cannot be cut"):
            window(trace, 1, count)
        return
    parts = [window(trace, number, count) for number in range(1, count + 1)]
    assert [s for part in parts for s in content(part)] == content(trace)
    sizes = [part.requests for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        at = times(part)
        assert at[0] == 0
        assert part.duration_us == at[-1]


@pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2), (1, 0)])
def test_windows_count_from_one(number: int, count: int) -> None:
    with pytest.raises(ValueError, match="they count from 1"):
        Sample(window=number, windows=count).of(trace_of([0, 1]), 1)
