"""With ``engine_ordering`` requests are sent at once, and engines are told whose they are."""

import asyncio
import json

import pytest

from fairlead.gateway.wire import with_xargs
from tests.gateway.mocks import MockWorker, answer, chat, plain, run, serving

KEYS = {"api_key": ["alice=key-a", "mallory=key-m"]}
ALICE, MALLORY = ([(b"authorization", b"Bearer key-%b" % who)] for who in (b"a", b"m"))


class SglangWorker(MockWorker):
    """Says of itself what SGLang says."""

    def _get(self, ask):
        path = ask.line.split()[1]
        if path == "/get_server_info":
            return plain(b'{"max_total_num_tokens": 1000, "max_running_requests": 4}')
        return plain(b"{}", 404) if path == "/metrics" else super()._get(ask)


def test_vllm_is_told_the_client_in_the_body_which_is_else_untouched():
    body = b' {"model":"tiny", "messages":[{"role":"user","content":"\\u00e9"}]}'

    async def main():
        async with serving(worker := MockWorker(), engine_ordering=True, **KEYS) as served:
            await served.post(body, headers=ALICE)
            await served.post(b'{"model":"tiny","prompt":"x"}', b"/v1/completions", headers=MALLORY)
            first, second = worker.asked
            assert first.raw == body.replace(b"{", b'{"vllm_xargs":{"client_id":"alice"},', 1)
            assert second.body == {"model": "tiny", "prompt": "x", "vllm_xargs": {"client_id": "mallory"}}

    run(main)


def test_without_the_option_bodies_are_left_alone():
    async def main():
        async with serving(worker := MockWorker(), **KEYS) as served:
            await served.post(chat(), headers=ALICE)
            assert worker.asked[0].raw == chat()

    run(main)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ('"vllm_xargs"', '{"client_id":"alice","top":1}'),
        ('"vllm\\u005fxargs"', '{"client_id":"alice","top":1}'),
        ('"vllm_xargs":{"client_id":"x"},"vllm_xargs"', '{"client\\u005fid":"alice","top":1}'),
    ],
    ids=["plain", "escaped", "twice"],
)
def test_what_a_client_says_of_itself_is_overwritten_and_the_rest_kept(name, value):
    body = f'{{"model":"tiny","messages":[{{"role":"user","content":"x"}}],{name}:{value}}}'

    async def main():
        async with serving(worker := MockWorker(), engine_ordering=True, **KEYS) as served:
            await served.post(body.encode(), headers=MALLORY)
            raw = worker.asked[0].raw
            assert raw.count(b"xargs") == 1
            assert json.loads(raw)["vllm_xargs"] == {"client_id": "mallory", "top": 1}

    run(main)


def test_none_counts_as_no_arguments_and_nonsense_is_for_the_engine_to_refuse():
    told = b'{"client_id":"a"}'
    assert json.loads(with_xargs(b'{"vllm_xargs":null}', told, has_some=True)) == {
        "vllm_xargs": {"client_id": "a"}
    }
    assert with_xargs(b'{"vllm_xargs":"me"}', told, has_some=True) == b'{"vllm_xargs":"me"}'


def test_sglang_is_told_the_client_in_a_header():
    async def main():
        async with serving(worker := SglangWorker(), engine_ordering=True, **KEYS) as served:
            await served.post(chat(), headers=ALICE)
            assert worker.asked[0].raw == chat()
            assert worker.asked[0].headers["x-smg-routing-key"] == "alice"

    run(main)


def test_nothing_waits_here_however_much_a_worker_has():
    async def main():
        worker = MockWorker(answer(delay=0.2))
        limits = {"worker_max_num_seqs": 2, "worker_kv_tokens": 100}
        async with serving(worker, engine_ordering=True, **limits) as served:
            worker.waiting = 8
            asks = [asyncio.ensure_future(served.post(chat(content="x" * 500))) for _ in range(10)]
            await asyncio.sleep(0.15)
            assert len(worker.asked) == 10
            assert [status for status, _, _ in await asyncio.gather(*asks)] == [200] * 10

    run(main)


def test_a_retry_says_whose_it_is_too():
    async def main():
        first, second = MockWorker(answer(status=503)), MockWorker()
        async with serving(first, second, engine_ordering=True, **KEYS) as served:
            for _ in range(2):
                assert (await served.post(chat(stream=True), headers=ALICE))[0] == 200
            assert first.asked
            for ask in first.asked + second.asked:
                assert ask.body["vllm_xargs"] == {"client_id": "alice"}
                assert ask.body["stream_options"] == {"include_usage": True}

    run(main)


def test_an_engine_that_cannot_be_told_is_named(caplog):
    class Unknown(MockWorker):
        def _get(self, ask):
            return plain(b"{}", 404) if ask.line.split()[1] == "/metrics" else super()._get(ask)

    async def main():
        async with serving(worker := Unknown(), engine_ordering=True) as served:
            assert (await served.post(chat()))[0] == 200
            assert worker.asked[0].raw == chat()
            assert f"{worker.url} (unknown) cannot be told the client of a request" in caplog.text

    run(main)
