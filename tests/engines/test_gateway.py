"""`fairlead serve` in front of two vLLM servers, seen by three clients through OpenAI's own library."""

import random
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.engines.servers import (
    BLOCK_TOKENS,
    KEYS,
    MODEL,
    MODEL_FOLDER,
    SEQUENCES,
    Engine,
    Gateway,
    gateway,
    wait_for,
)
from tests.engines.talk import FIXED, NO_STOP, ask, assistant, at_once, complete, system, user, words

TOKENS = ("--tokenizer", str(MODEL_FOLDER), "--block-tokens", str(BLOCK_TOKENS))
CREDIT = ("--worker-max-num-seqs", str(SEQUENCES))


def exact_everywhere(one: Gateway) -> bool:
    return list(one.metric("fairlead_worker_kv_precise").values()) == [1.0, 1.0]


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("options", [(), TOKENS], ids=["bytes", "tokens"])
def test_answers_are_those_of_the_engine_itself(engines: list[Engine], options: tuple[str, ...]) -> None:
    """Three clients at once, chats and completions, streamed and not, prompts as text and as tokens."""
    direct = engines[0].client()
    calls: list[Callable[[openai.OpenAI], str]] = []
    for number in range(8):
        shared = system(words(number % 2, 60))
        chat = [shared, user(words(("question", number), 10))]
        text = words(("text", number), 40)
        numbers = [300 + (7 * number + n) % 1000 for n in range(50)]
        for stream in (False, True):
            calls += [
                lambda c, m=chat, s=stream: ask(c, m, 12, stream=s),
                lambda c, p=text, s=stream: complete(c, p, 12, stream=s),
                lambda c, p=numbers, s=stream: complete(c, p, 12, stream=s),
            ]
    expected = [call(direct) for call in calls]
    with gateway(f"answers-{len(options)}", engines, *CREDIT, *options) as one:
        clients = [one.client(name) for name in KEYS]
        found = at_once(
            [lambda n=n, call=call: call(clients[n % 3]) for n, call in enumerate(calls)], threads=12
        )
        assert found == expected
        ended = one.metric("fairlead_requests_total")
        assert ended == {f'{{client="{name}",result="ok"}}': len(calls) / 3 for name in KEYS}
        assert sum(one.metric("fairlead_worker_running").values()) == 0


def test_a_stream_shows_usage_to_those_who_asked_and_only_to_them(engines: list[Engine]) -> None:
    with gateway("usage", engines) as one:
        for wanted in (False, True):
            more = {"stream_options": {"include_usage": True}} if wanted else {}
            stream = one.client("alice").chat.completions.create(
                **FIXED, messages=[user("count")], max_tokens=5, stream=True, extra_body=NO_STOP, **more
            )
            chunks = list(stream)
            usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
            assert [usage.completion_tokens for usage in usages] == ([5] if wanted else [])
            assert all(chunk.choices for chunk in chunks[: len(chunks) - wanted])
        assert one.metric("fairlead_output_tokens_total") == {'{client="alice"}': 10}


def test_errors_of_the_engine_and_of_the_gateway_reach_the_library(engines: list[Engine]) -> None:
    with gateway("errors", engines) as one:
        client = one.client("alice")
        with pytest.raises(openai.BadRequestError, match=r"(?i)context length|max_model_len|too long"):
            ask(client, [user(words("too long", 4000))], 5, stream=False)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="another", messages=[user("x")])
        with pytest.raises(openai.AuthenticationError):
            ask(one.client("eve"), [user("x")], 5, stream=False)
        assert [model.id for model in client.models.list()] == [MODEL]


# ---------------------------------------------------------------------- what is known of the caches


def converse(client: openai.OpenAI, about: str, requests: int, after: Callable[[int], None]) -> None:
    """Conversations over three shared prefixes, one request at a time; together twice the caches."""
    rng = random.Random(3)
    chats = [[system(words((about, n % 3), 250)), user(words((about, "own", n), 150))] for n in range(90)]
    for number in range(requests):
        chat = rng.choice(chats)
        text = ask(client, chat, 8, stream=number % 2 == 0)
        if number % 4 == 3 and len(chat) < 8:
            chat += [assistant(text), user("And?")]
        after(number)


def hit_rates(one: Gateway, engines: list[Engine]) -> list[tuple[float, float]]:
    """Return each worker's predicted and real share of cached tokens, over the same requests."""
    names = ("fairlead_worker_hit_rate_predicted", "fairlead_worker_hit_rate_real")
    tables = [one.metric(name) for name in names]
    labels = [f'{{worker="{engine.url}"}}' for engine in engines]
    return [(tables[0].get(label, 0.0), tables[1].get(label, 0.0)) for label in labels]


def test_with_the_tokenizer_every_hit_is_predicted_exactly(engines: list[Engine]) -> None:
    with gateway("exact", engines, "--policy", "marginal", *TOKENS, *CREDIT) as one:
        wait_for(lambda: exact_everywhere(one), 10, "KV events followed on both workers")
        client = one.client("alice")

        def compare(number: int) -> None:
            # The engine reports a block a moment after the answer that made it; later on a busy machine.
            time.sleep(0.15)
            for predicted, real in hit_rates(one, engines):
                assert predicted == pytest.approx(real, abs=1e-12), f"after request {number}"

        converse(client, "exact", 120, compare)
        assert all(real > 0.2 for _, real in hit_rates(one, engines)), "both were used, and had hits"
        assert exact_everywhere(one)


def test_without_the_tokenizer_hits_are_predicted_closely(engines: list[Engine]) -> None:
    """From the bytes of what was sent, with nothing heard from the engines."""
    with gateway("close", engines, "--policy", "marginal", *CREDIT) as one:
        converse(one.client("alice"), "close", 120, lambda _: None)
        for predicted, real in hit_rates(one, engines):
            assert real > 0.2
            assert predicted == pytest.approx(real, abs=0.1)


# ---------------------------------------------------------------------- fairness


def time_to_first(client: openai.OpenAI, messages: list[Any], tokens: int) -> float:
    """Return the seconds until the first token of a streamed answer, and read it to its end."""
    began = time.monotonic()
    stream = client.chat.completions.create(
        **FIXED, messages=messages, max_tokens=tokens, stream=True, extra_body=NO_STOP
    )
    first = 0.0
    for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.monotonic() - began
    return first


def victims_of_a_flood(engines: list[Engine], order: str, policy: str) -> list[float]:
    """Return the times to first token of two modest clients while a third one floods."""
    name = f"flood-{order}"
    options = ("--order", order, "--policy", policy, *TOKENS, *CREDIT)
    with gateway(name, engines, *options) as one, ThreadPoolExecutor(32) as pool:
        over = threading.Event()

        def flood(lane: int) -> int:
            client, sent = one.client("mallory"), 0
            while not over.is_set():
                ask(client, [user(words((order, lane, sent), 400))], 24, stream=True)
                sent += 1
            return sent

        def modest(victim: str) -> list[float]:
            client, shared = one.client(victim), system(words((order, victim), 200))
            return [
                time_to_first(client, [shared, user(words((order, victim, turn), 10))], 8)
                for turn in range(12)
            ]

        floods = [pool.submit(flood, lane) for lane in range(30)]
        queued = '{client="mallory"}'
        wait_for(lambda: one.metric("fairlead_queued").get(queued, 0) > 15, 20, "a queue of the flooder's")
        victims = [pool.submit(modest, victim) for victim in ("alice", "bob")]
        times = [seconds for victim in victims for seconds in victim.result()]
        over.set()
        assert sum(lane.result() for lane in floods) > 30
        return times


def test_a_flooding_client_does_not_delay_the_others(engines: list[Engine]) -> None:
    """The same load in order of arrival and by DLPM; ratios, so that the machine's speed does not matter.

    Means and upper quartiles: who comes before the flood has filled the queue waits for nobody in any order,
    and how many those are does depend on the machine.
    """
    unfair = victims_of_a_flood(engines, "fcfs", "round_robin")
    fair = victims_of_a_flood(engines, "dlpm", "marginal")
    paper = victims_of_a_flood(engines, "dlpm:scope=worker", "d2lpm")
    mean, upper_quartile = {}, {}
    for name, times in {"fcfs": unfair, "fleet": fair, "paper": paper}.items():
        _, median, upper = statistics.quantiles(times, n=4)
        mean[name], upper_quartile[name] = statistics.fmean(times), upper
        print(f"{name}: TTFT p50 {median:.3f} s, p75 {upper:.3f} s, worst {max(times):.3f} s")
    assert mean["fleet"] < 0.5 * mean["fcfs"]
    assert upper_quartile["fleet"] < 0.5 * upper_quartile["fcfs"]
    assert mean["paper"] < 0.7 * mean["fcfs"]


# ---------------------------------------------------------------------- failure


class Load:
    """Closed-loop traffic of three clients that notes how each request ended."""

    def __init__(self, one: Gateway, lanes: int) -> None:
        self.done: list[float] = []
        self.broken_off: list[str] = []
        """Streams of which the head had come when they failed: that much is allowed."""
        self.lost: list[str] = []
        """Requests that failed without a byte of an answer."""
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(lanes)
        names = list(KEYS)
        self._lanes = [self._pool.submit(self._lane, one.client(names[n % 3]), n) for n in range(lanes)]

    def _lane(self, client: openai.OpenAI, lane: int) -> None:
        turn = 0
        while not self._over.is_set():
            messages = [system(words(lane % 3, 100)), user(words((lane, turn), 20))]
            self._one(client, messages, stream=(lane + turn) % 2 == 0)
            turn += 1

    def _one(self, client: openai.OpenAI, messages: list[Any], *, stream: bool) -> None:
        options = FIXED | {"messages": messages, "max_tokens": 20, "extra_body": NO_STOP}
        began = False
        try:
            if stream:
                chunks = client.chat.completions.create(**options, stream=True)
                began = True
                for _ in chunks:
                    pass
            else:
                client.chat.completions.create(**options)
        except openai.OpenAIError as error:
            (self.broken_off if began else self.lost).append(repr(error))
        else:
            self.done.append(time.monotonic())

    def end(self) -> None:
        self._over.set()
        for lane in self._lanes:
            lane.result()
        self._pool.shutdown()


def test_a_killed_server_loses_nothing_unanswered_and_its_return_is_noticed(engines: list[Engine]) -> None:
    victim = engines[1]
    with gateway("failure", engines, *TOKENS, *CREDIT) as one:
        wait_for(lambda: exact_everywhere(one), 10, "KV events followed on both workers")
        load = Load(one, lanes=12)
        try:
            wait_for(lambda: len(load.done) > 30, 60, "traffic")
            wait_for(lambda: one.of_worker("fairlead_worker_running", victim) >= 2, 20, "work to lose")
            victim.kill()
            wait_for(lambda: one.of_worker("fairlead_worker_up", victim) == 0, 10, "its death noticed")
            # The events' own connection notices by itself, a moment before or after the health check.
            wait_for(
                lambda: one.of_worker("fairlead_worker_kv_precise", victim) == 0, 10, "the end of its events"
            )
            since = len(load.done)
            wait_for(lambda: len(load.done) > since + 30, 60, "traffic through the other one")
        finally:
            load.end()
        victim.start()  # with no traffic meanwhile: it would take the cores that the start needs
        victim.wait_up()
        wait_for(lambda: one.of_worker("fairlead_worker_up", victim) == 1, 20, "its return noticed")
        wait_for(lambda: exact_everywhere(one), 40, "its cache known again")
        later = Load(one, lanes=6)
        try:
            wait_for(lambda: one.of_worker("fairlead_worker_running", victim) > 0, 20, "work for it again")
        finally:
            later.end()
        assert later.lost + later.broken_off == []
        assert load.lost == []
        assert len(load.broken_off) <= SEQUENCES, "only what it was answering can break off"
        running = one.metric("fairlead_worker_running")
        assert sum(running.values()) == 0, f"books that do not balance: {running}"
