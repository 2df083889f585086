"""``fairlead serve`` as a process: start, signals, exit codes."""

import asyncio
import contextlib
import re
import signal
import sys

from fairlead.http.client import Pool
from tests.gateway.mocks import MockWorker, answer, chat, run


@contextlib.asynccontextmanager
async def process(*flags: str):
    command = [sys.executable, "-m", "fairlead.cli", "serve", "--port", "0", *flags]
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def port_of(child) -> tuple[int, str]:
    """Read what it says until it serves."""
    said = ""
    while "serves on" not in said:
        line = (await child.stdout.readline()).decode()
        assert line, (await child.stderr.read()).decode()
        said += line
    found = re.search(r"serves on http://127\.0\.0\.1:(\d+)", said)
    assert found
    return int(found[1]), said


def test_a_signal_drains_and_ends_with_zero():
    async def main():
        worker = MockWorker(answer(delay=0.3))
        await worker.start()
        async with process("--worker-urls", worker.url) as child:
            port, said = await port_of(child)
            assert "for 1 workers" in said
            assert "embedded" not in said
            pool = Pool(f"http://127.0.0.1:{port}")
            ask = asyncio.ensure_future(pool.fetch(b"POST", b"/v1/chat/completions", [], chat()))
            await asyncio.sleep(0.1)
            child.send_signal(signal.SIGTERM)
            assert (await ask)[0] == 200
            assert await asyncio.wait_for(child.wait(), 5) == 0
            await pool.close()
        await worker.stop()

    run(main)


def test_a_second_signal_ends_at_once():
    async def main():
        worker = MockWorker(answer(delay=60))
        await worker.start()
        async with process("--worker-urls", worker.url) as child:
            port, _ = await port_of(child)
            pool = Pool(f"http://127.0.0.1:{port}")
            ask = asyncio.ensure_future(pool.fetch(b"POST", b"/v1/chat/completions", [], chat(), timeout=30))
            await asyncio.sleep(0.1)
            child.send_signal(signal.SIGINT)
            assert b"drains: 1" in await child.stdout.readline()
            child.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(child.wait(), 5) == 1
            ask.cancel()
            await asyncio.gather(ask, return_exceptions=True)
            await pool.close()
        await worker.stop()

    run(main)


def test_without_workers_embedded_engines_serve_and_it_says_so():
    async def main():
        async with process() as child:
            port, said = await port_of(child)
            assert "started 2 embedded engines" in said
            assert "filler text" in said
            pool = Pool(f"http://127.0.0.1:{port}")
            status, _, models = await pool.fetch(b"GET", b"/v1/models")
            assert status == 200
            name = re.search(rb'"id":"([^"]+)"', models)
            assert name
            body = chat(model=name[1].decode(), max_tokens=3, stream=True)
            status, _, got = await pool.fetch(b"POST", b"/v1/chat/completions", [], body)
            assert status == 200
            assert got.endswith(b"data: [DONE]\n\n")
            await pool.close()

    run(main)


def test_mistakes_end_with_a_message_and_two():
    async def main():
        for flags, word in (
            (["--policy", "marginl"], "marginal"),
            (["--order", "dlpm:quantm=3"], "quantum"),
            (["--queue-size", "many"], "queue_size"),
            (["--worker-urls", "a:1"], "http://"),
        ):
            async with process(
                *flags, *([] if "--worker-urls" in flags else ["--worker-urls", "http://x"])
            ) as child:
                _, err = await child.communicate()
                assert child.returncode == 2, err
                assert word in err.decode()
                assert "Traceback" not in err.decode()

    run(main)


def test_a_port_in_use_is_a_message_and_one():
    async def main():
        worker = MockWorker()
        await worker.start()
        async with process("--worker-urls", worker.url, "--port", str(worker.port)) as child:
            _, err = await child.communicate()
            assert child.returncode == 1
            assert "address already in use" in err.decode()
            assert "Traceback" not in err.decode()
        await worker.stop()

    run(main)
