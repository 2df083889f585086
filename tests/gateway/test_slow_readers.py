"""Clients that read slowly or not at all, over real sockets: they hold no worker, and a bounded memory."""

import asyncio
import re
import time

from fairlead.core.lifecycle import State
from tests.gateway.mocks import (
    DONE,
    EVENT_STREAM,
    ROLE,
    USAGE_EVENT,
    Ask,
    Behaviour,
    MockWorker,
    chat,
    chunk,
    plain,
    run,
    serving,
    token,
)
from tests.http.test_backlog import Reader, dechunked, until

MIB = 2**20
READ = 2**19
"""What one read of an answer brings at most; it may come before a bound is looked at."""
TOKEN = token("x" * 10_000)
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"


def flood(tokens: int) -> Behaviour:
    """Answer a stream of so many tokens of 10 kB as fast as the gateway takes it; short if asked for 1."""

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        many = 1 if ask.body.get("max_tokens") == 1 else tokens
        writer.write(EVENT_STREAM + chunk(ROLE))
        for _ in range(many):
            writer.write(chunk(TOKEN))
            await writer.drain()
            await asyncio.sleep(0)  # so that a client in the same loop can keep up
        writer.write(chunk(USAGE_EVENT) + chunk(DONE) + b"0\r\n\r\n")

    return behave


def reader(served, body: bytes) -> Reader:
    return Reader(served.gateway.port, CHAT % (len(body), body))


async def metric(served, name: str) -> float:
    text = (await served.get(b"/metrics"))[1].decode()
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def test_readers_that_never_read_hold_no_worker():
    """Forty of them ask for 4 MB each, from an engine for four at a time; then somebody polite comes."""

    async def main():
        worker = MockWorker(flood(400))
        async with serving(worker, worker_max_num_seqs=4) as served:
            readers = [reader(served, chat(stream=True)) for _ in range(40)]
            await until(lambda: len(worker.asked) >= 4)
            assert (await served.post(chat(stream=True, max_tokens=1)))[0] == 200
            await served.settled()
            assert served.gateway.dispatcher.ended[State.DONE] == 41
            assert await metric(served, "fairlead_answer_buffer_bytes") > 40 * 3 * MIB
            got = await readers[7].read(b"0\r\n\r\n")
            assert dechunked(got).count(TOKEN) == 400
            for each in readers:
                each.close()
            await until(lambda: not served.gateway.server.backlogs.waiting)

    run(main)


def test_a_stream_too_far_behind_is_cut_counted_and_charged():
    async def main():
        worker = MockWorker(flood(5000))
        async with serving(worker, answer_buffer_bytes=MIB) as served:
            slow = reader(served, chat(stream=True))
            await until(lambda: served.gateway.dispatcher.ended[State.CANCELLED] == 1)
            await served.settled()
            counted = 'fairlead_requests_total{client="default",result="slow_reader"}'
            assert await metric(served, counted) == 1
            assert await metric(served, 'fairlead_slow_readers_cut_total{reason="behind"}') == 1
            assert await metric(served, "fairlead_answer_buffer_bytes") == 0
            account = served.gateway.dispatcher.ledger.accounts["default"]
            # An event is a token of two units; 1 MiB and what the sockets hold are more than a hundred.
            assert account.delivered > 100 * 2
            slow.close()

    run(main)


def test_all_that_waits_is_bounded_and_a_polite_reader_spared():
    async def main():
        worker = MockWorker(flood(1200))
        async with serving(worker, answer_buffer_total_bytes=8 * MIB) as served:
            polite = reader(served, chat(stream=True))
            reading = asyncio.ensure_future(polite.read(b"0\r\n\r\n"))
            readers = [reader(served, chat(stream=True)) for _ in range(12)]
            backlogs = served.gateway.server.backlogs
            most = 0
            while backlogs.cut["total"] < 12 or served.gateway.flows:
                most = max(most, backlogs.waiting)
                await asyncio.sleep(0)
            assert most < 8 * MIB + READ
            assert dechunked(await reading).count(TOKEN) == 1200
            for each in [polite, *readers]:
                each.close()

    run(main)


def test_a_large_answer_that_is_no_stream_waits_in_the_worker_and_not_in_its_capacity():
    """It is computed before it is sent: who reads it slowly costs nobody a place, and gets all of it."""
    body = b'{"choices": [], "data": "%b"}' % (b"0123456789" * 600_000)

    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"{}" if ask.body.get("max_tokens") == 1 else body))
        await writer.drain()

    async def main():
        worker = MockWorker(behave)
        async with serving(worker, worker_max_num_seqs=1, answer_buffer_bytes=MIB) as served:
            slow = reader(served, chat())
            await until(lambda: served.gateway.dispatcher.ended[State.DONE] == 1)
            assert (await served.post(chat(max_tokens=1)))[0] == 200
            assert served.gateway.server.backlogs.waiting < 2 * MIB
            got = await slow.read(body[-20:])
            assert got.endswith(b"\r\n\r\n" + body)
            assert sum(served.gateway.server.backlogs.cut.values()) == 0
            slow.close()

    run(main)


def test_a_large_answer_that_breaks_off_after_it_was_settled_is_cut_off():
    async def behave(ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"x" * 12 * MIB)[:-MIB])
        await writer.drain()
        writer.close()

    async def main():
        async with serving(MockWorker(behave), answer_buffer_bytes=MIB) as served:
            slow = reader(served, chat())
            await until(lambda: served.gateway.dispatcher.ended[State.DONE] == 1)
            got = b""
            try:
                got = await asyncio.wait_for(slow.read(b"never"), 10)
            except ConnectionError:
                got = bytes(slow.got)
            assert len(got) < 12 * MIB
            slow.close()

    run(main)


def test_a_shutdown_does_not_wait_longer_than_it_may_for_who_never_reads():
    async def main():
        async with serving(MockWorker(flood(400)), drain_timeout_secs=0.5) as served:
            readers = [reader(served, chat(stream=True)) for _ in range(3)]
            await until(lambda: served.gateway.dispatcher.ended[State.DONE] == 3)
            began = time.monotonic()
            assert not await served.gateway.drain()
            await served.gateway.close()
            assert time.monotonic() - began < 5
            for each in readers:
                each.close()

    run(main)


def test_a_shutdown_waits_for_who_is_still_reading():
    async def main():
        async with serving(MockWorker(flood(400)), drain_timeout_secs=15) as served:
            slow = reader(served, chat(stream=True))
            await until(lambda: served.gateway.dispatcher.ended[State.DONE] == 1)
            draining = asyncio.ensure_future(served.gateway.drain())
            await asyncio.sleep(0.05)
            assert not draining.done()
            assert dechunked(await slow.read(b"0\r\n\r\n")).count(TOKEN) == 400
            assert await draining
            slow.close()

    run(main)
