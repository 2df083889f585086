"""The benchmark of closed loops: its arithmetic, and a short run with real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gateway.closed_loop import Shares

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("slots", "quiet_open", "owed", "reach"),
    [
        (4, 2, 1.0, 1.5),  # 2 x 4/5 slots of 4: 2.4 to 1.6
        (4, 4, 1.0, 1.0),
        (8, 8, 1.0, 1.0),
        (4, 1, 3.0, 4.0),  # 4/5 of a slot: 3.2 to 0.8
    ],
)
def test_what_is_owed_and_what_can_be_reached(slots: int, quiet_open: int, owed: float, reach: float) -> None:
    row = Shares(slots, quiet_open, "fcfs", 300, 100, 1, 0, 0.1, 0.1)
    assert row.ratio == 3
    assert row.owed == pytest.approx(owed)
    assert row.reach == pytest.approx(reach)


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway.closed_loop", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_arrival_order_fails_a_bar_that_names_the_row(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.json"
    small = ["--part", "shares", "--slots", "2", "--open", "1", "--warm-up", "0.5", "--seconds", "3"]
    run = bench(*small, "--order", "fcfs", "--max-ratio", "1.25", "--json", str(out))
    assert run.returncode == 1, run.stderr
    assert "2 slots, 1 open, fcfs: noisy : quiet is " in run.stderr
    (row,) = json.loads(out.read_text())["shares"]
    assert row["ratio"] > 5
    assert row["failed"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--order", "dlmp"], "did you mean 'dlpm'"),
        (["--policy", "nearest"], "nearest"),
        (["--seconds", "0"], "--seconds"),
        (["--slots", "0"], "--slots"),
    ],
)
def test_a_bad_option_is_named(options: list[str], words: str) -> None:
    run = bench(*options)
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr
