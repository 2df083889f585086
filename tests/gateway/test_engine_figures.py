"""What an engine says of one answer is checked before it counts: its usage, its head, its framing."""

import asyncio
import json
import logging
import signal

import pytest

from fairlead.gateway.wire import usage_of
from fairlead.http.client import Pool
from tests.gateway.mocks import (
    DONE,
    EVENT_STREAM,
    ROLE,
    Ask,
    Behaviour,
    MockWorker,
    answer,
    chat,
    chunk,
    plain,
    raw,
    run,
    serving,
    token,
)
from tests.gateway.test_command import port_of, process
from tests.gateway.test_flows import Notes

KV_TOKENS = 16_000
"""What a mock worker says of its pool."""
COSTS = 3
"""Most units that a token costs: one of the prompt 1, one of the answer 2."""


def figures(prompt: str = "10", output: str = "3", cached: str = "4") -> bytes:
    """Return a ``usage`` with these JSON texts as its figures."""
    return (
        f'{{"prompt_tokens":{prompt},"completion_tokens":{output},'
        f'"prompt_tokens_details":{{"cached_tokens":{cached}}}}}'
    ).encode()


HOSTILE = {
    "prompt of 400 digits": figures(prompt="1" + "0" * 400),
    "prompt of 5000 digits": figures(prompt="1" + "0" * 5000),
    "prompt of 27 digits": figures(prompt="1" + "0" * 26),
    "negative prompt": figures(prompt="-100000"),
    "no prompt at all": figures(prompt="0"),
    "prompt beyond the pool": figures(prompt=str(KV_TOKENS + 1)),
    "prompt as text": figures(prompt='"10"'),
    "prompt with a fraction": figures(prompt="10.5"),
    "prompt beyond a float": figures(prompt="1e999"),
    "prompt as an object": figures(prompt='{"a":[1,{"b":2}]}'),
    "prompt as a truth": figures(prompt="true"),
    "output of 2^63": figures(output=str(2**63)),
    "output of 5000 digits": figures(output="9" * 5000),
    "negative output": figures(output="-5"),
    "output beyond what was asked": figures(output="51"),
    "more cached than there is": figures(cached="1000000"),
    "negative cached": figures(cached="-7"),
    "cached of 5000 digits": figures(cached="1" * 5000),
    "details of another type": b'{"prompt_tokens":10,"completion_tokens":3,"prompt_tokens_details":7}',
    "usage of another type": b'"many"',
    "usage of 5000 digits": b"7" * 5000,
    "usage as a list": b"[1,2,3]",
}


def at_once(*parts: bytes) -> Behaviour:
    """Answer with these bytes in one write."""

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(parts))

    return behave


def whole(usage: bytes) -> list[bytes]:
    return [plain(b'{"choices":[{"message":{"content":"hi"}}],"usage":%b}' % usage)]


def stream(usage: bytes) -> list[bytes]:
    said = b'data: {"choices":[],"usage":%b}\n\n' % usage
    return [EVENT_STREAM, chunk(ROLE + token("hi")), chunk(said + DONE), b"0\r\n\r\n"]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", HOSTILE)
def test_figures_that_cannot_be_true_are_ignored_counted_and_charge_nothing(name, streamed, caplog):
    async def main():
        usage = HOSTILE[name]
        worker = MockWorker(at_once(*(stream if streamed else whole)(usage)))
        async with serving(worker) as served:
            for _ in range(3):
                status, _, _ = await served.post(chat(stream=streamed, max_tokens=50))
                assert status == 200
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            assert account.outstanding == 0
            # Three prompts of about ten tokens and three answers of at most 50: never more than that.
            assert 0 <= account.delivered <= 3 * (KV_TOKENS // 100 + 2 * 50)
            served.gateway.dispatcher.check()
            (known,) = served.gateway.workers
            assert sum(known.ignored.values()) >= 3
            status, text = await served.get(b"/metrics")
            assert b"fairlead_worker_figures_ignored_total{" in text

    with caplog.at_level(logging.INFO):
        run(main)
    said = [r for r in caplog.records if r.name == "fairlead.workers" and "cannot be" in r.getMessage()]
    assert len(said) == 1
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_figures_that_can_be_true_beside_one_that_cannot_still_count():
    async def main():
        worker = MockWorker(at_once(*whole(figures(prompt="10", cached="4", output="9" * 400))))
        async with serving(worker) as served:
            _, _, got = await served.post(chat(max_tokens=500))
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            assert account.delivered == 10 - 4 + 2 * (len(got) // 4)

    run(main)


def test_output_that_is_not_believed_leaves_the_tokens_that_were_seen():
    async def main():
        usage = figures(prompt="10", cached="4", output="-3")
        worker = MockWorker(
            raw(
                EVENT_STREAM,
                chunk(ROLE + token("a") + token("b")),
                chunk(stream(usage)[2][5:-2]),
                b"0\r\n\r\n",
            )
        )
        async with serving(worker) as served:
            await served.post(chat(stream=True))
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            assert 6 + 2 * 2 <= account.delivered <= 6 + 2 * 4

    run(main)


LARGE = b'{"choices":[{"message":{"content":"%b"}}],"usage":%b}'


@pytest.mark.parametrize("limit", [None, 3_000_000, 1000])
def test_the_output_of_an_answer_too_large_to_read_is_estimated_by_its_size(limit):
    """It is passed on as it comes, and its usage, at its end, is not read: that makes it no cheaper."""

    async def main():
        body = LARGE % (b"x" * 9 * 2**20, figures(output="12"))
        worker = MockWorker(at_once(plain(body)))
        async with serving(worker) as served:
            (known,) = served.gateway.workers
            known.capacity = known.capacity._replace(kv_tokens=16_000_000)
            _, _, got = await served.post(chat(max_tokens=limit))
            assert got == body
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            output = min(len(body) // 4, limit or 16_000_000)
            assert 2 * output < account.delivered < 2 * output + 100

    run(main)


def test_a_stream_longer_than_it_may_be_costs_what_was_asked_for():
    async def main():
        worker = MockWorker(
            at_once(EVENT_STREAM, *[chunk(token("a"))] * 100, stream(figures(output="99"))[2], b"0\r\n\r\n")
        )
        async with serving(worker) as served:
            await served.post(chat(stream=True, max_tokens=5))
            await served.settled()
            assert served.gateway.dispatcher.ledger.accounts["default"].delivered == 10 - 4 + 2 * 5

    run(main)


HEADS = {
    "a length of 5000 digits": b"content-length: %b" % (b"1" * 5000),
    "a length of 20 digits": b"content-length: 99999999999999999999",
    "a negative length": b"content-length: -5",
    "a length that is none": b"content-length: 5.0",
    "a length with a sign": b"content-length: +5",
}


@pytest.mark.parametrize("name", HEADS)
def test_lengths_that_no_answer_has_are_a_502(name):
    async def main():
        worker = MockWorker(at_once(b"HTTP/1.1 200 OK\r\n" + HEADS[name] + b"\r\n\r\nabcde"))
        async with serving(worker, cb_failure_threshold=100) as served:
            status, _, _ = await served.post(chat())
            assert status == 502
            await served.settled()
            assert served.gateway.dispatcher.ledger.accounts["default"].charged == 0

    run(main)


def test_an_answer_may_be_as_long_as_its_sequences_and_limit_allow():
    async def main():
        worker = MockWorker(at_once(*whole(figures(output="200"))))
        async with serving(worker) as served:
            await served.post(chat(max_tokens=50, n=4))
            await served.settled()
            assert served.gateway.dispatcher.ledger.accounts["default"].delivered == 6 + 2 * 200

    run(main)


def test_usage_is_read_in_whatever_shape_it_comes():
    for name, usage in HOSTILE.items():
        assert usage_of(b'{"usage":%b}' % usage) is not None, name
    deep = b'{"usage":' + b"[" * 100_000
    for body in (b"", b"{", b"[]", b'{"usage":null}', b"\xff", b"1" * 5000, deep):
        assert usage_of(body) is None


# --- whatever breaks inside, the client hears of it --------------------------------------------

FAULTS = {
    "in sending": "fairlead.gateway.flow.for_engine",
    "in reading a head": "fairlead.gateway.flow._read_head",
    "in reading a stream": "fairlead.gateway.sse.Tap.feed",
    "at the end of a stream": "fairlead.gateway.sse.Tap.rest",
    "in reading usage": "fairlead.gateway.flow.usage_of",
    "in checking figures": "fairlead.gateway.flow.outside.usage",
    "in learning": "fairlead.gateway.prompt.BytePrompts.learn",
    "in settling": "fairlead.gateway.flow.Flow._settle",
    "at a first token": "fairlead.gateway.flow.Flow._first_token",
    "in reporting progress": "fairlead.gateway.flow.Flow.take_progress",
    "in counting a success": "fairlead.gateway.workers.Worker.succeeded",
    "in counting a failure": "fairlead.gateway.workers.Workers.failed",
    "in passing on": "fairlead.http.exchange.Exchange.send",
    "in beginning to answer": "fairlead.http.exchange.Exchange.begin",
    "in telling of a failure": "fairlead.gateway.flow.error_response",
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("where", FAULTS)
def test_a_fault_inside_ends_its_request_alone(where, streamed, monkeypatch):
    """The client gets an end, the books are settled, others are served, and the gateway drains."""

    def broken(*_, **__):
        raise ZeroDivisionError("a fault, as a test")

    async def main():
        fails = where in {"in counting a failure", "in telling of a failure"}
        worker = MockWorker(raw(close=True) if fails else answer("a b c", delay=0.02))
        async with serving(worker, engine_ordering=where == "in sending", cb_failure_threshold=9) as served:
            with monkeypatch.context() as patch:
                patch.setattr(FAULTS[where], broken)
                notes = Notes(served, chat(stream=streamed))
                await asyncio.wait_for(notes.over.wait(), 5)
                await served.settled()
            worker.behave = answer("fine")
            assert (await served.post(chat()))[0] == 200
            await served.settled()
            assert served.gateway.dispatcher.ledger.accounts["default"].outstanding == 0
            assert await served.gateway.drain()

    run(main)


def test_a_fault_before_the_answer_is_a_502_and_counts_as_an_error(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a fault, as a test")

    async def main():
        async with serving(MockWorker()) as served:
            monkeypatch.setattr("fairlead.gateway.flow._read_head", broken)
            for streamed in (False, True):
                status, _, got = await served.post(chat(stream=streamed))
                assert status == 502
                assert json.loads(got)["error"]["code"] == "worker_failed"
                assert b"ZeroDivision" not in got
            _, text = await served.get(b"/metrics")
            assert b'fairlead_requests_total{client="default",result="error"} 2.0' in text
            assert served.gateway.dispatcher.ledger.accounts["default"].charged == 0

    run(main)


@pytest.mark.parametrize("kind", ["Arrived", "FirstToken", "Progressed", "Finished"])
def test_an_event_that_cannot_be_decided_ends_its_request_alone(kind, monkeypatch):
    async def main():
        worker = MockWorker(answer("a b c"))
        async with serving(worker, ask_usage=kind != "Progressed") as served:
            scheduler = served.gateway.scheduler
            decide, failed = scheduler._decide, []

            def once(event):
                if type(event).__name__ == kind and not failed:
                    failed.append(event)
                    raise ZeroDivisionError("a fault, as a test")
                return decide(event)

            monkeypatch.setattr(scheduler, "_decide", once)
            notes = Notes(served, chat(stream=True))
            await asyncio.wait_for(notes.over.wait(), 5)
            await served.settled()
            assert failed
            assert (await served.post(chat()))[0] == 200

    run(main)


def test_a_tick_that_fails_is_not_the_last_one(monkeypatch):
    async def main():
        async with serving(MockWorker()) as served:
            scheduler = served.gateway.scheduler
            decide, ticks, enough = scheduler._decide, [], asyncio.Event()

            def sometimes(event):
                if type(event).__name__ == "Tick":
                    ticks.append(event)
                    if len(ticks) < 3:
                        raise ZeroDivisionError("a fault, as a test")
                    enough.set()
                return decide(event)

            monkeypatch.setattr(scheduler, "_decide", sometimes)
            await asyncio.wait_for(enough.wait(), 5)

    run(main)


def test_after_figures_beyond_all_bounds_a_signal_still_drains_and_ends_with_zero():
    async def main():
        worker = MockWorker(at_once(*whole(figures(prompt="1" + "0" * 400))))
        await worker.start()
        async with process("--worker-urls", worker.url) as child:
            port, _ = await port_of(child)
            pool = Pool(f"http://127.0.0.1:{port}")
            for streamed in (False, True):
                if streamed:
                    worker.behave = at_once(*stream(figures(prompt="1" + "0" * 5000)))
                status, _, _ = await pool.fetch(
                    b"POST", b"/v1/chat/completions", [], chat(stream=streamed), timeout=5
                )
                assert status == 200
            await pool.close()
            child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child.wait(), 5) == 0
        await worker.stop()

    run(main)
