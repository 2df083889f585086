"""Figures of runs with odd times: zero durations, first tokens at the end, everything in one microsecond."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.report.metrics import summarise
from fairlead.report.run import CANCELLED, DONE, FAILED, REJECTED, Requests
from tests.report.runs import add, empty_series, make_run

OUTCOMES = [DONE, CANCELLED, FAILED, REJECTED]
moments = st.one_of(st.integers(0, 3), st.integers(0, 10**7), st.sampled_from([0, 1, 2**52]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            moments,
            moments,
            moments,
            st.integers(0, 2**31 - 1),
            st.sampled_from(OUTCOMES),
        ),
        max_size=12,
    ),
    end=moments,
)
def test_every_figure_is_a_number_or_none(rows: list[tuple[int, int, int, int, int]], end: int) -> None:
    requests = Requests()
    for arrived, waited, answered, output, outcome in rows:
        first, ended = arrived + waited, arrived + waited + answered
        add(requests, 0, arrived, first if outcome == DONE else -1, ended, output=output, outcome=outcome)
    last = max([end, *(a + w + t for a, w, t, _, _ in rows)])
    run = make_run(("ann",), requests, empty_series(1), duration_us=last)
    json.dumps(summarise(run), allow_nan=False)
