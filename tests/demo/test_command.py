"""The demo as a user runs it, shortened: real engines, gateway and clients in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairlead.core.params import PolicyError
from fairlead.core.routing import POLICIES
from fairlead.demo.command import _schedulers


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_short_run_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.json"
    picture = tmp_path / "out.svg"
    run = subprocess.run(
        [sys.executable, "-m", "fairlead", "demo", "--seconds", "3", "--json", out, "--svg", picture],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads(out.read_text())
    assert [(p["order"], p["policy"]) for p in result["phases"]] == [
        ("fcfs", "least_requests"),
        ("dlpm", "d2lpm"),
        ("dlpm", "marginal"),
    ]
    for phase in result["phases"]:
        assert set(phase["clients"]) == {"assistant", "docs", "agent", "flood"}
        assert all(c["failed"] == 0 for c in phase["clients"].values()), run.stdout
        assert phase["tokens_per_s"] > 0
        got, owed = ([c[key] for c in phase["clients"].values()] for key in ("service", "owed"))
        assert sum(owed) == pytest.approx(sum(got), abs=4)
    assert "TTFT p99" in run.stdout
    assert "agent: p99 TTFT" in run.stdout
    assert "fcfs + least_requests -> dlpm + marginal" in run.stdout
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(sign: signal.Signals) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "fairlead", "demo", "--seconds", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    started: list[int] = []
    try:
        deadline = time.monotonic() + 30
        while len(started) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
            started = children(demo.pid)
        assert len(started) == 5, "four engines and a gateway"
        demo.send_signal(sign)
        _, stderr = demo.communicate(timeout=20)
        assert demo.returncode == 130
        assert "interrupted" in stderr
        assert not [pid for pid in started if alive(pid)]
    finally:
        for pid in [demo.pid, *started]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        demo.wait()


@pytest.mark.parametrize("seconds", ["0", "1e9", "soon"])
def test_a_bad_length_is_refused(seconds: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fairlead", "demo", "--seconds", seconds],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert "--seconds" in run.stderr


def test_any_policy_can_be_compared_and_an_unknown_one_is_named() -> None:
    three = _schedulers(None, None)
    assert [s.policy for s in three] == ["least_requests", "d2lpm", "marginal"]
    for name in POLICIES.names():
        assert [s.policy for s in _schedulers(None, name)] == ["least_requests", name]
    assert _schedulers("vtc:scope=fleet", None)[1][1:] == ("vtc:scope=fleet", "marginal")
    with pytest.raises(PolicyError, match="did you mean 'lmetric'"):
        _schedulers(None, "lmetrik")
    with pytest.raises(PolicyError, match="scope"):
        _schedulers("dlpm:scope=world", None)
