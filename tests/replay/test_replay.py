"""Replays over real sockets: against the engine's model, and against servers that misbehave."""

import asyncio
import time
from dataclasses import replace

import pytest
import uvloop

from fairlead.engine.server import EngineConfig, EngineServer
from fairlead.replay.endpoint import Asking
from fairlead.replay.sender import Pace, Sender
from fairlead.report.metrics import summarise
from fairlead.report.run import CANCELLED, DONE, FAILED, OUTCOMES, REJECTED, UNFINISHED, Run
from fairlead.simulate.settings import Settings
from fairlead.simulate.world import World
from fairlead.trace.generators import generate
from fairlead.trace.model import Session, Trace, Turn
from fairlead.trace.reachable import reachable
from tests.engine.http_calls import until
from tests.replay.fake import Asked, Fake, answer, events, good, usage, with_fake
from tests.replay.workloads import on_engine, one_after_another, replayed, single, trace_of

ONE_AT_A_TIME = Pace(max_concurrency=1)


def outcomes(run: Run) -> list[str]:
    return [OUTCOMES[outcome] for outcome in run.requests.outcome]


def check(run: Run, sender: Sender) -> None:
    """What holds of every replay, whatever happened."""
    r = run.requests
    rows = zip(r.arrived, r.sent, r.first, r.ended, r.outcome, strict=True)
    assert list(r.arrived) == sorted(r.arrived)
    for arrived, sent, first, ended, outcome in rows:
        assert (outcome == UNFINISHED) == (ended < 0)
        assert sent == -1 or sent >= arrived
        assert first == -1 or arrived <= sent <= first
        assert ended == -1 or (ended >= first and ended >= arrived)
    assert UNFINISHED not in r.outcome or sender.interrupted
    summary = summarise(run)
    assert summary["num_prompts"] == len(r) == sender.tally.arrived
    counted = summary["outcomes"]
    assert sum(counted.values()) == len(r)


def test_lengths_hits_and_clients_are_the_workloads() -> None:
    trace = generate(
        "shared-prefix", {"groups": 8, "rate": 500.0, "output_tokens": 20}, requests=40, clients=3
    )
    run, sender = on_engine(trace, pace=ONE_AT_A_TIME)
    check(run, sender)
    turns = [(session, turn) for session in trace.sessions() for turn in session.turns]
    assert list(run.requests.prompt) == [turn.prompt_tokens for _, turn in turns]
    assert list(run.requests.output) == [turn.output_tokens for _, turn in turns]
    assert [run.clients[c] for c in run.requests.client] == [session.client for session, _ in turns]
    assert set(outcomes(run)) == {"done"}
    summary = summarise(run)
    assert summary["kind"] == "replay"
    assert summary["hit_rate"] == pytest.approx(reachable(trace), abs=1e-6)
    assert summary["reachable_hit_rate"] == pytest.approx(reachable(trace))
    assert summary["series"]["running"] == []
    assert [client["num_prompts"] for client in summary["clients"]] == [
        sum(1 for session, _ in turns if session.client == name) for name in trace.clients
    ]


@pytest.mark.parametrize("workload", ["shared-prefix:groups=8", "judge", "multi-turn:turns=4"])
def test_simulator_and_replay_find_the_same_cached(workload: str) -> None:
    trace = one_after_another(generate(workload, requests=30, clients=2))
    # The replay never feeds an answer back, so that the simulator must not find one either.
    session = next(trace.sessions())
    bare = session._replace(turns=[turn._replace(output_keys=()) for turn in session.turns])
    trace = replace(trace, sessions=lambda: iter([bare]))
    run, sender = on_engine(trace, kv_blocks=4000)
    check(run, sender)
    simulated = World(trace, Settings(workers=1, kv_tokens=4000 * 16)).run()
    assert set(outcomes(run)) == {"done"}
    assert list(run.requests.cached) == list(simulated.requests.cached)
    assert list(run.requests.prompt) == list(simulated.requests.prompt)
    assert list(run.requests.output) == list(simulated.requests.output)
    assert sum(run.requests.cached) > 0


def conversation(delay_us: int = 0) -> Session:
    turns = [
        Turn(40, 4, (1, 2)),
        Turn(60, 4, (1, 2, 3), after=0, delay_us=delay_us),
        Turn(60, 4, (1, 2, 4), after=0),
        Turn(90, 4, (1, 2, 3, 5, 6), after=1, delay_us=delay_us),
    ]
    return Session(0, "a", turns, "chat-1")


def test_a_turn_comes_after_the_answer_before_it_and_its_pause() -> None:
    run, sender = on_engine(trace_of(conversation(30_000)))
    check(run, sender)
    r = run.requests
    assert list(r.prompt) == [40, 60, 60, 90]
    assert list(r.cached) == [0, 32, 32, 48]
    first, side, second, third = range(4)
    assert r.arrived[side] >= r.ended[first]
    assert r.arrived[second] >= r.ended[first] + 30_000
    assert r.arrived[third] >= r.ended[second] + 30_000


def test_speed_makes_arrivals_and_pauses_shorter() -> None:
    trace = trace_of(
        single(at=1_000_000), single(at=9_000_000), conversation(8_000_000)._replace(at=9_000_000)
    )
    run, sender = on_engine(trace, pace=Pace(speed=100))
    check(run, sender)
    r = run.requests
    assert r.arrived[0] == 0  # the first session begins at once
    assert r.arrived[1] == r.arrived[2] == 80_000
    assert r.ended[2] + 80_000 <= r.arrived[4] < r.ended[2] + 8_000_000
    assert any("100 times as fast" in label for label in run.labels)


def test_arrivals_do_not_wait_for_answers() -> None:
    async def when_all_have_come(asked: Asked) -> bytes:
        if len(fake.asked) == 6:
            all_there.set()
        if asked.body.get("stream"):
            await all_there.wait()
        return good(asked)

    async def body() -> None:
        run, sender = await replayed(trace_of(*[single(at=1000 * i) for i in range(6)]), fake.url)
        check(run, sender)
        assert list(run.requests.arrived) == [0, 1000, 2000, 3000, 4000, 5000]
        assert max(run.requests.sent) < min(run.requests.ended)

    all_there = asyncio.Event()
    fake = Fake(when_all_have_come)
    with_fake(fake, body)


def test_a_wait_for_room_counts_from_the_arrival() -> None:
    async def slowly(asked: Asked) -> bytes:
        await asyncio.sleep(0.01)
        return good(asked)

    async def body() -> None:
        trace = trace_of(*[single(at=1000 * i) for i in range(6)])
        run, sender = await replayed(trace, fake.url, pace=Pace(max_concurrency=2))
        check(run, sender)
        r = run.requests
        assert list(r.arrived) == [0, 1000, 2000, 3000, 4000, 5000]
        for i in range(2, 6):
            assert r.sent[i] >= sorted(r.ended)[i - 2]

    fake = Fake(slowly)
    with_fake(fake, body)


def test_what_is_sent_says_who_asks_and_how_long() -> None:
    async def body() -> None:
        trace = trace_of(single(client="ann", output=7), single(client="b\u00e9a\n"), conversation())
        asking = Asking(keys={"ann": "k1", "*": "k2"}, client_header="X-Who")
        run, sender = await replayed(trace, fake.url, asking, ONE_AT_A_TIME)
        check(run, sender)
        ann, bea, chat = fake.asked[:3]
        assert ann.headers["x-who"] == ann.body["user"] == ann.body["vllm_xargs"]["client_id"] == "ann"
        assert ann.headers["authorization"] == "Bearer k1"
        assert bea.headers["authorization"] == "Bearer k2"
        assert bea.body["user"] == "b\u00e9a?"
        assert "x-session-id" not in ann.headers
        assert chat.headers["x-session-id"] == "chat-1"
        assert ann.body["max_tokens"] == ann.body["min_tokens"] == 7
        assert ann.body["ignore_eos"] is True
        assert ann.body["model"] == "m"
        assert "k1" not in str(summarise(run)["settings"])
        fake.asked.clear()
        await replayed(trace, fake.url, Asking(exact_lengths=False, client_header=""))
        assert not {"min_tokens", "ignore_eos"} & fake.asked[0].body.keys()
        assert "x-fairlead-client" not in fake.asked[0].headers

    fake = Fake()
    with_fake(fake, body)


def test_text_is_sent_where_token_ids_are_not_taken() -> None:
    def only_text(asked: Asked) -> bytes:
        if isinstance(asked.body["prompt"], list):
            return answer(400, {"error": {"message": "prompt must be a string"}})
        return good(asked)

    async def body() -> None:
        run, sender = await replayed(trace_of(conversation()), fake.url)
        check(run, sender)
        assert outcomes(run) == ["done"] * 4
        assert list(run.requests.prompt) == [40, 60, 60, 90]  # the fake counts words
        assert run.settings["prompt_form"] == "text"
        assert any("prompt must be a string" in label for label in run.labels)
        words = {len(asked.body["prompt"].split()): asked.body["prompt"].split() for asked in fake.asked}
        assert words[90][:48] == words[60][:32] + words[90][32:48]
        assert words[40][:32] == words[90][:32]

    fake = Fake(only_text)
    with_fake(fake, body)


def test_refusals_failures_and_what_followed_from_them_are_counted() -> None:
    def moody(asked: Asked) -> bytes | None:
        said = {41: (429, "queue full"), 42: (503, "no worker"), 43: (500, "oops")}
        size = len(asked.body["prompt"])
        if size in said:
            status, message = said[size]
            return answer(status, {"error": {"message": message}})
        return None if size == 44 else good(asked)

    async def body() -> None:
        sessions = [single(at=i * 1000, prompt=40 + i) for i in range(5)]
        sessions.append(Session(5000, "a", [Turn(41, 2), Turn(50, 2, after=0), Turn(60, 2, after=1)]))
        run, sender = await replayed(trace_of(*sessions), fake.url, pace=ONE_AT_A_TIME)
        check(run, sender)
        assert list(run.requests.outcome) == [DONE, REJECTED, REJECTED, FAILED, FAILED, REJECTED]
        assert sender.tally.abandoned == 2
        assert any("2 turns never came" in label for label in run.labels)
        assert run.settings["errors"]["status 429: queue full"] == 2
        assert summarise(run)["completed"] == 1
        # A refusal is never retried; a kept connection that turned out closed is, once.
        assert len(fake.asked) - run.settings["stale_connections"] == 6

    fake = Fake(moody)
    with_fake(fake, body)


def test_a_clients_patience_counts_from_the_arrival_even_while_it_waits_for_room() -> None:
    async def never(asked: Asked) -> bytes:
        if asked.body.get("stream"):
            await asyncio.sleep(30)
        return good(asked)

    async def body() -> None:
        trace = trace_of(single(), single())
        run, sender = await replayed(trace, fake.url, pace=Pace(timeout_s=0.05, max_concurrency=1))
        check(run, sender)
        assert list(run.requests.outcome) == [CANCELLED, CANCELLED]
        assert run.requests.sent[1] == -1 or run.requests.sent[1] >= 45_000
        assert run.settings["errors"] == {"no end after 0.05 s": 2}

    fake = Fake(never)
    with_fake(fake, body)


def test_a_server_that_dies_in_the_middle_fails_the_rest() -> None:
    async def body() -> None:
        server = EngineServer(EngineConfig(speed=1000.0, model_name="m"))
        await server.start()

        def started(sender: Sender) -> None:
            async def kill() -> None:
                await until(lambda: sender.tally.ended >= 3)
                await server.stop()

            killing.append(asyncio.ensure_future(kill()))

        killing: list[asyncio.Future[None]] = []
        trace = trace_of(*[single(at=10_000 * i, output=5) for i in range(60)])
        run, sender = await replayed(trace, server.url, started=started)
        await killing[0]
        check(run, sender)
        assert len(run.requests) == 60
        assert run.requests.outcome[0] == DONE
        assert set(run.requests.outcome) == {DONE, FAILED}
        assert run.requests.outcome[-1] == FAILED
        assert any("cannot connect" in reason for reason in run.settings["errors"])

    uvloop.run(body())


def test_an_interrupt_keeps_what_there_is() -> None:
    async def second_hangs(asked: Asked) -> bytes:
        if asked.body.get("stream") and len(asked.body["prompt"]) == 50:
            stop.set()
            await asyncio.sleep(30)
        return good(asked)

    def started(sender: Sender) -> None:
        async def interrupt() -> None:
            await stop.wait()
            sender.interrupt()
            sender.interrupt()  # once is enough

        tasks.append(asyncio.ensure_future(interrupt()))

    async def body() -> None:
        trace = trace_of(single(), single(at=50_000, prompt=50), single(at=60_000_000))
        run, sender = await replayed(trace, fake.url, started=started)
        check(run, sender)
        assert list(run.requests.outcome) == [DONE, UNFINISHED]
        assert run.settings["interrupted"] is True
        assert "interrupted after 2 of 3 requests" in run.labels

    stop, tasks = asyncio.Event(), []
    fake = Fake(second_hangs)
    with_fake(fake, body)


def test_an_interrupt_before_the_first_request_leaves_an_empty_result() -> None:
    run, sender = on_engine(trace_of(single()), started=lambda sender: sender.interrupt())
    check(run, sender)
    assert summarise(run)["num_prompts"] == 0
    assert "interrupted after 0 of 1 requests" in run.labels


def test_a_trace_that_breaks_while_it_is_read_ends_the_replay() -> None:
    def sessions():
        yield single()
        yield single(at=1000)
        raise OSError("the disk is gone")

    broken: Trace = replace(trace_of(single(), single()), sessions=sessions)
    with pytest.raises(OSError, match="the disk is gone"):
        on_engine(broken)


def test_a_sender_that_is_late_says_so() -> None:
    def started(sender: Sender) -> None:
        asyncio.get_running_loop().call_later(0.01, time.sleep, 0.1)

    trace = trace_of(*[single(at=1000 * i) for i in range(60)])
    run, sender = on_engine(trace, started=started)
    check(run, sender)
    assert run.settings["sender_late_ms"]["p99"] > 20
    assert any("the sender itself was late" in label for label in run.labels)


def test_answers_of_another_length_are_counted() -> None:
    def short(asked: Asked) -> bytes:
        asked.body["max_tokens"] = min(2, asked.body["max_tokens"])
        return good(asked)

    async def body() -> None:
        run, sender = await replayed(trace_of(single(output=2), single(output=9)), fake.url)
        check(run, sender)
        assert list(run.requests.output) == [2, 2]
        assert run.settings["other_output_length"] == 1

    fake = Fake(short)
    with_fake(fake, body)


def test_tokens_that_share_an_event_are_told() -> None:
    def merged(asked: Asked) -> bytes:
        if not asked.body.get("stream"):
            return good(asked)
        counted = {"choices": [], "usage": usage(40, asked.body["max_tokens"])}
        chunks = [{"choices": [{"text": "two words"}]}] * 3
        return answer(200, events(*chunks, counted, b"[DONE]"), kind="text/event-stream")

    async def body() -> None:
        run, sender = await replayed(trace_of(single(output=6)), fake.url)
        check(run, sender)
        assert run.requests.output[0] == 6
        assert run.settings["tokens_an_event"] == 2
        assert "2 tokens came in an event: ITL is the time between events" in run.labels

    fake = Fake(merged)
    with_fake(fake, body)
