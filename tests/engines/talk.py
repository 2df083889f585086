"""What the tests' clients say: prompts of made-up words, reproducible, of about a wanted length in tokens."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from tests.engines.servers import MODEL

_SOUNDS = ["bra", "den", "fol", "gla", "kin", "mar", "nor", "pel", "rus", "stan", "tri", "vou", "zai"]


def words(seed: object, count: int) -> str:
    """Return ``count`` words; about 1.6 tokens each."""
    rng = random.Random(repr(seed))
    return " ".join("".join(rng.choices(_SOUNDS, k=rng.randint(1, 3))) for _ in range(count))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


FIXED: dict[str, Any] = {"model": MODEL, "temperature": 0, "seed": 1}
NO_STOP = {"ignore_eos": True}


def ask(client: openai.OpenAI, messages: list[Any], tokens: int, *, stream: bool) -> str:
    """Return the text of a chat answer of ``tokens`` tokens."""
    options = FIXED | {"messages": messages, "max_tokens": tokens, "extra_body": NO_STOP}
    if not stream:
        return client.chat.completions.create(**options).choices[0].message.content
    chunks = client.chat.completions.create(**options, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def complete(client: openai.OpenAI, prompt: Any, tokens: int, *, stream: bool) -> str:
    """Return the text of a plain completion of ``tokens`` tokens."""
    options = FIXED | {"prompt": prompt, "max_tokens": tokens, "extra_body": NO_STOP}
    if not stream:
        return client.completions.create(**options).choices[0].text
    chunks = client.completions.create(**options, stream=True)
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def at_once(calls: list[Callable[[], Any]], threads: int) -> list[Any]:
    """Make all calls, ``threads`` at a time, and return their results in order."""
    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
