"""429 and 503 are an engine's capacity speaking: it is left alone as it says, and nothing is its fault."""

import asyncio
import itertools
import time
from email.utils import formatdate

import pytest

from fairlead.gateway.retry_after import LONGEST_S, pause, retry_after
from tests.gateway.mocks import Ask, Behaviour, MockWorker, answer, chat, plain, run, serving

WORDS = b'{"error": {"message": "the engine is full"}}'


async def until(condition) -> None:
    for _ in range(800):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


def refuse(status: int = 503, after: bytes | None = b"1", body: bytes = WORDS) -> Behaviour:
    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        text = plain(body, status)
        if after is not None:
            text = text.replace(b"\r\n", b"\r\nretry-after: %b\r\n" % after, 1)
        writer.write(text)

    return behave


@pytest.mark.parametrize("status", [429, 503])
def test_another_worker_takes_it_and_the_one_without_room_is_left_alone(status):
    async def main():
        full, good = MockWorker(refuse(status, b"30")), MockWorker()
        async with serving(full, good, cb_failure_threshold=1) as served:
            for _ in range(10):
                assert (await served.post(chat()))[0] == 200
            assert (len(full.asked), len(good.asked)) == (1, 10)
            known = next(iter(served.gateway.workers))
            assert known.up
            assert (known.failed, known.refused, len(known.failures)) == (0, 1, 0)
            assert served.gateway.dispatcher.retries == 0
            assert served.gateway.dispatcher.ledger.accounts["default"].delivered == 10 * (10 - 4 + 2 * 3)

    run(main)


def test_a_worker_alone_is_asked_again_when_it_said_and_not_before():
    """It got the same request three times at once, and the second request opened its circuit."""
    asked: list[float] = []

    async def main():
        worker = MockWorker()

        async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
            asked.append(time.monotonic())
            await (refuse() if len(asked) < 3 else answer())(ask, writer)

        worker.behave = behave
        async with serving(worker, max_attempts=1, cb_failure_threshold=1) as served:
            assert (await served.post(chat()))[0] == 200
            (known,) = served.gateway.workers
            assert known.up
            assert known.failed == 0

    run(main)
    assert len(asked) == 3
    assert all(later - before >= 0.99 for before, later in itertools.pairwise(asked))


@pytest.mark.parametrize("status", [429, 503])
def test_who_waited_for_too_long_hears_the_engines_words(status):
    async def main():
        worker = MockWorker(refuse(status, b"30"))
        async with serving(worker, queue_timeout_secs=0.3) as served:
            got, headers, body = await served.post(chat())
            assert (got, body) == (status, WORDS)
            assert headers[b"retry-after"] == b"30"
            assert len(worker.asked) == 1
            assert served.gateway.dispatcher.ledger.accounts["default"].charged == 0
            assert served.gateway.metrics.client("default").results == {"queue_timeout": 1}

    run(main)


def test_words_that_name_no_time_get_one_and_endless_words_are_not_kept():
    async def main():
        worker = MockWorker(refuse(503, None))
        async with serving(worker, queue_timeout_secs=0.2) as served:
            status, headers, body = await served.post(chat())
            assert (status, body) == (503, WORDS)
            assert int(headers[b"retry-after"]) >= 1
            worker.behave = refuse(503, b"30", b"x" * 1_000_000)
            await until(lambda: not served.gateway.dispatcher.fleet.held)
            waiting = asyncio.ensure_future(served.post(chat()))
            await until(lambda: len(worker.asked) >= 2 and served.gateway.dispatcher.queued == 1)
            (flow,) = served.gateway.scheduler.flows.values()
            assert not flow.kept
            status, _, body = await waiting
            assert status == 503
            assert b"no worker had room" in body

    run(main)


@pytest.mark.parametrize("after", [None, b"0", b"soon"])
def test_workers_that_all_refuse_are_not_asked_in_a_loop(after):
    async def main():
        workers = [MockWorker(refuse(503, after)) for _ in range(2)]
        async with serving(*workers, queue_timeout_secs=1.5) as served:
            got = await asyncio.gather(*(served.post(chat()) for _ in range(5)))
            assert {status for status, _, _ in got} == {503}
            # The first five at once, then with pauses of 0.25 s, 0.5 s, 1 s for each worker.
            assert sum(len(worker.asked) for worker in workers) <= 5 + 2 * 4
            assert all(worker.up for worker in served.gateway.workers)

    run(main)


def test_its_capacity_falls_to_what_it_runs_and_grows_again():
    """An engine that says nothing of its load: refusals alone tell."""

    class Silent(MockWorker):
        def _get(self, ask: Ask) -> bytes:
            return super()._get(ask) if "/health" in ask.line else plain(b"{}", 404)

    async def main():
        running = 0
        most = 0
        room = 3

        async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
            nonlocal running, most
            if running >= room:
                await refuse(429, None)(ask, writer)
                return
            running += 1
            most = max(most, running)
            try:
                await answer(delay=0.3)(ask, writer)
            finally:
                running -= 1

        worker = Silent(behave)
        async with serving(worker, worker_max_num_seqs=8) as served:
            fleet = served.gateway.dispatcher.fleet
            asks = [asyncio.ensure_future(served.post(chat())) for _ in range(12)]
            await until(lambda: fleet.max_num_seqs[0] == 3)
            room = 8
            await until(lambda: fleet.max_num_seqs[0] > 3)
            assert [(await ask)[0] for ask in asks] == [200] * 12

    run(main)


def test_a_status_that_is_not_to_be_retried_is_passed_on_at_once():
    async def main():
        worker = MockWorker(refuse())
        async with serving(worker, retry_statuses=["500"]) as served:
            assert (await served.post(chat()))[0] == 503
            assert next(iter(served.gateway.workers)).failed == 0

    run(main)


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"0", 0.0),
        (b"7", 7.0),
        (b" 7 ", 7.0),
        (b"3600", LONGEST_S),
        (b"9" * 400, LONGEST_S),
        (b"-5", None),
        (b"1e9", None),
        (b"7.5", None),
        (b"nan", None),
        (b"", None),
        (b"soon", None),
        (formatdate(NOW + 20, usegmt=True).encode(), 20.0),
        (formatdate(NOW - 20, usegmt=True).encode(), 0.0),
        (formatdate(NOW + 1e9, usegmt=True).encode(), LONGEST_S),
        (b"Fri, 31 Dec 0001 23:59:59 -2359", 0.0),
        (b"Fri, 31 Dec 99999 23:59:59 GMT", None),
        (b"\xff\xfe", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_long(text, seconds):
    assert retry_after([(b"date", b"x"), (b"retry-after", text)], NOW) == seconds


def test_without_retry_after_the_pause_doubles_up_to_a_bound():
    assert retry_after([], NOW) is None
    assert [pause(n) for n in (1, 2, 3, 6, 1000)] == [0.25, 0.5, 1.0, 8.0, 8.0]
