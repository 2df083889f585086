"""docs/embedding.md: every program in it runs and does what the page says."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fairlead.engine.server import EngineConfig, EngineServer
from tests.gateway.mocks import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/embedding.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_router_as_it_is() -> None:
    assert PROGRAMS[1] == (ROOT / "examples/router.py").read_text()


def test_it_is_as_short_as_the_page_says() -> None:
    code = PROGRAMS[1].split("import fairlead\n")[1]
    lines = [line for line in code.splitlines() if line.strip() and '"""' not in line]
    assert f"{len(lines)} lines of code behind its imports" in PAGE


def test_the_first_program_prints_a_dispatch(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PROGRAMS[0], {})
    assert capsys.readouterr().out.startswith("[Dispatch(rid=1, worker='w1', attempt=1")


def test_the_world_shares_evenly(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PROGRAMS[2], {})
    noisy, quiet = map(int, capsys.readouterr().out.split())
    assert noisy > 0
    assert abs(noisy - quiet) < 0.1 * noisy


class Running:
    """The router as a process of its own."""

    def __init__(self, *engines: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples/router.py"), str(self.port), *engines],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            stderr=subprocess.DEVNULL,
        )

    def post(self, client: str, prompt: str) -> tuple[int, dict]:
        body = {"model": "meta-llama/Llama-3.1-8B", "prompt": prompt, "max_tokens": 4}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json", "x-api-key": client},
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)
            except OSError:  # it does not listen yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def test_the_router_serves_from_two_engines_and_survives_one() -> None:
    async def main() -> None:
        engines = [EngineServer(EngineConfig(speed=50.0)) for _ in range(2)]
        for engine in engines:
            await engine.start()
        router = Running(*[engine.url for engine in engines])
        try:
            with ThreadPoolExecutor(8) as pool:
                loop = asyncio.get_running_loop()

                async def ask(count: int) -> list[tuple[int, dict]]:
                    jobs = [(f"client {n % 3}", f"prompt {n} " * 50) for n in range(count)]
                    return await asyncio.gather(
                        *[loop.run_in_executor(pool, router.post, *job) for job in jobs]
                    )

                assert {status for status, _ in await ask(12)} == {200}
                await engines[0].stop()
                assert {status for status, _ in await ask(12)} == {200}
                await engines[1].stop()
                answers = await ask(2)
                assert {status for status, _ in answers} == {503}
                assert all("Fail" in body["error"] for _, body in answers)
        finally:
            router.stop()
            for engine in engines:
                await engine.stop()

    run(main)
