"""Requests through the gateway to mock workers, over real sockets: the good days and the bad ones."""

import asyncio
import json

import pytest

from fairlead.http.client import Pool
from tests.gateway.mocks import (
    DONE,
    EVENT_STREAM,
    ROLE,
    USAGE,
    USAGE_EVENT,
    Ask,
    MockWorker,
    answer,
    chat,
    chunk,
    closes_kept_connections,
    plain,
    raw,
    run,
    serving,
    token,
)


class Notes:
    """A streaming client: what came so far, and the means to leave."""

    def __init__(self, served, body: bytes) -> None:
        self.status = 0
        self.got = b""
        self.outcome = ""
        self.first = asyncio.Event()
        self.over = asyncio.Event()
        request = served.pool.request_bytes(b"POST", b"/v1/chat/completions", [], body)
        self.call = served.pool.send(request, self)

    def head(self, status, headers) -> None:
        self.status = status

    def data(self, body) -> None:
        self.got += body
        self.first.set()

    def end(self) -> None:
        self.outcome = "end"
        self.over.set()

    def error(self, error) -> None:
        self.outcome = error.kind
        self.over.set()


def error_of(body: bytes) -> dict:
    return json.loads(body)["error"]


def test_bodies_pass_unchanged_both_ways():
    """Odd spacing, unknown fields and escapes reach the worker and the client byte for byte."""
    message = b'{"role":"user","content":"\\u00e9 \\ud83d\\ude00"}'
    body = b' {"x_unknown" : 1e2,\n"messages":[%b],"model":"tiny"} ' % message
    reply = plain(b'{"choices" : [ ],   "usage":null, "odd":1.0}\n')

    async def main():
        worker = MockWorker(raw(reply))
        async with serving(worker) as served:
            status, headers, got = await served.post(body)
            assert (status, got) == (200, reply.partition(b"\r\n\r\n")[2])
            assert headers[b"content-type"] == b"application/json"
            assert worker.asked[0].raw == body
            assert worker.asked[0].line == "POST /v1/chat/completions HTTP/1.1\r\n"

    run(main)


def test_usage_settles_the_ledger():
    async def main():
        async with serving(MockWorker()) as served:
            assert (await served.post(chat()))[0] == 200
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            cost = 10 - 4 + 2 * 3
            assert (account.charged, account.delivered, account.outstanding) == (cost, cost, 0)

    run(main)


STREAM = ROLE + token("one") + token("two") + USAGE_EVENT + DONE


def cuts(stream: bytes) -> list[list[bytes]]:
    """Return ways that a stream may be cut into reads: whole, by event, in odd places."""
    events = [e + b"\n\n" for e in stream.split(b"\n\n")[:-1]]
    odd = [stream[i : i + 37] for i in range(0, len(stream), 37)]
    boundary = [e for event in events for e in (event[:-1], event[-1:])]
    return [[stream], events, odd, boundary]


@pytest.mark.parametrize("cut", range(4))
@pytest.mark.parametrize("ask", [False, True])
def test_the_usage_event_is_hidden_exactly_from_whom_did_not_ask(cut, ask):
    async def main():
        parts = cuts(STREAM)[cut]
        worker = MockWorker(raw(EVENT_STREAM, *[chunk(p) for p in parts], b"0\r\n\r\n"))
        async with serving(worker) as served:
            options = {"stream_options": {"include_usage": True}} if ask else {}
            status, headers, got = await served.post(chat(stream=True, **options))
            assert status == 200
            assert headers[b"content-type"] == b"text/event-stream"
            assert got == (STREAM if ask else STREAM.replace(USAGE_EVENT, b""))
            assert worker.asked[0].body["stream_options"] == {"include_usage": True}
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            assert account.delivered == 10 - 4 + 2 * 3

    run(main)


def test_streams_of_workers_that_separate_by_crlf_pass_too():
    stream = STREAM.replace(b"\n\n", b"\r\n\r\n")

    async def main():
        worker = MockWorker(raw(EVENT_STREAM, chunk(stream[:100]), chunk(stream[100:]), b"0\r\n\r\n"))
        async with serving(worker) as served:
            _, _, got = await served.post(chat(stream=True))
            assert got == stream.replace(USAGE_EVENT.replace(b"\n\n", b"\r\n\r\n"), b"")

    run(main)


def test_usage_is_not_asked_for_where_that_is_turned_off():
    async def main():
        worker = MockWorker(answer("a b c"))
        async with serving(worker, ask_usage=False) as served:
            body = chat(stream=True)
            await served.post(body)
            assert worker.asked[0].raw == body
            await served.settled()
            # Without usage the events count: three tokens and the closing event.
            account = served.gateway.dispatcher.ledger.accounts["default"]
            assert account.delivered >= 2 * 3

    run(main)


def test_completions_and_embeddings_go_the_same_way():
    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            prompt = b'{"model":"tiny","prompt":"hello"}'
            assert (await served.post(prompt, b"/v1/completions"))[0] == 200
            assert (await served.post(b'{"model":"tiny","prompt":[1,2,3]}', b"/v1/completions"))[0] == 200
            texts = b'{"model":"tiny","input":["a","b"]}'
            assert (await served.post(texts, b"/v1/embeddings"))[0] == 200
            assert [a.line.split()[1] for a in worker.asked] == ["/v1/completions"] * 2 + ["/v1/embeddings"]

    run(main)


# --- failures ----------------------------------------------------------------------------------


def test_a_worker_that_dies_before_the_first_byte_costs_nothing():
    """The request is served by the other worker, and the first one's charge is taken back."""

    async def main():
        bad, good = MockWorker(raw(close=True)), MockWorker(answer("fine"))
        async with serving(bad, good, cb_failure_threshold=100) as served:
            for _ in range(4):
                status, _, got = await served.post(chat())
                assert status == 200
                assert b"fine" in got
            assert len(bad.asked) >= 1
            assert len(good.asked) == 4
            await served.settled()
            account = served.gateway.dispatcher.ledger.accounts["default"]
            assert account.delivered == 4 * (10 - 4 + 2 * 3)
            assert served.gateway.dispatcher.retries >= 1

    run(main)


def test_a_worker_that_refuses_connections_is_replaced():
    async def main():
        dead, good = MockWorker(), MockWorker()
        async with serving(dead, good, health_interval_secs=60) as served:
            await dead.stop()
            for _ in range(4):
                assert (await served.post(chat()))[0] == 200
            assert len(good.asked) == 4

    run(main)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_errors_that_another_worker_may_avert_are_retried(status):
    async def main():
        bad, good = MockWorker(answer(status=status)), MockWorker()
        async with serving(bad, good) as served:
            for _ in range(2):
                assert (await served.post(chat()))[0] == 200
            assert len(good.asked) == 2

    run(main)


def test_when_all_workers_refuse_their_own_error_is_passed_on():
    async def main():
        workers = [MockWorker(answer(status=502)) for _ in range(3)]
        async with serving(*workers, cb_failure_threshold=100) as served:
            status, headers, got = await served.post(chat())
            assert status == 502
            assert got == b'{"error": {"message": "mock 502"}}'
            assert headers[b"content-type"] == b"application/json"
            assert sum(len(w.asked) for w in workers) == 2, "what fails twice is its own fault"
            assert served.gateway.dispatcher.ledger.accounts["default"].charged == 0

    run(main)


def test_a_clients_own_mistake_is_not_retried_and_not_charged():
    async def main():
        bad, good = MockWorker(answer(status=400)), MockWorker(answer(status=400))
        async with serving(bad, good) as served:
            status, _, got = await served.post(chat())
            assert (status, got) == (400, b'{"error": {"message": "mock 400"}}')
            assert len(bad.asked) + len(good.asked) == 1
            assert served.gateway.dispatcher.ledger.accounts["default"].charged == 0

    run(main)


@pytest.mark.parametrize(
    "sent",
    [
        [EVENT_STREAM, chunk(ROLE), chunk(token("one"))],
        [EVENT_STREAM, chunk(ROLE + token("one")[:20])],
        [EVENT_STREAM],
    ],
    ids=["after a token", "inside an event", "after the head"],
)
def test_death_in_the_middle_of_a_stream_ends_it_with_an_error_event(sent):
    """No second worker is asked: a byte of the answer was seen."""

    async def main():
        workers = [MockWorker(raw(*sent, close=True)) for _ in range(2)]
        async with serving(*workers) as served:
            status, _, got = await served.post(chat(stream=True))
            assert status == 200
            events = got.split(b"\n\n")
            assert events[-1] == b""
            assert events[-2] == b"data: [DONE]"
            problem = json.loads(events[-3].removeprefix(b"data: "))["error"]
            assert problem["code"] == "worker_failed"
            assert all(e.startswith(b"data: ") for e in events[:-1])
            assert sum(len(w.asked) for w in workers) == 1

    run(main)


def test_death_in_the_middle_of_a_whole_answer_cuts_the_connection():
    async def main():
        worker = MockWorker(raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", close=True))
        async with serving(worker) as served:
            notes = Notes(served, chat())
            await notes.over.wait()
            assert notes.outcome == "closed"
            assert notes.got == b"half"
            assert len(worker.asked) == 1

    run(main)


def test_a_worker_that_sends_half_a_status_line_is_not_asked_again():
    async def main():
        workers = [MockWorker(raw(b"HTTP/1.1 2", close=True)) for _ in range(2)]
        async with serving(*workers) as served:
            status, _, got = await served.post(chat())
            assert status == 502
            assert error_of(got)["code"] == "worker_failed"
            assert sum(len(w.asked) for w in workers) == 1

    run(main)


def test_an_answer_that_is_not_http_is_a_502():
    async def main():
        worker = MockWorker(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"))
        async with serving(worker) as served:
            assert (await served.post(chat()))[0] == 502

    run(main)


def test_a_worker_too_slow_for_its_first_byte_is_left():
    async def main():
        slow, good = MockWorker(answer(delay=30)), MockWorker()
        async with serving(slow, good, request_timeout_secs=0.1) as served:
            for _ in range(2):
                assert (await served.post(chat()))[0] == 200
            await asyncio.wait_for(slow.gone.wait(), 2)

    run(main)


def test_stale_connections_are_retried_without_a_trace():
    """The worker closes its kept connections as the next request arrives."""

    async def main():
        worker = MockWorker(closes_kept_connections())
        async with serving(worker, health_interval_secs=60, load_interval_secs=60) as served:
            for _ in range(3):
                assert (await served.post(chat()))[0] == 200
            assert served.gateway.dispatcher.retries == 0
            assert next(iter(served.gateway.workers)).pool.stale_retries >= 1

    run(main)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_leaves_frees_the_worker_at_once(streaming):
    async def endless(ask: Ask, writer: asyncio.StreamWriter) -> None:
        if ask.body.get("stream"):
            writer.write(EVENT_STREAM + chunk(ROLE))
            while True:
                writer.write(chunk(token("x")))
                await asyncio.sleep(0.005)
        await asyncio.sleep(60)

    async def main():
        worker = MockWorker(endless)
        async with serving(worker) as served:
            notes = Notes(served, chat(stream=streaming))
            if streaming:
                await notes.first.wait()
            else:
                await asyncio.sleep(0.1)
            notes.call.cancel()
            await asyncio.wait_for(worker.gone.wait(), 2)
            await served.settled()
            assert served.gateway.dispatcher.ended["cancelled"] == 1

    run(main)


def test_a_client_that_leaves_once_it_has_all_is_settled_and_not_cancelled():
    """OpenAI's library closes on [DONE] and does not wait for the end of the stream."""

    async def all_but_the_end(ask: Ask, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunk(ROLE + token("hi") + USAGE_EVENT + DONE))
        await asyncio.sleep(60)

    async def main():
        worker = MockWorker(all_but_the_end)
        async with serving(worker) as served:
            notes = Notes(served, chat(stream=True))
            await notes.first.wait()
            await asyncio.sleep(0.05)
            notes.call.cancel()
            await asyncio.wait_for(worker.gone.wait(), 2)
            dispatcher = served.gateway.dispatcher
            assert dispatcher.running == 0
            assert {state.value: n for state, n in dispatcher.ended.items() if n} == {"done": 1}
            assert dispatcher.ledger.account("default").delivered == (10 - 4) + 2 * 3
            dispatcher.check()

    run(main)


def test_a_client_that_leaves_the_queue_never_reaches_a_worker():
    async def main():
        worker = MockWorker(answer(delay=0.2))
        async with serving(worker, worker_max_num_seqs=1) as served:
            first = asyncio.ensure_future(served.post(chat()))
            await asyncio.sleep(0.05)
            waiting = Notes(served, chat(content="second"))
            await asyncio.sleep(0.05)
            assert served.gateway.dispatcher.queued == 1
            waiting.call.cancel()
            await first
            await served.settled()
            assert len(worker.asked) == 1

    run(main)


# --- limits ------------------------------------------------------------------------------------


def test_a_full_queue_is_429_and_a_long_wait_503_both_with_retry_after():
    async def main():
        worker = MockWorker(answer(delay=0.6))
        async with serving(worker, worker_max_num_seqs=1, queue_size=1, queue_timeout_secs=0.1) as served:
            first = asyncio.ensure_future(served.post(chat()))
            await asyncio.sleep(0.05)
            second = asyncio.ensure_future(served.post(chat()))
            await asyncio.sleep(0.02)
            status, headers, got = await served.post(chat())
            assert status == 429
            assert error_of(got)["code"] == "queue_full"
            assert error_of(got)["type"] == "rate_limit_error"
            assert int(headers[b"retry-after"]) >= 1
            status, headers, got = await second
            assert status == 503
            assert error_of(got)["code"] == "queue_timeout"
            assert int(headers[b"retry-after"]) >= 1
            assert (await first)[0] == 200

    run(main)


def test_without_a_worker_requests_are_refused_and_the_gateway_is_not_ready():
    async def main():
        worker = MockWorker()
        worker.healthy = False
        async with serving(worker) as served:
            status, headers, got = await served.post(chat())
            assert status == 503
            assert error_of(got)["code"] == "no_worker"
            assert b"retry-after" in headers
            assert (await served.get(b"/ready"))[0] == 503
            assert (await served.get(b"/health"))[0] == 200
            worker.healthy = True
            for _ in range(100):
                if (await served.get(b"/ready"))[0] == 200:
                    break
                await asyncio.sleep(0.02)
            assert (await served.post(chat()))[0] == 200

    run(main)


# --- bad input ---------------------------------------------------------------------------------

BAD_BODIES = {
    "not JSON": (b"{", "invalid_json", None),
    "empty": (b"", "invalid_json", None),
    "cut off": (b'{"model":"tiny","messages":[', "invalid_json", None),
    "not UTF-8": (b'{"model":"\xff","messages":[]}', "invalid_json", None),
    "an array": (b"[]", "invalid_type", None),
    "a string": (b'"x"', "invalid_type", None),
    "no model": (b'{"messages":[{"role":"user","content":"x"}]}', "missing_required_parameter", "model"),
    "empty model": (b'{"model":"","messages":[{"role":"user","content":"x"}]}', None, "model"),
    "model of a wrong type": (b'{"model":1,"messages":[]}', "invalid_type", "model"),
    "no messages": (b'{"model":"tiny"}', "missing_required_parameter", "messages"),
    "empty messages": (b'{"model":"tiny","messages":[]}', None, "messages"),
    "messages not a list": (b'{"model":"tiny","messages":"x"}', "invalid_type", "messages"),
    "a message without role": (
        b'{"model":"tiny","messages":[{"content":"x"}]}',
        "missing_required_parameter",
        "messages[0].role",
    ),
    "content of a wrong type": (
        b'{"model":"tiny","messages":[{"role":"user","content":1}]}',
        "invalid_type",
        "messages[0].content",
    ),
    "stream of a wrong type": (chat(stream="yes"), "invalid_type", "stream"),
    "max_tokens of a wrong type": (chat(max_tokens="5"), "invalid_type", "max_tokens"),
    "nested too deeply": (
        b'{"model":"tiny","messages":[{"role":"user","content":' + b"[" * 100_000,
        "invalid_json",
        None,
    ),
    "unknown model": (chat(model="huge"), "model_not_found", "model"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies_are_clear_errors_that_name_the_field(name):
    body, code, param = BAD_BODIES[name]

    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            status, _, got = await served.post(body)
            problem = error_of(got)
            assert status == (404 if code == "model_not_found" else 400)
            assert (problem["code"], problem["param"]) == (code, param)
            assert problem["message"]
            assert "Traceback" not in got.decode()
            assert worker.asked == []

    run(main)


def test_a_body_over_the_limit_is_413():
    async def main():
        async with serving(MockWorker(), max_body_bytes=1000) as served:
            assert (await served.post(chat(content="x" * 2000)))[0] == 413

    run(main)


def test_smuggled_requests_reach_no_worker():
    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            inner = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\ncontent-length: %d\r\n\r\n%b" % (
                len(chat()),
                chat(),
            )
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            attacks = [
                head + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner,
                head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
                head + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + inner,
                head + b"Content-Length : 0\r\n\r\n" + inner,
                head + b"X: y\nContent-Length: 0\r\n\r\n" + inner,
            ]
            for attack in attacks:
                reader, writer = await asyncio.open_connection("127.0.0.1", served.gateway.port)
                writer.write(attack)
                got = await asyncio.wait_for(reader.read(), 5)
                assert got.startswith(b"HTTP/1.1 400"), attack
                assert got.count(b"HTTP/1.1") == 1
                writer.close()
            assert worker.asked == []

    run(main)


# --- headers towards the worker ----------------------------------------------------------------


def test_what_belongs_to_the_clients_connection_stays_there():
    async def main():
        worker = MockWorker()
        async with serving(worker) as served:
            await served.post(
                chat(),
                headers=[
                    (b"x-request-id", b"abc"),
                    (b"connection", b"keep-alive, x-private"),
                    (b"x-private", b"1"),
                    (b"te", b"trailers"),
                    (b"accept-encoding", b"gzip"),
                    (b"proxy-authorization", b"secret"),
                    (b"authorization", b"Bearer theirs"),
                ],
            )
            got = worker.asked[0].headers
            assert got["x-request-id"] == "abc"
            assert got["authorization"] == "Bearer theirs"
            assert got["host"] == f"127.0.0.1:{worker.port}"
            for name in ("connection", "x-private", "te", "accept-encoding", "proxy-authorization"):
                assert name not in got

    run(main)


def test_the_engines_own_key_replaces_the_clients():
    async def main():
        worker = MockWorker()
        async with serving(worker, api_key=["alice=k1"], worker_api_key="engine") as served:
            assert (await served.post(chat(), headers=[(b"authorization", b"Bearer k1")]))[0] == 200
            assert worker.asked[0].headers["authorization"] == "Bearer engine"
        async with serving(worker, api_key=["alice=k1"]) as served:
            assert (await served.post(chat(), headers=[(b"authorization", b"Bearer k1")]))[0] == 200
            assert "authorization" not in worker.asked[1].headers

    run(main)


def test_a_client_cannot_choose_anothers_name():
    names = ["x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id", "x-fairlead-client"]

    async def main():
        worker = MockWorker()
        async with serving(worker, file={"clients": {"alice": {"api_keys": ["k1"]}}}) as served:
            claims = [(name.encode(), b"victim") for name in [*names, "x-smg-routing-key"]]
            status, _, _ = await served.post(chat(), headers=[(b"authorization", b"Bearer k1"), *claims])
            assert status == 200
            told = worker.asked[0].headers
            assert told["x-fairlead-client"] == told[names[0]] == told["x-smg-routing-key"] == "alice"
            assert "victim" not in repr(told)
            await served.settled()
            assert set(served.gateway.dispatcher.ledger.accounts) == {"alice"}
            for key in ([], [(b"authorization", b"Bearer nope")], [(b"authorization", b"k1")]):
                status, headers, got = await served.post(chat(), headers=[*key, *claims])
                assert status == 401
                assert error_of(got)["code"] == "invalid_api_key"
                assert headers[b"www-authenticate"] == b"Bearer"
            assert len(worker.asked) == 1
            assert (await served.get(b"/v1/models"))[0] == 401

    run(main)


def test_a_trusted_proxy_names_the_client():
    async def main():
        worker = MockWorker()
        async with serving(worker, trusted_proxies=["127.0.0.0/8"]) as served:
            await served.post(chat(), headers=[(b"x-llm-d-inference-fairness-id", b"tenant-7")])
            assert worker.asked[0].headers["x-fairlead-client"] == "tenant-7"

    run(main)


# --- life --------------------------------------------------------------------------------------


def test_models_are_the_union_of_the_workers():
    async def main():
        async with serving(MockWorker(models=("tiny", "a")), MockWorker(models=("tiny", "b"))) as served:
            status, got = await served.get(b"/v1/models")
            assert status == 200
            assert sorted(m["id"] for m in json.loads(got)["data"]) == ["a", "b", "tiny"]

    run(main)


def test_draining_answers_what_was_accepted():
    async def main():
        worker = MockWorker(answer("a b", delay=0.15))
        async with serving(worker, worker_max_num_seqs=1) as served:
            pools = [Pool(served.pool.url) for _ in range(2)]
            asks = [
                asyncio.ensure_future(p.fetch(b"POST", b"/v1/chat/completions", [], chat(stream=s)))
                for p, s in zip(pools, (False, True), strict=True)
            ]
            await asyncio.sleep(0.05)
            assert await served.gateway.drain()
            for ask in asks:
                status, _, got = await ask
                assert status == 200
                assert b"hi" in got or b"[DONE]" in got or b"a b" in got
            for pool in pools:
                await pool.close()

    run(main)


def test_draining_gives_up_in_time():
    async def main():
        async with serving(MockWorker(answer(delay=30)), drain_timeout_secs=0.1) as served:
            ask = asyncio.ensure_future(served.post(chat()))
            await asyncio.sleep(0.05)
            assert not await served.gateway.drain()
            ask.cancel()

    run(main)


def test_metrics_tell_of_clients_workers_and_decisions():
    async def main():
        worker = MockWorker(answer("a b c"))
        keys = [f"c{n}=k{n}" for n in range(4)]
        async with serving(worker, api_key=keys, metrics_clients=2) as served:
            for n in range(4):
                key = [(b"authorization", b"Bearer k%d" % n)]
                await served.post(chat(stream=True), headers=key)
                await served.post(chat(), headers=key)
            await served.post(b"{", headers=[(b"authorization", b"Bearer k0")])
            await served.settled()
            status, got = await served.get(b"/metrics")
            assert status == 200
            text = got.decode()
            for line in (
                'fairlead_requests_total{client="c0",result="ok"} 2.0',
                'fairlead_requests_total{others="true",result="ok"} 4.0',
                'fairlead_ttft_seconds_count{client="c1"} 1.0',
                'fairlead_tpot_seconds_count{client="c1"} 1.0',
                'fairlead_queue_wait_seconds_count{client="c0"} 2.0',
                'fairlead_service_total{client="c0"} 24.0',
                'fairlead_service_total{others="true"} 48.0',
                'fairlead_refused_total{reason="invalid_json"} 1.0',
                f'fairlead_worker_up{{worker="{worker.url}"}} 1.0',
                f'fairlead_worker_kv_tokens{{worker="{worker.url}"}} 16000.0',
                f'fairlead_worker_hit_rate_real{{worker="{worker.url}"}} 0.',
                'fairlead_decision_seconds_count{stage="decide"} 1.0',
            ):
                assert line in text, line
            assert "c3" not in text

    run(main)


def test_learned_bytes_per_token_come_from_usage():
    async def main():
        async with serving(MockWorker()) as served:
            learned = served.gateway.prompts.bytes_per_token
            before = learned("default", "tiny")
            for _ in range(40):
                await served.post(chat(content="x" * 64))
            assert before == 4
            assert learned("default", "tiny") == pytest.approx(70 / USAGE["prompt_tokens"], rel=0.1)

    run(main)
