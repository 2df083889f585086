"""How many tokens a prompt has: learned for each client, so that none bends the estimate of another."""

import asyncio
import json
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from fairlead.gateway import estimates
from fairlead.gateway.estimates import Learned
from fairlead.gateway.key_secret import NO_SECRET
from fairlead.gateway.prompt import BytePrompts
from fairlead.gateway.wire import CHAT, COMPLETION, decode
from tests.gateway.mocks import MockWorker, chat, plain, run, serving

SIZES = st.integers(1, 100_000)
TRAFFIC = st.lists(st.tuples(SIZES, st.integers(-1, 100_000)), max_size=60)
"""Prompts: bytes of text, and tokens that the engine counted."""


def asked(size):
    return decode(COMPLETION, json.dumps({"model": "m", "prompt": "p" * size}).encode())


def send(prompts, client, traffic):
    for size, tokens in traffic:
        prompts.learn(client, "m", prompts.keys(client, COMPLETION, asked(size)), tokens)


def estimate(prompts, client):
    prompt = prompts.keys(client, COMPLETION, asked(10_000))
    return prompt.prompt_tokens, prompt.block_tokens


@given(TRAFFIC, TRAFFIC, TRAFFIC)
def test_no_traffic_of_a_client_changes_the_estimate_of_one_that_is_known(first, own, later):
    """Whatever A sends, before and after: once B is known, its estimate is made of its own requests."""
    prompts, alone = BytePrompts(secret=NO_SECRET), BytePrompts(secret=NO_SECRET)
    for each in (prompts, alone):
        send(each, "b", [(4000, 1000)])
    send(prompts, "a", first)
    send(prompts, "b", own)
    send(prompts, "a", later)
    send(alone, "b", own)
    assert estimate(prompts, "b") == estimate(alone, "b")


@given(
    st.lists(st.floats(1, 8), max_size=6),
    st.lists(st.tuples(st.floats(0, 1000), st.floats(0.001, 1)), max_size=80),
)
def test_one_client_moves_the_estimate_of_a_fresh_one_at_most_to_the_next_voice(voices, traffic):
    learned = Learned(4.0, 1.0, 8.0)
    others = {f"c{number}": voice for number, voice in enumerate(voices)}
    for name, voice in others.items():
        for _ in range(300):
            learned.see(name, "m", voice)
    for value, weight in traffic:
        learned.see("a", "m", value, weight)
    sounds = sorted([*[learned.of(name, "m") for name in others], 4.0, 4.0])
    middle = median(sounds)
    below = max((v for v in sounds if v < middle), default=middle)
    above = min((v for v in sounds if v > middle), default=middle)
    for _ in range(20):  # the median is made anew after some observations only
        learned.see("z", "m", learned.of("z", "m"), 0.01)
    assert below <= learned.of("fresh", "m") <= above


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200))
def test_an_estimate_follows_the_middle_and_not_single_values(outliers):
    """As many values from elsewhere as one in five: the estimate stays within some steps."""
    learned = Learned(4.0, 1.0, 8.0)
    for _ in range(100):
        learned.see("c", "m", 3.0)
    for value in outliers:
        for told in (value, 3.0, 3.0, 3.0, 3.0):
            learned.see("c", "m", told)
            assert 3.0 / 1.03 <= learned.of("c", "m") <= 3.0 * 1.03


def test_what_is_learned_arrives_soon():
    for text in (1.1, 2.0, 3.0, 5.0, 7.9):
        learned = Learned(4.0, 1.0, 8.0)
        for _ in range(8):
            learned.see("c", "m", text)
        assert abs(learned.of("c", "m") - text) < 0.1


def test_memory_is_bounded_and_the_most_recent_are_kept(monkeypatch):
    monkeypatch.setattr(estimates, "_MOST_MODELS", 3)
    monkeypatch.setattr(estimates, "_MOST_CLIENTS", 5)
    learned = Learned(4.0, 1.0, 8.0)
    for number in range(50):
        learned.see("steady", f"m{number % 2}", 3.0)
        learned.see(f"c{number}", f"m{number % 2}", 7.0)
        learned.see("c", f"other{number}", 7.0)
    assert len(learned._models) == 3
    assert all(len(model.clients) <= 5 for model in learned._models.values())
    assert learned.of("steady", "m1") == 3.0


# --- images ---------------------------------------------------------------------------------------


def with_images(text, *images):
    parts = [
        {"type": "text", "text": text},
        *[{"type": "image_url", "image_url": {"url": "data:image/png;base64," + image}} for image in images],
    ]
    return decode(CHAT, json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode())


def test_the_bytes_of_an_image_are_no_text():
    prompts = BytePrompts(secret=NO_SECRET)
    small = prompts.keys("c", CHAT, with_images("t" * 4000, "A"))
    large = prompts.keys("c", CHAT, with_images("t" * 4000, "A" * 1_000_000))
    assert small.prompt_tokens == large.prompt_tokens == 1000 + 512 + 2
    assert len(small.keys) == len(large.keys) < 110
    assert small.keys[61] == large.keys[61], "they share the text before"
    assert small.keys[-1] != large.keys[-1]
    for _ in range(200):
        for prompt in (small, large):
            prompts.learn("c", "m", prompt, 1000 + 765)
    assert prompts.bytes_per_token("c", "m") == 4, "of text, nothing was learned"
    prompt = prompts.keys("c", CHAT, with_images("t" * 4000, "B", "C"))
    assert abs(prompt.prompt_tokens - (1000 + 2 * 765)) < 20
    assert abs(prompt.block_tokens * prompt.size / 64 - prompt.prompt_tokens) < 2, "all blocks are all tokens"


# --- through the gateway ----------------------------------------------------------------------------


def test_one_tenant_s_blanks_do_not_let_another_tenant_s_requests_in():
    """40 requests whose tokens are 56 bytes long, and 46 of another tenant ran where 7 fit."""
    held = asyncio.Event()

    async def behave(ask, writer):
        text = ask.body["messages"][0]["content"]
        tokens = len(text) // 56 if text.isspace() else len(text) // 4
        if not text.isspace():
            await held.wait()
        usage = {"prompt_tokens": tokens, "completion_tokens": 1}
        writer.write(plain(json.dumps({"choices": [], "usage": usage}).encode()))

    async def main():
        worker = MockWorker(behave)
        keys = ["blanks=k1", "tenant=k2"]
        async with serving(worker, api_key=keys, worker_kv_tokens=16_000, order="fcfs") as served:

            def send(key, text):
                head = [(b"authorization", b"Bearer " + key)]
                return served.post(chat(content=text, max_tokens=1), headers=head)

            for number in range(40):
                await send(b"k1", " " * (9000 + number))
            asks = [asyncio.ensure_future(send(b"k2", f"{n:5}" + "text" * 2200)) for n in range(46)]
            fleet = served.gateway.dispatcher.fleet
            await asyncio.sleep(0.3)
            running = sum(fleet.running)
            assert 1 <= running <= 7
            assert running * 2200 <= 16_000
            held.set()
            await asyncio.gather(*asks)

    run(main)
