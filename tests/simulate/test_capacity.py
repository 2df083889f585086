"""The maximum load: found where there is one, and an error in words where requests are too few to tell."""

import pytest

from fairlead.simulate.capacity import measure
from fairlead.simulate.settings import Settings
from fairlead.trace.model import TraceError
from fairlead.trace.workload import Workload


@pytest.mark.parametrize("requests", [1, 2, 3, 5, 12, 16, 25])
@pytest.mark.parametrize("name", ["judge", "doc-qa", "multi-turn", "agents", "vtc-overload"])
def test_few_requests_are_an_error_in_words_or_a_rate(name: str, requests: int) -> None:
    trace = Workload(source=name, requests=requests).open()
    try:
        found = measure(trace, Settings(), keep=False).requests_per_s
    except TraceError as error:
        told = str(error)
    else:
        assert 0 < found < 1e6
        assert requests >= 16
        return
    assert f"{name}: {trace.requests} requests are too few" in told
    assert "--load 0" in told
