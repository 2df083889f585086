"""Workers that refuse, fail, fall silent and come back, all at once: every request still ends, books hold."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from fairlead.simulate.verify import verify
from fairlead.trace.decision_reader import LogReader
from tests.gateway.mocks import Ask, MockWorker, answer, chat, raw, run, serving
from tests.gateway.test_back_pressure import refuse


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("order", ["dlpm", "fcfs"])
def test_whatever_workers_do_every_request_ends_and_the_books_hold(
    tmp_path: Path, seed: int, order: str
) -> None:
    path = tmp_path / "decisions.log"
    rng = random.Random(seed)
    kinds = [answer(), answer("a b c", 0.01), answer(status=500), raw(close=True), answer(status=400)]
    kinds += [
        refuse(503, b"0"),
        refuse(429, None),
        raw(b"HTTP/1.1 200 OK\r\n", close=True),
        raw(b"?\r\n", close=True),
    ]

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        await rng.choices(kinds, [8, 8, 2, 1, 1, 2, 2, 1, 1])[0](ask, writer)

    async def main() -> None:
        workers = [MockWorker(behave) for _ in range(3)]
        options = {"use_body_user": True, "cb_failure_threshold": 2, "cb_timeout_secs": 0.2, "order": order}
        options |= {"worker_max_num_seqs": 4, "queue_timeout_secs": 3, "policy": "marginal"}
        async with serving(*workers, file={"decision_log": str(path)}, **options) as served:

            async def ask(number: int) -> int:
                await asyncio.sleep(rng.random())
                body = chat(content=f"{number} " * 20, user=rng.choice("abcd"), stream=rng.random() < 0.5)
                try:
                    return (await served.post(body))[0]
                except Exception:
                    return 0

            statuses = Counter(await asyncio.gather(*(ask(number) for number in range(150))))
            assert statuses.total() == 150
            assert statuses.keys() <= {0, 200, 400, 429, 500, 502, 503}
            assert statuses[200] > 90
            await served.settled()
            dispatcher = served.gateway.dispatcher
            assert dispatcher.arrived == sum(dispatcher.ended.values()) == 150
            assert all(len(worker.failures) <= 2 for worker in served.gateway.workers)

    run(main)
    verdict = verify(LogReader(path))
    assert verdict.identical, verdict.difference
    assert verdict.events["Refused"]
    assert verdict.events["Failed"]
