"""The prefill of a stream ends with the first event that says more than a role, whatever that says."""

import asyncio

import pytest

from tests.gateway.mocks import DONE, EVENT_STREAM, ROLE, MockWorker, chat, chunk, event, run, serving

FIRST = {
    "text": {"content": "a"},
    "function call": {"function_call": {"name": "f", "arguments": ""}},
    "content parts": {"content": [{"type": "text", "text": "a"}]},
    "refusal": {"refusal": "no"},
    "tool call": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
    "nothing yet": {},
    "an empty text after the role": {"content": ""},
    "a field of tomorrow": {"audio": {"data": "AAAA"}},
}


@pytest.mark.parametrize("name", FIRST)
def test_two_long_prompts_that_have_begun_do_not_hold_up_a_short_one(name):
    async def main():
        go = asyncio.Event()

        async def behave(ask, writer):
            writer.write(EVENT_STREAM + chunk(ROLE))
            await asyncio.sleep(0.01)
            writer.write(chunk(event({"choices": [{"index": 0, "delta": FIRST[name]}]})))
            await go.wait()
            writer.write(chunk(DONE) + b"0\r\n\r\n")

        worker = MockWorker(behave)
        async with serving(worker, worker_kv_tokens=1_000_000) as served, asyncio.TaskGroup() as tasks:
            for number in range(2):
                tasks.create_task(served.post(chat(content=f"{number}" + "word " * 8_000, stream=True)))
            await asyncio.sleep(0.3)
            assert len(worker.asked) == 2
            tasks.create_task(served.post(chat(content="short", stream=True)))
            await asyncio.sleep(0.3)
            reached = len(worker.asked)
            pending = list(served.gateway.dispatcher.fleet.pending_prefill_tokens)
            go.set()
        assert reached == 3
        assert pending == [0]
        figures = served.gateway.metrics.client("default")
        assert sum(figures.first_token.counts) == 3, "each has its time to a first token"

    run(main)
