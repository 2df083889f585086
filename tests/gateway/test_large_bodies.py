"""Large bodies are read by a process beside the gateway, as small ones are here, and nobody waits."""

import asyncio
import contextlib
import json
import os
import signal

import pytest

from fairlead.core import events as ev
from fairlead.gateway import app, readers
from fairlead.gateway.app import Gateway
from fairlead.gateway.readers import LARGE_BYTES
from fairlead.gateway.wire import decode
from tests.gateway.mocks import MockWorker, answer, chat, run, serving
from tests.gateway.test_tokenizing import folder as tokenizer_folder  # noqa: F401 - a fixture
from tests.http.test_backlog import until

MIB = 2**20
PATHS = {"messages": b"/v1/chat/completions", "prompt": b"/v1/completions", "input": b"/v1/embeddings"}


def path_of(body: dict) -> bytes:
    return next(path for field, path in PATHS.items() if field in body)


WORDS = "the quick brown fox jumps over the lazy dog "
BODIES = {
    "long text": {"messages": [{"role": "user", "content": WORDS * 8000}], "max_tokens": 5},
    "many messages": {"messages": [{"role": "user", "content": f"no {n}"} for n in range(20_000)], "n": 3},
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 100_000}},
                ],
            }
        ],
        "stream": True,
    },
    "tools": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [
            {"type": "function", "function": {"name": f"f{n}", "description": WORDS}} for n in range(5000)
        ],
    },
    "tokens": {"prompt": [n * 7919 % 128_000 for n in range(60_000)], "max_tokens": 7, "best_of": 2},
    "lists of tokens": {"prompt": [[n, n + 1, n + 2] for n in range(30_000)], "n": 2},
    "texts": {"input": [f"text {n} {WORDS}" for n in range(5000)]},
    "options of its own": {
        "messages": [{"role": "user", "content": WORDS * 8000}],
        "stream": True,
        "stream_options": {"continuous_usage_stats": True, "unknown": WORDS * 200},
    },
    "odds of the prompt": {
        "messages": [{"role": "user", "content": WORDS * 8000}],
        "prompt_logprob_token_ids": list(range(5000)),
    },
    "an echo": {"prompt": WORDS * 8000, "echo": True, "logprobs": 1, "max_tokens": 10**4250},
    "a large limit": {"messages": [{"role": "user", "content": WORDS * 8000}], "max_tokens": 10**30},
    "unknown fields": {
        "messages": [{"role": "user", "content": "hi"}],
        "guided_json": {"x": WORDS * 8000},
        "user": "u" * 50_000,
    },
    "xargs of its own": {
        "messages": [{"role": "user", "content": WORDS * 8000}],
        "vllm_xargs": {"client_id": "somebody else", "other": 1},
    },
}


@contextlib.asynccontextmanager
async def watched(monkeypatch, *, beside: bool, **options):
    """Serve with bodies read in the gateway, or beside it; give what arrived and what the worker was sent."""
    monkeypatch.setattr(app, "LARGE_BYTES", 1000 if beside else 2**40)
    arrived = []
    worker = MockWorker(answer())
    async with serving(worker, prefix_secret="the same for both", **options) as served:
        step = served.gateway.scheduler._decide

        def noting(event):
            if isinstance(event, ev.Arrived):
                arrived.append(event.request)
            return step(event)

        served.gateway.scheduler._decide = noting
        yield served, worker, arrived


async def taken_in(monkeypatch, body: bytes, path: bytes, *, beside: bool, **options):
    async with watched(monkeypatch, beside=beside, **options) as (served, worker, arrived):
        assert (await served.post(body, path))[0] == 200
        assert served.gateway.readers.started == (1 if beside else 0)
        (request,) = arrived
        sent = worker.asked[0]
        if "engine_ordering" in options and path != PATHS["input"]:
            assert sent.body["vllm_xargs"]["client_id"] != "somebody else"
        del sent.headers["host"]
        return request._replace(arrived_us=0), sent.raw, sent.headers


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("options", [{}, {"engine_ordering": True, "use_body_user": True}], ids=["", "named"])
def test_a_body_is_taken_in_alike_in_the_gateway_and_beside_it(monkeypatch, name, options):
    """What the dispatcher is told and what the worker gets, byte for byte."""
    fields = {"model": "tiny", **BODIES[name]}
    body, path = json.dumps(fields).encode(), path_of(fields)

    async def main():
        here = await taken_in(monkeypatch, body, path, beside=False, **options)
        there = await taken_in(monkeypatch, body, path, beside=True, **options)
        assert there == here

    run(main)


@pytest.mark.parametrize("name", ["long text", "many messages", "tokens"])
def test_with_a_tokenizer_too(monkeypatch, request, name):
    fields = {"model": "tiny", **BODIES[name]}
    body, path = json.dumps(fields).encode(), path_of(fields)

    async def main():
        options = {"tokenizer": str(request.getfixturevalue("tokenizer_folder"))}
        here = await taken_in(monkeypatch, body, path, beside=False, **options)
        there = await taken_in(monkeypatch, body, path, beside=True, **options)
        assert there == here
        assert len(there[0].keys) > 1000

    run(main)


BAD = {
    "not JSON": (
        b'{"model":"tiny","messages":[' + b'{"role":"user","content":"x"},' * 5000 + b"}",
        400,
        "invalid_json",
    ),
    "not JSON at its end": (chat(content="x" * 200_000)[:-1] + b",", 400, "invalid_json"),
    "nested": (b'{"model":"tiny","x":' + b"[" * 200_000, 400, "invalid_json"),
    "no messages": (b'{"model":"tiny","x":"' + b"x" * 200_000 + b'"}', 400, "missing_required_parameter"),
    "unknown model": (chat(model="none", content="x" * 200_000), 404, "model_not_found"),
    "not UTF-8": (
        b'{"model":"tiny","messages":[{"role":"user","content":"' + b"\xff" * 200_000 + b'"}]}',
        400,
        "invalid_json",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_large_bodies_are_the_same_clear_errors(monkeypatch, name):
    body, status, code = BAD[name]

    async def main():
        answers = []
        for beside in (False, True):
            async with watched(monkeypatch, beside=beside) as (served, _, _):
                got = await served.post(body)
                assert got[0] == status
                assert json.loads(got[2])["error"]["code"] == code
                answers.append(got[2])
        assert answers[0] == answers[1]

    run(main)


def test_while_large_bodies_are_read_others_are_served(monkeypatch):
    """Small requests come and go meanwhile, and the gateway itself never decodes anything large."""
    tokens = b'{"model":"tiny","prompt":[%b1]}' % (b"101,7592,2088," * (12 * MIB // 14))
    text = chat(content=WORDS * (12 * MIB // len(WORDS)), stream=True)
    decoded = []

    def noting(kind, body):
        decoded.append(len(body))
        return decode(kind, body)

    monkeypatch.setattr(app, "decode", noting)
    monkeypatch.setattr(readers, "decode", noting)

    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            large = [
                asyncio.ensure_future(served.pool.fetch(b"POST", path, [], body, timeout=60))
                for path, body in ((PATHS["prompt"], tokens), (PATHS["messages"], text))
            ]
            small = 0
            while not all(request.done() for request in large):
                assert (await served.post(chat()))[0] == 200
                small += 1
            assert [request.result()[0] for request in large] == [200, 200]
            assert small > 10
            assert max(decoded) <= LARGE_BYTES
            sent = {len(ask.raw) for ask in worker.asked}
            assert len(tokens) in sent
            assert len(text) + len(b'"stream_options":{"include_usage":true},') in sent

    run(main)


def test_a_process_that_left_to_make_room_is_replaced_unnoticed(monkeypatch):
    monkeypatch.setattr(app, "LARGE_BYTES", 1000)
    leaving = "; import fairlead.gateway.body_reader as b; b.LEAVE_AT = 0; main()"
    monkeypatch.setattr(readers, "CODE", readers.CODE.replace("; main()", leaving))

    async def main():
        async with serving(MockWorker()) as served:
            for pause in (0, 0, 0.2, 0):
                assert (await served.post(chat(content="x" * 2000)))[0] == 200
                await asyncio.sleep(pause)
            assert served.gateway.readers.started == 4

    run(main)


def test_a_process_that_dies_over_a_body_costs_that_body_only(monkeypatch):
    monkeypatch.setattr(app, "LARGE_BYTES", 1000)

    async def main():
        async with serving(MockWorker()) as served:
            large = served.gateway.readers
            assert (await served.post(chat(content="x" * 2000)))[0] == 200
            process = large.lanes[0].process
            os.kill(process.pid, signal.SIGSTOP)  # so that it dies over the next body for certain
            waiting = asyncio.ensure_future(served.post(chat(content="y" * 2000)))
            await asyncio.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            assert (await waiting)[0] == 200  # by a fresh one
            assert process.started == 2
            monkeypatch.setattr(process, "_start", dying)
            await process.stop()
            status, _, got = await served.post(chat(content="z" * 2000))
            assert status == 413
            assert json.loads(got)["error"]["code"] == "body_too_large"
            monkeypatch.undo()
            monkeypatch.setattr(app, "LARGE_BYTES", 1000)
            assert (await served.post(chat(content="x" * 2000)))[0] == 200

    async def dying():
        return await asyncio.create_subprocess_exec(
            "true", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )

    run(main)


def test_a_body_that_takes_too_long_is_refused_and_its_process_replaced(monkeypatch):
    monkeypatch.setattr(app, "LARGE_BYTES", 1000)

    async def main():
        async with serving(MockWorker()) as served:
            process = served.gateway.readers.lanes[0].process
            assert (await served.post(chat(content="x" * 2000)))[0] == 200
            first = process.pid
            os.kill(first, signal.SIGSTOP)
            monkeypatch.setattr(readers, "TIMEOUT_S", 0.05)
            assert (await served.post(chat(content="x" * 2000)))[0] == 413
            monkeypatch.setattr(readers, "TIMEOUT_S", 60)
            assert (await served.post(chat(content="x" * 2000)))[0] == 200
            assert process.pid != first

    run(main)


def test_a_body_that_explodes_in_memory_is_refused(monkeypatch):
    """Objects take many times their JSON: the process has a bound of its own, and the gateway lives on."""
    bounded = "; import fairlead.gateway.body_reader as b; b.MOST_MEMORY = 300 << 20; main()"
    monkeypatch.setattr(readers, "CODE", readers.CODE.replace("; main()", bounded))

    async def main():
        async with serving(MockWorker()) as served:
            body = b'{"model":"tiny","messages":[{"role":"user","content":[%b{}]}]}' % (b"{}," * 3_000_000)
            status, _, got = await served.post(body)
            assert status == 413
            assert json.loads(got)["error"]["code"] == "body_too_large"
            assert (await served.post(chat(content="x" * 200_000)))[0] == 200

    run(main)


def test_clients_take_turns_for_the_process(monkeypatch):
    monkeypatch.setattr(app, "LARGE_BYTES", 1000)

    async def main():
        keys = {"api_key": ["greedy=k1", "modest=k2"]}
        async with serving(MockWorker(), **keys) as served:
            gateway: Gateway = served.gateway
            order = []
            process = gateway.readers.lanes[0].process
            read = process.read

            async def noting(ask, body):
                order.append(ask.size > 6000)
                return await read(ask, body)

            monkeypatch.setattr(process, "read", noting)
            many = [
                asyncio.ensure_future(
                    served.post(chat(content="x" * 6000), headers=[(b"authorization", b"Bearer k1")])
                )
                for _ in range(10)
            ]
            await until(lambda: order)
            one = await served.post(chat(content="x" * 3000), headers=[(b"authorization", b"Bearer k2")])
            assert one[0] == 200
            assert order.index(False) <= 2
            assert {status for status, _, _ in await asyncio.gather(*many)} == {200}

    run(main)


def test_a_client_that_leaves_while_its_body_waits_is_forgotten(monkeypatch):
    monkeypatch.setattr(app, "LARGE_BYTES", 1000)

    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            assert (await served.post(chat(content="x" * 2000)))[0] == 200
            process = served.gateway.readers.lanes[0].process
            os.kill(process.pid, signal.SIGSTOP)
            calls = [asyncio.ensure_future(served.post(chat(content="x" * 50_000))) for _ in range(3)]
            await until(lambda: served.gateway.server.bodies.held > 150_000)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            os.kill(process.pid, signal.SIGCONT)
            await until(lambda: served.gateway.server.bodies.held == 0)
            assert len(worker.asked) == 1

    run(main)


def test_the_processes_end_with_the_gateway(monkeypatch):
    monkeypatch.setattr(app, "LARGE_BYTES", 1000)
    pids = []

    async def main():
        async with serving(MockWorker()) as served:
            assert (await served.post(chat(content="x" * 2000)))[0] == 200
            pids.append(served.gateway.readers.lanes[0].process.pid)
            for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal or systemd sends to all of a group
                os.kill(pids[0], number)
            assert (await served.post(chat(content="x" * 2000)))[0] == 200
            assert served.gateway.readers.started == 1

    run(main)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
