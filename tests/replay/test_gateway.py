"""Replays through the real gateway: it must see the workload's clients, however they are told."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fairlead.core.events import Arrived
from fairlead.engine.server import EngineConfig, EngineServer
from fairlead.replay.endpoint import Asking
from fairlead.replay.sender import Pace
from fairlead.report.metrics import summarise
from fairlead.report.run import DONE
from fairlead.trace.decision_reader import LogReader
from fairlead.trace.generators import generate
from fairlead.trace.model import Trace
from tests.gateway.mocks import run as run_bounded
from tests.gateway.mocks import serving
from tests.replay.workloads import replayed

KEYS = {"client-0": "k0", "client-1": "k1", "client-2": "k2"}


def workload() -> Trace:
    options = {"rate": 200.0, "groups": 6, "output_tokens": 8}
    return generate("shared-prefix", options, requests=30, clients=3)


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ({"clients": {name: {"api_keys": [key]} for name, key in KEYS.items()}}, KEYS),
        ({"trusted_proxies": ["127.0.0.1"]}, None),
        ({"use_body_user": True}, None),
    ],
    ids=["by key", "by header", "by user"],
)
def test_the_gateway_sees_the_workloads_clients(
    tmp_path: Path, file: dict[str, Any], keys: dict[str, str] | None
) -> None:
    trace, path = workload(), tmp_path / "decisions"

    async def main() -> None:
        engines = [EngineServer(EngineConfig(model_name="tiny", speed=1000, seed=n)) for n in range(2)]
        async with serving(*engines, file={**file, "decision_log": str(path)}) as served:
            url = f"http://127.0.0.1:{served.gateway.port}"
            run, _ = await replayed(trace, url, Asking(keys=keys), Pace(max_concurrency=4))
            assert set(run.requests.outcome) == {DONE}
            assert sum(run.requests.prompt) == sum(
                turn.prompt_tokens for session in trace.sessions() for turn in session.turns
            )
            assert summarise(run)["hit_rate"] > 0
            await served.settled()

    run_bounded(main)
    arrived = [entry.event.request for entry in LogReader(path) if type(entry.event) is Arrived]
    expected = Counter(session.client for session in trace.sessions())
    expected["client-0"] += 1  # asked for one token, to see whether token ids are taken
    assert Counter(request.client for request in arrived) == expected
