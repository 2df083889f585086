"""Streams through the gateway: where prefill ends, and what of the usage a client sees."""

import asyncio

import pytest

from tests.gateway.mocks import (
    DONE,
    EVENT_STREAM,
    ROLE,
    USAGE_EVENT,
    MockWorker,
    chat,
    chunk,
    event,
    raw,
    run,
    serving,
    token,
)

FORMS = {
    "function_call": {"function_call": {"name": "f", "arguments": "{"}},
    "content parts": {"content": [{"type": "text", "text": "a"}]},
    "refusal": {"refusal": "no"},
    "nothing until a tool call": {},
}


@pytest.mark.parametrize("delta", FORMS.values(), ids=FORMS)
def test_a_token_of_any_form_ends_the_prefill_of_its_stream(delta):
    async def main():
        parts = [EVENT_STREAM + chunk(ROLE), chunk(event({"choices": [{"index": 0, "delta": delta}]}))]
        async with serving(MockWorker(raw(*parts, then=0.3, close=True))) as served:
            ask = asyncio.ensure_future(served.post(chat(content="x" * 400, stream=True)))
            fleet = served.gateway.dispatcher.fleet
            for _ in range(100):
                await asyncio.sleep(0.005)
                figures = [client.first_token for client in served.gateway.metrics.clients.values()]
                if any(sum(histogram.counts) for histogram in figures):
                    break
            assert not ask.done()
            assert sum(fleet.running) == 1
            assert sum(fleet.pending_prefill_tokens) == 0
            await asyncio.gather(ask, return_exceptions=True)

    run(main)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_usage_that_only_the_gateway_asked_for_stays_here(end):
    async def main():
        parts = [part.replace(b"\n", end.encode()) for part in (ROLE, token("a"), USAGE_EVENT, DONE)]
        # The usage and a comment with another line end in one read, and an end without an empty line.
        reads = [parts[0] + parts[1], parts[2] + b": note\n\n" + parts[3] + USAGE_EVENT.rstrip()]
        worker = MockWorker(raw(EVENT_STREAM, *[chunk(read) for read in reads], b"0\r\n\r\n"))
        async with serving(worker) as served:
            _, _, got = await served.post(chat(stream=True))
            assert got == parts[0] + parts[1] + b": note\n\n" + parts[3]
            await served.settled()
            assert served.gateway.metrics.clients["default"].prompt_tokens == 10

    run(main)
