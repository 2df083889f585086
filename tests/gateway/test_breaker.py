"""Whose fault a failure is: a request that makes engines fail takes no worker from others."""

import asyncio

import pytest

from fairlead.gateway.breaker import Failure, FailureRow
from tests.gateway.mocks import (
    EVENT_STREAM,
    Ask,
    Behaviour,
    MockWorker,
    answer,
    chat,
    chunk,
    raw,
    run,
    serving,
    token,
)

TENANTS = {"use_body_user": True}


async def until(condition) -> None:
    for _ in range(800):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


def if_asked_for(word: str, then: Behaviour, otherwise: Behaviour | None = None) -> Behaviour:
    """Behave like this to requests that say the word, and well to others."""
    usual = otherwise or answer()

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        await (then if word in str(ask.body) else usual)(ask, writer)

    return behave


FAULTS = {
    "an error": answer(status=500),
    "silence": raw(close=True),
    "no HTTP": raw(b"hello\r\n\r\n", close=True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("together", [False, True])
def test_a_poisonous_request_leaves_the_workers_to_the_others(fault, together):
    """It was tried three times, and three of it opened both circuits: a good request waited for 10 s."""

    async def main():
        workers = [MockWorker(if_asked_for("poison", FAULTS[fault])) for _ in range(2)]
        async with serving(*workers, **TENANTS, cb_timeout_secs=60) as served:
            known = list(served.gateway.workers)
            poison = [served.post(chat(content="poison", user="mallory")) for _ in range(12)]
            if together:
                answers = await asyncio.gather(*poison)
            else:
                answers = [await one for one in poison]
            assert {status for status, _, _ in answers} == {500 if fault == "an error" else 502}
            asked = sum(len(worker.asked) for worker in workers)
            stale = sum(worker.pool.stale_retries for worker in known)
            # Where bytes came that make no sense, nothing is sent again.
            if not together:
                assert asked - stale == (12 if fault == "no HTTP" else 24), "no third try"
            await until(lambda: all(worker.up for worker in known))
            if fault != "no HTTP":
                assert [len(worker.failures) for worker in known] == [0, 0]
            assert (await served.post(chat(user="alice")))[0] == 200

    run(main)


@pytest.mark.parametrize("users", [["alice"], ["alice", "bob", "carol"]])
@pytest.mark.parametrize("attempts", [1, 3])
def test_a_worker_that_fails_everybody_gets_no_more(users, attempts):
    """Of one client too: what fails there goes well elsewhere."""

    async def main():
        broken, good = MockWorker(answer(status=500)), MockWorker()
        options = {"cb_failure_threshold": 3, "cb_timeout_secs": 60, "max_attempts": attempts}
        async with serving(broken, good, **TENANTS, **options) as served:
            for number in range(20):
                status, _, _ = await served.post(
                    chat(content=f"no {number}", user=users[number % len(users)])
                )
                assert status == 200 or attempts == 1
            assert len(broken.asked) == 3
            assert [worker.up for worker in served.gateway.workers] == [False, True]

    run(main)


def test_one_client_cannot_take_a_worker_from_others_that_are_served_there():
    async def slowly(ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunk(token("hi")))
        await asyncio.sleep(30)

    async def main():
        first = MockWorker(if_asked_for("flip", answer(status=500), slowly))
        second = MockWorker(if_asked_for("flip", answer(), slowly))
        async with serving(first, second, **TENANTS, cb_failure_threshold=2) as served:
            known = list(served.gateway.workers)
            streams = [asyncio.ensure_future(served.post(chat(stream=True, user="alice"))) for _ in range(2)]
            await until(lambda: len(first.asked) == len(second.asked) == 1)
            for _ in range(8):
                assert (await served.post(chat(content="flip", user="mallory")))[0] == 200
            assert [worker.up for worker in known] == [True, True]
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    run(main)


def test_a_worker_that_is_broken_for_one_model_serves_the_others():
    async def main():
        models = ("tiny", "odd")
        bad = MockWorker(if_asked_for("odd", answer(status=500)), models)
        good = MockWorker(models=models)
        async with serving(bad, good, **TENANTS, cb_failure_threshold=2) as served:
            for model in ("tiny", "tiny", "odd") * 6:
                assert (await served.post(chat(model, user="alice")))[0] == 200
            assert all(worker.up for worker in served.gateway.workers)

    run(main)


def test_the_last_worker_is_left_alone_for_silence_only():
    async def main():
        worker = MockWorker(answer(status=500))
        async with serving(worker, cb_failure_threshold=3, cb_timeout_secs=60, max_attempts=1) as served:
            (known,) = served.gateway.workers
            for _ in range(10):
                assert (await served.post(chat()))[0] == 500
            assert known.up
            assert len(known.failures) == 3, "no more is remembered than is needed"
            worker.behave = raw(close=True)
            for _ in range(3):
                assert (await served.post(chat()))[0] == 502
            assert not known.up

    run(main)


def test_when_all_fail_none_is_taken_out():
    async def main():
        workers = [MockWorker(answer(status=500)) for _ in range(3)]
        async with serving(*workers, **TENANTS, cb_failure_threshold=3, max_attempts=1) as served:
            for number in range(12):
                await served.post(chat(user=f"user-{number}"))
            assert all(worker.up for worker in served.gateway.workers)

    run(main)


def test_a_clients_mistakes_neither_count_nor_clear():
    async def main():
        worker = MockWorker(answer(status=500))
        async with serving(worker, max_attempts=1) as served:
            (known,) = served.gateway.workers
            await served.post(chat())
            worker.behave = answer(status=400)
            await served.post(chat())
            assert len(known.failures) == 1

    run(main)


def test_a_row_counts_each_request_once_and_is_bounded():
    row = FailureRow(3)
    for _ in range(5):
        row.add(1, Failure("alice", silent=False))
    assert (len(row), row.only_client, row.silent) == (1, "alice", 0)
    row.add(2, Failure("bob", silent=True))
    assert (len(row), row.only_client, row.silent) == (2, None, 1)
    for rid in range(3, 10_000):
        row.add(rid, Failure("carol", silent=True))
    assert (len(row), row.only_client) == (3, "carol")
    row.withdraw(9_999)
    row.withdraw(1)
    assert len(row) == 2
    row.add(0, Failure("dan", silent=False))
    row.trust_again()
    assert len(row) == 2
    assert FailureRow(1).only_client is None
