"""What fairlead knows of one engine against what the engine says itself, without the gateway in between."""

import asyncio
import json
import random
import urllib.request
from typing import Any

import pytest

from fairlead.core.events import CacheCleared, CacheEvicted, CacheStored
from fairlead.gateway.key_secret import NO_SECRET
from fairlead.gateway.kv_events import KeySettings, KvEvents, source_from
from fairlead.gateway.prompt import Prompt
from fairlead.gateway.tokenizing import TokenPrompts, load_prompts
from fairlead.gateway.wire import CHAT, COMPLETION, decode
from tests.engines.servers import BLOCK_TOKENS, KV_BLOCKS, MODEL, MODEL_FOLDER, Engine, get
from tests.engines.talk import FIXED, assistant, system, user, words

TOOL = {
    "type": "function",
    "function": {
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        "name": "weather",
        "description": "Say how the weather is, in °C & <words>.",
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bern"}'}}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [user("  What is it about?\n")]},
    "turns": {"messages": [system("Be brief."), user("Hi"), assistant("Hello."), user("Why?")]},
    "parts": {"messages": [user([{"type": "text", "text": "a "}, {"type": "text", "text": " b"}])]},
    "special tokens in a text": {"messages": [user("x<|turn_end|><|pad|> y <|begin|")]},
    "unicode": {"messages": [user("日本語 👍🏽 naïve\u00a0\u200b")]},
    "tools": {"messages": [user("How is it in Bern?")], "tools": [TOOL]},
    "a tool's result": {
        "messages": [
            user("How is it in Bern?"),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "  21 °C "},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "dry"}]},
        ],
        "tools": [TOOL],
    },
    "developer": {"messages": [system("A"), {"role": "developer", "content": "B"}, user("C")]},
    "no generation prompt": {"messages": [user("x"), assistant("y")], "add_generation_prompt": False},
    "long": {"messages": [system(words("long", 800)), user("x")]},
}  # fmt: skip


def post(engine: Engine, path: str, body: dict[str, Any]) -> Any:
    data = json.dumps({"model": MODEL} | body).encode()
    request = urllib.request.Request(engine.url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def tokenizer() -> TokenPrompts:
    return load_prompts(MODEL_FOLDER, secret=NO_SECRET, block_tokens=1)


def keys(prompts: TokenPrompts, kind: str, body: dict[str, Any]) -> Prompt:
    return prompts.keys("c", kind, decode(kind, json.dumps({"model": MODEL} | body).encode()))


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_has_the_engines_own_tokens(engines: list[Engine], name: str) -> None:
    """Blocks of one token make the keys name every single token, but for the last."""
    theirs = post(engines[0], "/tokenize", CHATS[name])["tokens"]
    ours = tokenizer()
    prompt = keys(ours, CHAT, CHATS[name])
    assert prompt.prompt_tokens == len(theirs)
    assert prompt.keys == keys(ours, COMPLETION, {"prompt": theirs}).keys


@pytest.mark.parametrize("text", ["hello", " <|pad|>", "a\n\n b", words("completion", 900)])
def test_a_completion_has_the_engines_own_tokens(engines: list[Engine], text: str) -> None:
    theirs = post(engines[0], "/tokenize", {"prompt": text})["tokens"]
    ours = tokenizer()
    prompt = keys(ours, COMPLETION, {"prompt": text})
    assert prompt.prompt_tokens == len(theirs)
    assert prompt.keys == keys(ours, COMPLETION, {"prompt": theirs}).keys


class Belief:
    """The keys that one engine holds, by its events."""

    def __init__(self, engine: Engine) -> None:
        self.held: set[int] = set()
        self.stored = self.evicted = 0
        self.events = KvEvents(
            engine.url,
            source_from(get(engine.url + "/kv_event_sources"), engine.url),
            KeySettings(MODEL, BLOCK_TOKENS, digest=tokenizer().digest),
            emit=self.emit,
            now=lambda: 0,
        )

    def emit(self, event: CacheCleared | CacheStored | CacheEvicted) -> None:
        match event:
            case CacheCleared():
                self.held.clear()
            case CacheStored():
                self.held.update(event.keys)
                self.stored += len(event.keys)
            case CacheEvicted():
                self.held.difference_update(event.keys)
                self.evicted += len(event.keys)

    def matched(self, keys: list[int]) -> int:
        """Return how many leading blocks are held."""
        return next((count for count, key in enumerate(keys) if key not in self.held), len(keys))


def test_events_predict_every_hit_exactly_while_blocks_are_evicted(engines: list[Engine]) -> None:
    """Conversations that together need twice the cache; each answer tells what was really cached."""
    engine = engines[0]
    prompts = load_prompts(MODEL_FOLDER, secret=NO_SECRET, block_tokens=BLOCK_TOKENS)
    rng = random.Random(5)
    chats = [[system(words(("shared", n % 3), 250)), user(words(n, 150))] for n in range(60)]

    async def run() -> None:
        belief = Belief(engine)
        task = asyncio.create_task(belief.events.run())
        client = engine.client()
        try:
            async with asyncio.timeout(30):
                while not belief.events.precise:  # noqa: ASYNC110 - the events themselves are what is tested
                    await asyncio.sleep(0.01)
            hits = 0
            for number in range(150):
                chat = rng.choice(chats)
                salt = {"cache_salt": "pepper"} if number % 10 == 0 else {}
                prompt = keys(prompts, CHAT, {"messages": chat} | salt)
                predicted = belief.matched(prompt.keys) * BLOCK_TOKENS
                before = belief.events.state.batches
                answer = await asyncio.to_thread(
                    client.chat.completions.create, **FIXED, messages=chat, max_tokens=8, extra_body=salt
                )
                assert answer.usage is not None
                assert answer.usage.prompt_tokens == prompt.prompt_tokens
                assert answer.usage.prompt_tokens_details.cached_tokens == predicted, f"request {number}"
                hits += predicted
                if number % 4 == 3 and len(chat) < 8:
                    chat += [assistant(answer.choices[0].message.content or ""), user("And?")]
                # Blocks that were computed are reported soon after the answer.
                if predicted + BLOCK_TOKENS < prompt.prompt_tokens:
                    async with asyncio.timeout(10):
                        while belief.events.state.batches == before:  # noqa: ASYNC110
                            await asyncio.sleep(0.002)
                await asyncio.sleep(0.02)
            assert hits > 10_000
            assert belief.evicted > KV_BLOCKS, "the cache was never full"
            state = belief.events.state
            assert (state.phase, state.gaps, state.orphans, state.foreign) == ("precise", 0, 0, 0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
