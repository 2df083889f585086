"""examples/vllm_fairness.py on embedded engines; the engine suite runs it on real vLLM servers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/vllm_fairness.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}


def command(*options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), *options]


def ran(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*options), env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


def engine(order: str) -> "tuple[str, subprocess.Popen[bytes]]":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--max-num-seqs", "4", "--speed", "4", "--order", order]
    process = subprocess.Popen(
        [sys.executable, "-m", "fairlead", "engine", *options],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return f"http://127.0.0.1:{port}", process


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[str, str]]:
    """The addresses of an engine in order of arrival and of one that is fair."""
    both = [engine("fcfs"), engine("dlpm:quantum=500")]
    try:
        for url, process in both:
            for _ in range(600):
                try:
                    with urllib.request.urlopen(url + "/health", timeout=5):
                        break
                except urllib.error.URLError:
                    assert process.poll() is None
                    time.sleep(0.05)
        yield both[0][0], both[1][0]
    finally:
        for _, process in both:
            process.terminate()
            process.wait(10)


def test_it_shows_each_clients_share(engines: tuple[str, str]) -> None:
    stock, fair = engines
    done = ran("--stock", stock, "--fair", fair, "--seconds", "3", "--warm-up", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before, after = (found[name]["clients"]["quiet"]["share"] for name in ("stock", "fair"))
    assert 0.1 < before < 0.3, "6 of 30 requests"
    assert after > 0.4
    assert found["fair"]["waiting"] > 12
    assert "had little to decide" not in done.stderr


def test_it_says_so_when_nobody_waits(engines: tuple[str, str]) -> None:
    few = ("--noisy", "3", "--quiet", "1", "--seconds", "2", "--warm-up", "0.5")
    done = ran("--fair", engines[1], *few)
    assert done.returncode == 0, done.stderr
    assert "its order had little to decide" in done.stderr
    assert "noisy" in done.stdout


def test_ctrl_c_ends_it_at_once(engines: tuple[str, str]) -> None:
    process = subprocess.Popen(
        command("--stock", engines[0], "--seconds", "600"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "sending for" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--fair", "http://127.0.0.1:9"], 1, "http://127.0.0.1:9 is not a server that runs"),
        (["--fair", "127.0.0.1:8000"], 1, "write the address as http://HOST:PORT"),
        ([], 2, "give a MODEL to start servers with, or --stock and --fair"),
        (["model", "--fair", "http://a:1"], 2, "give a MODEL to start servers with, or --stock and --fair"),
        (["--fair", "http://a:1", "--", "--enforce-eager"], 2, "options after -- are for servers"),
        (["model", "--quiet", "4"], 2, "--quiet 4 is too few"),
        (["model", "--quiet", "0"], 2, "takes a number from 1 to 1000, not 0"),
        (["model", "--seconds", "nan"], 2, "takes seconds above 0, not nan"),
        (["model"], 1, "there is no vLLM beside"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(options: list[str], status: int, message: str) -> None:
    done = ran(*options)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
