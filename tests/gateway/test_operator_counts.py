"""Every count that an operator sets an alarm on: it moves when it should, and only then."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.mocks import (
    DONE,
    EVENT_STREAM,
    ROLE,
    Ask,
    MockWorker,
    answer,
    chat,
    chunk,
    closes_kept_connections,
    event,
    raw,
    run,
    serving,
    token,
)
from tests.gateway.test_flows import Notes
from tests.gateway.test_workers import until


async def counts(served, name: str, label: str) -> dict[str, float]:
    """Return the samples of a counter by the value of ``label``, without those that are zero."""
    _, text = await served.get(b"/metrics")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if sample.name == name and sample.value:
                value = sample.labels.get(label, "")
                found[value] = found.get(value, 0) + sample.value
    return found


async def results(served) -> dict[str, float]:
    return await counts(served, "fairlead_requests_total", "result")


CUT = {
    "a stream after a token": ([EVENT_STREAM, chunk(ROLE), chunk(token("one"))], True),
    "a stream after its head": ([EVENT_STREAM], True),
    "a whole answer": ([b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"], False),
    "an answer without a byte": ([], False),
    "half a status line": ([b"HTTP/1.1 2"], False),
    "no HTTP": ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"], False),
}


@pytest.mark.parametrize("name", CUT)
def test_an_answer_that_was_cut_is_an_error(name):
    sent, streamed = CUT[name]

    async def main():
        worker = MockWorker(raw(*sent, close=True))
        async with serving(worker, cb_failure_threshold=100) as served:
            notes = Notes(served, chat(stream=streamed))
            await notes.over.wait()
            await served.settled()
            assert await results(served) == {"error": 1}
            failures = await counts(served, "fairlead_worker_failures_total", "worker")
            assert failures[worker.url] >= 1

    run(main)


@pytest.mark.parametrize(
    ("status", "result"), [(400, "status_400"), (404, "status_404"), (500, "error"), (502, "error")]
)
def test_an_engines_own_error_is_counted_by_its_status_or_as_an_error(status, result):
    async def main():
        async with serving(MockWorker(answer(status=status)), cb_failure_threshold=100) as served:
            assert (await served.post(chat()))[0] == status
            assert await results(served) == {result: 1}

    run(main)


def test_an_answer_that_was_cut_after_an_error_was_averted_is_an_error():
    """The status of the first worker's error is not the result of the second one's answer."""

    async def main():
        first = MockWorker(answer(status=500))
        second = MockWorker(raw(close=True))
        async with serving(first, second, cb_failure_threshold=100, max_attempts=2) as served:
            for _ in range(2):
                await served.post(chat())
            found = await results(served)
            assert found == {"error": 2}
            assert (await counts(served, "fairlead_retries_total", ""))[""] == 2

    run(main)


def test_good_answers_and_those_whose_client_left():
    async def endless(ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunk(ROLE) + chunk(token("x")))
        await asyncio.sleep(60)

    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            for streamed in (False, True, True):
                assert (await served.post(chat(stream=streamed)))[0] == 200
            worker.behave = endless
            notes = Notes(served, chat(stream=True))
            await notes.first.wait()
            notes.call.cancel()
            await asyncio.wait_for(worker.gone.wait(), 2)
            await served.settled()
            assert await results(served) == {"ok": 3, "cancelled": 1}
            assert await counts(served, "fairlead_worker_failures_total", "worker") == {}
            assert await counts(served, "fairlead_retries_total", "") == {}
            assert await counts(served, "fairlead_refused_total", "reason") == {}

    run(main)


def test_a_client_that_leaves_in_the_middle_left_also_if_usage_was_said_already():
    """With ``continuous_usage_stats`` every chunk says it: it is the last one that tells the end."""

    async def endless(ask: Ask, writer: asyncio.StreamWriter) -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": 1}
        said = {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": usage}
        writer.write(EVENT_STREAM + chunk(ROLE) + chunk(event(said)))
        await asyncio.sleep(60)

    async def main():
        worker = MockWorker(endless)
        async with serving(worker) as served:
            options = {"include_usage": True, "continuous_usage_stats": True}
            notes = Notes(served, chat(stream=True, stream_options=options))
            while b'"x"' not in notes.got:
                await notes.first.wait()
                await asyncio.sleep(0)
            notes.call.cancel()
            await asyncio.wait_for(worker.gone.wait(), 2)
            await served.settled()
            assert await results(served) == {"cancelled": 1}

    run(main)


def test_what_the_queue_refuses():
    async def main():
        worker = MockWorker(answer(delay=0.6))
        async with serving(worker, worker_max_num_seqs=1, queue_size=1, queue_timeout_secs=0.1) as served:
            first = asyncio.ensure_future(served.post(chat()))
            await asyncio.sleep(0.05)
            second = asyncio.ensure_future(served.post(chat()))
            await asyncio.sleep(0.02)
            assert (await served.post(chat()))[0] == 429
            assert (await second)[0] == 503
            assert (await first)[0] == 200
            assert await results(served) == {"ok": 1, "queue_full": 1, "queue_timeout": 1}

    run(main)


def test_without_a_worker_requests_are_counted_as_that():
    async def main():
        worker = MockWorker()
        worker.healthy = False
        async with serving(worker) as served:
            assert (await served.post(chat()))[0] == 503
            assert await results(served) == {"no_worker": 1}

    run(main)


def test_what_is_refused_at_the_door_by_reason():
    async def main():
        async with serving(MockWorker(), api_key=["alice=k1"]) as served:
            key = [(b"authorization", b"Bearer k1")]
            for body, headers in (
                (b"{", key),
                (chat(stream="yes"), key),
                (b'{"model":"tiny"}', key),
                (chat(model="huge"), key),
                (chat(model="huge"), key),
                (chat(model=""), key),
                (chat(), []),
                (chat(), [(b"authorization", b"Bearer k2")]),
            ):
                assert 400 <= (await served.post(body, headers=headers))[0] < 500
            assert (await served.get(b"/v1/models"))[0] == 401
            assert await counts(served, "fairlead_refused_total", "reason") == {
                "invalid_json": 1,
                "invalid_type": 1,
                "missing_required_parameter": 1,
                "model_not_found": 2,
                "bad_request": 1,
                "unauthorized": 3,
            }
            assert await results(served) == {}

    run(main)


def test_requests_that_another_worker_served_are_retries_and_failures_of_the_first():
    async def main():
        bad, good = MockWorker(raw(close=True)), MockWorker()
        async with serving(bad, good, cb_failure_threshold=100) as served:
            for _ in range(4):
                assert (await served.post(chat()))[0] == 200
            retries = (await counts(served, "fairlead_retries_total", ""))[""]
            assert 1 <= retries <= len(bad.asked)
            failures = await counts(served, "fairlead_worker_failures_total", "worker")
            assert failures == {bad.url: retries}
            assert await results(served) == {"ok": 4}

    run(main)


def test_requests_sent_again_on_a_new_connection_are_stale_retries_alone():
    async def main():
        worker = MockWorker(closes_kept_connections())
        async with serving(worker, health_interval_secs=60, load_interval_secs=60) as served:
            for _ in range(3):
                assert (await served.post(chat()))[0] == 200
            assert (await counts(served, "fairlead_worker_stale_retries_total", "worker"))[worker.url] >= 1
            assert await counts(served, "fairlead_worker_failures_total", "worker") == {}
            assert await counts(served, "fairlead_retries_total", "") == {}
            assert await results(served) == {"ok": 3}

    run(main)


def test_a_worker_that_is_out_shows_as_down():
    async def up(served, worker) -> float:
        return (await counts(served, "fairlead_worker_up", "worker")).get(worker.url, 0)

    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            assert await up(served, worker) == 1
            worker.healthy = False
            for _ in range(200):
                if not await up(served, worker):
                    break
                await asyncio.sleep(0.02)
            assert await up(served, worker) == 0

    run(main)


def test_an_event_of_an_error_inside_a_stream_is_an_error():
    """vLLM says so when an answer fails in the middle; the stream itself ends as usual."""

    async def main():
        said = b'data: {"error":{"message":"out of memory","type":"InternalServerError","code":500}}\n\n'
        worker = MockWorker(raw(EVENT_STREAM, chunk(ROLE + token("a")), chunk(said + DONE), b"0\r\n\r\n"))
        async with serving(worker) as served:
            assert (await served.post(chat(stream=True)))[0] == 200
            await served.settled()
            assert await results(served) == {"error": 1}

    run(main)


def test_a_field_for_errors_that_is_empty_is_none():
    async def main():
        said = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"error":null}\n\n'
        worker = MockWorker(
            raw(EVENT_STREAM, chunk(ROLE + said), chunk(token('"error"') + DONE), b"0\r\n\r\n")
        )
        async with serving(worker) as served:
            assert (await served.post(chat(stream=True)))[0] == 200
            await served.settled()
            assert await results(served) == {"ok": 1}

    run(main)


@pytest.mark.parametrize("status", [429, 503])
def test_what_a_worker_has_no_room_for_is_a_refusal_and_no_failure(status):
    async def main():
        full, good = MockWorker(answer(status=status)), MockWorker()
        async with serving(full, good) as served:
            for _ in range(2):
                assert (await served.post(chat()))[0] == 200
            assert await counts(served, "fairlead_worker_refusals_total", "worker") == {full.url: 1}
            for name, label in (("fairlead_worker_failures_total", "worker"), ("fairlead_retries_total", "")):
                assert await counts(served, name, label) == {}
            assert await results(served) == {"ok": 2}

    run(main)


def test_what_cannot_be_is_counted_by_worker_and_figure():
    async def main():
        worker = MockWorker()
        worker.running = -7
        async with serving(worker) as served:
            (known,) = served.gateway.workers
            await until(lambda: known.ignored)
            name = "fairlead_worker_figures_ignored_total"
            assert (await counts(served, name, "figure")).keys() == {"running"}
            assert (await counts(served, name, "worker")).keys() == {worker.url}

    run(main)
