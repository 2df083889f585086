"""A client's stream is what the engine alone would have sent it, whatever its ``stream_options`` are."""

import json

import pytest

from fairlead.gateway.wire import CHAT, decode, with_usage, without_continuous_usage
from tests.gateway.mocks import (
    DONE,
    EVENT_STREAM,
    USAGE,
    Ask,
    Behaviour,
    MockWorker,
    chat,
    chunk,
    event,
    plain,
    run,
    serving,
)


def engine(kind: str) -> Behaviour:
    """Stream as vLLM or SGLang does: which chunks have usage follows from what was asked."""

    async def behave(ask: Ask, writer) -> None:
        options = ask.body.get("stream_options") or {}
        asked = bool(options.get("include_usage"))
        running = bool(options.get("continuous_usage_stats")) and (asked or kind == "sglang")
        if not ask.body.get("stream"):
            writer.write(
                plain(json.dumps({"choices": [{"message": {"content": "a"}}], "usage": USAGE}).encode())
            )
            return
        writer.write(EVENT_STREAM)
        for number, text in enumerate("abc"):
            said = {"choices": [{"index": 0, "delta": {"content": text}}]}
            if running:
                said["usage"] = {**USAGE, "completion_tokens": number + 1}
            elif kind == "sglang" or (kind == "openai" and asked):
                said["usage"] = None
            writer.write(chunk(event(said)))
        if asked:
            writer.write(chunk(event({"choices": [], "usage": USAGE})))
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    return behave


OPTIONS = {
    "none": {},
    "null": {"stream_options": None},
    "empty": {"stream_options": {}},
    "usage": {"stream_options": {"include_usage": True}},
    "no usage": {"stream_options": {"include_usage": False}},
    "usage is null": {"stream_options": {"include_usage": None}},
    "continuous": {"stream_options": {"continuous_usage_stats": True}},
    "continuous without usage": {"stream_options": {"continuous_usage_stats": True, "include_usage": False}},
    "both": {"stream_options": {"continuous_usage_stats": True, "include_usage": True}},
    "unknown fields": {"stream_options": {"chunk_size": [1, {"a": 1.50}], "include_obfuscation": False}},
}


class Kind(MockWorker):
    """A mock worker that says it is SGLang, or nothing known."""

    def __init__(self, kind: str) -> None:
        super().__init__(engine(kind))
        self.kind = kind

    def _get(self, ask: Ask) -> bytes:
        path = ask.line.split()[1]
        if self.kind == "vllm" or path not in {"/metrics", "/get_server_info"}:
            return super()._get(ask)
        if self.kind == "sglang" and path == "/get_server_info":
            return plain(b'{"max_running_requests":64,"max_total_num_tokens":16000}')
        return plain(b"{}", 404)


def events(stream: bytes) -> list:
    return [json.loads(e.removeprefix(b"data: ")) for e in stream.split(b"\n\n") if e and b"[DONE]" not in e]


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["vllm", "sglang", "openai"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_client_gets_what_the_engine_alone_would_send(name, kind, streamed):
    async def main():
        worker = Kind(kind)
        async with serving(worker) as served:
            body = chat(stream=streamed, **OPTIONS[name])
            _, _, through = await served.post(body)
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            assert account.delivered == 10 - 4 + 2 * 3  # and the gateway knows the usage all the same
            (known,) = served.gateway.workers
            _, _, alone = await known.pool.fetch(
                b"POST", b"/v1/chat/completions", [(b"content-type", b"application/json")], body
            )
            if kind == "openai":  # what was added inside a chunk is taken out of it: the JSON is written anew
                through, alone = events(through), events(alone)
            assert through == alone
            if not streamed:
                assert worker.asked[0].raw == body

    run(main)


def test_the_other_options_reach_the_engine_as_they_were():
    options = {"continuous_usage_stats": True, "chunk_size": 5, "x": [1.0, None]}
    body = chat(stream=True, stream_options=options, seed=12345678901234567890)
    got = without_continuous_usage(with_usage(body, decode(CHAT, body)))
    assert json.loads(got) == {
        **json.loads(body),
        "stream_options": {**options, "continuous_usage_stats": False, "include_usage": True},
    }
