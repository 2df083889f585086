"""The engine's HTTP surface, over real sockets."""

import asyncio
import base64
import struct

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairlead.engine.server import EngineConfig, EngineServer
from fairlead.engine.tokens import decode
from tests.engine.http_calls import call, open_call, serve, until

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"


def chat(text: str = "Tell me about queues.", **more: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 12, **more}


def test_chat_answers_in_openais_shape() -> None:
    async def body(server: EngineServer) -> None:
        got = await call(server.port, "POST", CHAT, chat())
        assert got.status == 200
        answer = got.json
        text = answer["choices"][0]["message"]["content"]
        assert len(text) == 48
        assert answer == {
            "id": answer["id"],
            "object": "chat.completion",
            "created": answer["created"],
            "model": "m",
            "system_fingerprint": "fairlead-engine-model",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": "length",
                }
            ],
            "usage": {
                "prompt_tokens": 9,  # 21 bytes: 6 tokens; role, end, role
                "completion_tokens": 12,
                "total_tokens": 21,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }
        assert answer["id"] == f"chatcmpl-{server.port:04x}00000001"

    serve(body)


def test_every_answer_says_that_it_is_a_model_of_an_engine() -> None:
    async def body(server: EngineServer) -> None:
        calls = [("POST", CHAT, chat()), ("POST", CHAT, chat(stream=True)), ("GET", "/version", None)]
        calls += [("GET", "/v1/models", None), ("POST", CHAT, {}), ("GET", "/nowhere", None)]
        for method, path, sent in calls:
            got = await call(server.port, method, path, sent)
            assert "model of an engine, not an LLM" in got.headers["server"], path

    serve(body)


def test_stream_is_the_same_answer_one_event_a_token() -> None:
    async def body(server: EngineServer) -> None:
        whole = (await call(server.port, "POST", CHAT, chat())).json
        options = {"stream": True, "stream_options": {"include_usage": True}}
        got = await call(server.port, "POST", CHAT, chat(**options))
        assert got.headers["content-type"].startswith("text/event-stream")
        first, *events, last, usage = got.events
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert len(events) == 11
        assert all(e["object"] == "chat.completion.chunk" and "usage" not in e for e in events)
        assert {e["id"] for e in got.events} == {first["id"]}
        assert all(e["choices"][0]["finish_reason"] is None for e in events)
        assert last["choices"][0]["finish_reason"] == "length"
        text = "".join(e["choices"][0]["delta"]["content"] for e in (*events, last))
        assert text == whole["choices"][0]["message"]["content"]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 12

    serve(body)


def test_stream_without_usage_has_none() -> None:
    async def body(server: EngineServer) -> None:
        got = await call(server.port, "POST", PLAIN, {"prompt": "abc", "max_tokens": 3, "stream": True})
        assert [e["choices"][0]["finish_reason"] for e in got.events] == [None, None, "length"]
        assert all("usage" not in e for e in got.events)
        assert {e["object"] for e in got.events} == {"text_completion"}
        assert all(len(e["choices"][0]["text"]) == 4 for e in got.events)

    serve(body)


def test_plain_completion_defaults_to_16_tokens_and_takes_token_ids() -> None:
    async def body(server: EngineServer) -> None:
        text = (await call(server.port, "POST", PLAIN, {"prompt": "abcdefgh", "ignore_eos": True})).json
        ids = (await call(server.port, "POST", "/tokenize", {"prompt": "abcdefgh"})).json["tokens"]
        same = (await call(server.port, "POST", PLAIN, {"prompt": ids, "ignore_eos": True})).json
        assert text["choices"] == same["choices"]
        assert text["object"] == "text_completion"
        assert text["usage"]["completion_tokens"] == 16
        assert text["usage"]["prompt_tokens"] == 2

    serve(body)


def test_answers_end_by_themselves_unless_told_to_go_on() -> None:
    async def body(server: EngineServer) -> None:
        lengths = set()
        for n in range(8):
            got = (await call(server.port, "POST", CHAT, chat(f"q{n}", max_tokens=5_000))).json
            assert got["choices"][0]["finish_reason"] == "stop"
            lengths.add(got["usage"]["completion_tokens"])
        assert len(lengths) > 4
        got = (await call(server.port, "POST", CHAT, chat("q0", max_tokens=900, ignore_eos=True))).json
        assert got["choices"][0]["finish_reason"] == "length"
        assert got["usage"]["completion_tokens"] == 900
        got = (await call(server.port, "POST", CHAT, chat("q0", max_tokens=1, max_completion_tokens=2))).json
        assert got["usage"]["completion_tokens"] == 2

    serve(body)


def test_stop_strings_cut_the_text_and_the_tokens() -> None:
    async def body(server: EngineServer) -> None:
        long = chat(max_tokens=300, ignore_eos=True)
        full = (await call(server.port, "POST", CHAT, long)).json["choices"][0]["message"]["content"]
        word = full[100:107]
        at = full.index(word)
        got = (await call(server.port, "POST", CHAT, long | {"stop": ["\u2603", word]})).json
        choice = got["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (full[:at], "stop")
        assert got["usage"]["completion_tokens"] == -(-(at + 7) // 4)
        kept = await call(
            server.port,
            "POST",
            CHAT,
            long | {"stop": word, "include_stop_str_in_output": True, "stream": True},
        )
        assert "".join(e["choices"][0]["delta"]["content"] for e in kept.events) == full[: at + 7]

    serve(body)


def test_text_follows_from_prompt_and_seed() -> None:
    async def body(server: EngineServer) -> None:
        async def ask(text: str, **more: object) -> str:
            got = await call(server.port, "POST", CHAT, chat(text, **more))
            return str(got.json["choices"][0]["message"]["content"])

        assert await ask("a") == await ask("a")
        assert await ask("a") != await ask("b")
        assert await ask("a") != await ask("a", seed=7)
        assert await ask("a", seed=7) == await ask("a", seed=7)

    serve(body)


def test_next_turn_finds_the_last_answer_cached() -> None:
    """The engine sends back its own words as part of the prompt: all full blocks of it are hits."""

    async def body(server: EngineServer) -> None:
        talk = [{"role": "user", "content": "x" * 300}]
        first = (await call(server.port, "POST", CHAT, chat(messages=talk, max_tokens=5_000))).json
        assert first["choices"][0]["finish_reason"] == "stop"
        talk += [first["choices"][0]["message"], {"role": "user", "content": "and then?"}]
        second = (await call(server.port, "POST", CHAT, chat(messages=talk))).json
        # The answer's last token, which ends its message, was never computed.
        computed = first["usage"]["total_tokens"] - 1
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == computed // 16 * 16
        salted = (await call(server.port, "POST", CHAT, chat(messages=talk, cache_salt="s"))).json
        assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

    serve(body)


def test_many_streams_at_once_all_end() -> None:
    async def body(server: EngineServer) -> None:
        sent = [chat(f"p{n} " * n, stream=True, max_tokens=20, ignore_eos=True) for n in range(60)]
        answers = await asyncio.gather(*(call(server.port, "POST", CHAT, each) for each in sent))
        assert all(len(got.events) == 21 for got in answers)
        assert server.engine.load.running == server.engine.load.waiting == 0

    serve(body, max_num_seqs=16, max_num_batched_tokens=64, kv_blocks=200, max_model_len=1_000)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(stream: bool) -> None:
    async def body(server: EngineServer) -> None:
        endless = chat(stream=stream, max_tokens=100_000, ignore_eos=True)
        _reader, writer = await open_call(server.port, "POST", CHAT, endless)
        await until(lambda: server.engine.load.running == 1)
        writer.close()
        await until(lambda: server.engine.load.running == 0)
        assert server.engine.pool.used == 0
        assert server.metrics.ended == {"abort": 1}

    serve(body, speed=1.0)


def test_a_slow_reader_does_not_stop_the_engine() -> None:
    async def body(server: EngineServer) -> None:
        sent = chat(stream=True, max_tokens=8_000, ignore_eos=True)
        reader, writer = await open_call(server.port, "POST", CHAT, sent)
        await until(lambda: server.engine.load.running == 1)
        other = await call(server.port, "POST", CHAT, chat())
        assert other.status == 200
        raw = await asyncio.wait_for(reader.read(), 60)
        assert raw.count(b"data: ") == 8_002
        writer.close()

    serve(body, speed=1e6)


BAD = [
    (CHAT, b"{", 400, "not valid JSON"),
    (CHAT, b"\xff\xfe", 400, "not valid JSON"),
    (CHAT, [], 400, "Expected `object`"),
    (CHAT, {"model": "m"}, 400, "messages"),
    (CHAT, chat(messages=[]), 400, "messages"),
    (CHAT, chat(messages=[{"content": "x"}]), 400, "role"),
    (CHAT, chat(messages=[{"role": "user", "content": 5}]), 400, "messages[0].content"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "image_url"),
    (CHAT, chat(model="other"), 404, "`other` does not exist"),
    (CHAT, chat(max_tokens=0), 400, "max_tokens"),
    (CHAT, chat(max_tokens="9"), 400, "max_tokens"),
    (CHAT, chat(min_tokens=13), 400, "min_tokens"),
    (CHAT, chat(n=2), 400, "n must be 1"),
    (CHAT, chat(temperature=-1), 400, "temperature"),
    (CHAT, chat(logprobs=True), 400, "logprobs"),
    (CHAT, chat(response_format={"type": "json_object"}), 400, "json_object"),
    (CHAT, chat(stream_options={"include_usage": True}), 400, "stream_options"),
    (CHAT, chat(max_tokens=999), 400, "maximum context length is 1000"),
    (CHAT, chat("x" * 4_000), 400, "maximum context length is 1000"),
    (PLAIN, {"model": "m"}, 400, "prompt"),
    (PLAIN, {"prompt": ""}, 400, "must not be empty"),
    (PLAIN, {"prompt": []}, 400, "must not be empty"),
    (PLAIN, {"prompt": [-1]}, 400, "token ids"),
    (PLAIN, {"prompt": [1, "a"]}, 400, "mixes"),
    (PLAIN, {"prompt": ["a", "b"]}, 400, "one prompt a request"),
    (PLAIN, {"prompt": "a", "best_of": 3}, 400, "best_of"),
    (PLAIN, {"prompt": "a", "echo": True}, 400, "echo"),
    ("/tokenize", {}, 400, "either prompt or messages"),
    ("/detokenize", {"tokens": [2**32]}, 400, "token ids"),
    ("/v1/embeddings", {"input": ["a", ""]}, 400, "must not be empty"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
]


def test_bad_requests_are_told_what_is_wrong() -> None:
    async def body(server: EngineServer) -> None:
        for path, sent, status, text in BAD:
            got = await call(server.port, "POST", path, sent)
            error = got.json["error"]
            assert (got.status, text in error["message"]) == (status, True), (path, sent, got)
            assert set(error) == {"message", "type", "param", "code"}
        assert server.engine.load.running == server.engine.load.waiting == 0
        too_long = (await call(server.port, "POST", CHAT, chat("x" * 4_000))).json["error"]
        assert (too_long["code"], too_long["param"]) == ("context_length_exceeded", "messages")

    serve(body, max_model_len=1_000)


def test_wrong_method_and_path() -> None:
    async def body(server: EngineServer) -> None:
        assert (await call(server.port, "GET", CHAT)).status == 405
        assert (await call(server.port, "POST", "/v2")).status == 404

    serve(body)


def test_models_health_version_load() -> None:
    async def body(server: EngineServer) -> None:
        (card,) = (await call(server.port, "GET", "/v1/models")).json["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("m", "model", 131_072)
        assert (await call(server.port, "GET", "/health")).status == 200
        assert "model of an LLM engine" in (await call(server.port, "GET", "/version")).json["note"]
        assert (await call(server.port, "GET", "/load")).json == {"server_load": 0}

    serve(body)


def test_metrics_have_vllms_names_and_true_values() -> None:
    async def body(server: EngineServer) -> None:
        for _ in range(2):
            await call(server.port, "POST", CHAT, chat("x" * 200))
        got = await call(server.port, "GET", "/metrics")
        values = {
            (sample.name, sample.labels.get("finished_reason", "")): (sample.value, sample.labels)
            for family in text_string_to_metric_families(got.body.decode())
            for sample in family.samples
        }
        expected = {
            "vllm:num_requests_running": 0,
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0,
            "vllm:prefix_cache_queries_total": 106,
            "vllm:prefix_cache_hits_total": 48,
            "vllm:prompt_tokens_total": 106,
            "vllm:generation_tokens_total": 24,
            "vllm:num_preemptions_total": 0,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:request_time_per_output_token_seconds_count": 2,
            "vllm:e2e_request_latency_seconds_count": 2,
        }
        for name, value in expected.items():
            assert values[name, ""][0] == value, name
            assert values[name, ""][1]["model_name"] == "m"
        assert values["vllm:request_success_total", "length"][0] == 2
        labels = values["vllm:cache_config_info", ""][1]
        assert (labels["block_size"], labels["num_gpu_blocks"]) == ("16", "500")

    serve(body, kv_blocks=500)


def test_tokenize_and_back() -> None:
    async def body(server: EngineServer) -> None:
        got = (
            await call(server.port, "POST", "/tokenize", {"prompt": "håll ö", "return_token_strs": True})
        ).json
        assert (got["count"], got["max_model_len"]) == (2, 131_072)
        assert got["token_strs"] == ["hål", "l ö"]
        back = await call(server.port, "POST", "/detokenize", {"tokens": got["tokens"]})
        assert back.json == {"prompt": "håll ö"}
        talk = {"messages": chat("hi")["messages"]}
        tokens = (await call(server.port, "POST", "/tokenize", talk)).json["tokens"]
        assert decode(tokens) == "<|user|>hi<|end|><|assistant|>"

    serve(body)


def test_embeddings_are_unit_vectors_of_the_input() -> None:
    async def body(server: EngineServer) -> None:
        sent = {"input": ["a", "b", "a"], "dimensions": 5}
        got = (await call(server.port, "POST", "/v1/embeddings", sent)).json
        vectors = [item["embedding"] for item in got["data"]]
        assert [item["index"] for item in got["data"]] == [0, 1, 2]
        assert vectors[0] == vectors[2] != vectors[1]
        assert all(sum(x * x for x in vector) == pytest.approx(1) for vector in vectors)
        assert got["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        packed = (
            await call(server.port, "POST", "/v1/embeddings", sent | {"encoding_format": "base64"})
        ).json
        raw = base64.b64decode(packed["data"][0]["embedding"])
        assert struct.unpack("<5f", raw) == pytest.approx(vectors[0])

    serve(body)


@pytest.mark.pure_only("replaces a method")
def test_the_client_comes_from_body_or_header() -> None:
    async def body(server: EngineServer) -> None:
        clients = []
        submit = server.engine.submit

        def spy(request, *rest):
            clients.append(request.client)
            submit(request, *rest)

        server.engine.submit = spy  # type: ignore[method-assign]
        header = "x-fairlead-client: ann\r\n"
        await call(server.port, "POST", CHAT, chat(), header)
        await call(server.port, "POST", CHAT, chat(vllm_xargs={"client_id": "bob"}), header)
        await call(server.port, "POST", CHAT, chat())
        assert clients == ["ann", "bob", "default"]

    serve(body, order="dlpm:quantum=4k")


def test_stopping_lets_answers_end_when_asked_to() -> None:
    async def body() -> None:
        server = EngineServer(EngineConfig(speed=1000, model_name="m"))
        await server.start()
        asked = asyncio.create_task(call(server.port, "POST", CHAT, chat(max_tokens=3_000, ignore_eos=True)))
        await until(lambda: server.engine.load.running == 1)
        await server.stop(grace_s=60)
        assert (await asked).json["usage"]["completion_tokens"] == 3_000

    asyncio.run(body())


def test_contradictions_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="unknown profile 'x'"):
        EngineServer(EngineConfig(profile="x"))
    with pytest.raises(ValueError, match="unknown ordering policy"):
        EngineServer(EngineConfig(order="x"))
    with pytest.raises(ValueError, match="speed"):
        EngineServer(EngineConfig(speed=0))
    with pytest.raises(ValueError, match="kv_replay needs kv_events"):
        EngineServer(EngineConfig(kv_replay="tcp://127.0.0.1:*"))
