"""Clients that read slowly or not at all, over real sockets: they hold no worker, and a bounded memory."""

import asyncio

from fairlead.core.lifecycle import State
from tests.gateway.mocks import DONE, EVENT_STREAM, Ask, MockWorker, chat, chunk, run, serving, token
from tests.gateway.test_flows import Notes


def test_a_client_that_reads_slowly_does_not_hold_its_worker_back():
    """The answer is taken as fast as it comes, and waits here for the client."""
    sent = asyncio.Event()

    async def flood(ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM)
        for _ in range(800):
            writer.write(chunk(token("x" * 10_000)))
            await writer.drain()
        writer.write(chunk(DONE) + b"0\r\n\r\n")
        await writer.drain()
        sent.set()

    async def main():
        async with serving(MockWorker(flood)) as served:
            notes = Notes(served, chat(stream=True))
            await notes.first.wait()
            notes.call.pause()
            await asyncio.wait_for(sent.wait(), 10)
            await served.settled()
            assert served.gateway.dispatcher.ended[State.DONE] == 1
            notes.call.resume()
            await notes.over.wait()
            assert notes.got.count(b"data: ") == 801

    run(main)
