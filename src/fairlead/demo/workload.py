"""The demo's traffic: two clients that share long prefixes, an agent that waits for its answers, and a flood.

All of it is synthetic and seeded: every phase gets the same requests. Those of clients that send by the clock
come at the same times; the agent sends its next one when it has had its answer, and has thought.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

_SYLLABLES = (
    "ka",
    "to",
    "mi",
    "ra",
    "shu",
    "el",
    "dor",
    "ven",
    "qui",
    "an",
    "ber",
    "lo",
    "sta",
    "ne",
    "pri",
    "gu",
)
_BYTES_PER_TOKEN = 4  # of the embedded engine's built-in tokenizer


class Client(NamedTuple):
    """One client's habits. Lengths in tokens, rate in requests a second."""

    name: str
    about: str
    rate: float
    """0: a closed loop. It keeps ``outstanding`` tasks, each of which waits for its answer and thinks."""
    documents: int
    """Different long prefixes that its requests start with; 0: nothing is shared."""
    shared_tokens: int
    own_tokens: int
    output_tokens: int
    outstanding: int
    """Most requests that it keeps open; beyond, it waits for one to end, as a pool of threads does."""
    think_s: float = 0.0
    """Of a closed loop: mean pause between an answer and the next request, exponential."""


TASK_TURNS = 6
"""Requests of one task of a closed loop; each has the last one's prompt, and more."""

CLIENTS = (
    Client("assistant", "chat over 8 long system prompts", 6, 8, 5_000, 80, 30, 64),
    Client("docs", "questions on 6 long documents", 5, 6, 6_000, 120, 40, 64),
    Client(
        "agent",
        "3 tasks at a time; each waits for its answer, then thinks 0.2 s",
        0,
        1,
        3_000,
        250,
        20,
        3,
        0.2,
    ),
    Client("flood", "a batch job that keeps up to 320 requests open", 50, 0, 0, 2_600, 40, 320),
)


class Planned(NamedTuple):
    """One request to be sent ``at`` seconds after the phase begins."""

    at: float
    client: Client
    prompt: str
    max_tokens: int


class Turn(NamedTuple):
    """One request of a closed loop, sent ``pause_s`` seconds after the answer to the one before."""

    pause_s: float
    prompt: str
    max_tokens: int


def turns(client: Client, task: int, seed: int = 1) -> Iterator[Turn]:
    """Yield the requests of one of a closed loop's tasks, without end: what follows a task is a new one."""
    common = random.Random(f"{seed} {client.name}")
    start = _text(common, client.shared_tokens) + "\n" if client.documents else ""
    rng = random.Random(f"{seed} {client.name} {task}")
    while True:
        prompt = start
        for _ in range(TASK_TURNS):
            prompt += _text(rng, client.own_tokens)
            yield Turn(rng.expovariate(1 / client.think_s), prompt, _output(rng, client))


def plan(seconds: float, seed: int = 1) -> list[Planned]:
    """Return the requests that are sent by the clock: Poisson arrivals, documents picked evenly."""
    planned: list[Planned] = []
    for number, client in enumerate(CLIENTS):
        if not client.rate:
            continue
        rng = random.Random(seed * 1000 + number)
        documents = [_text(rng, client.shared_tokens) for _ in range(client.documents)]
        at = rng.expovariate(client.rate)
        while at < seconds:
            shared = rng.choice(documents) + "\n" if documents else ""
            output = _output(rng, client)
            planned.append(Planned(at, client, shared + _text(rng, client.own_tokens), output))
            at += rng.expovariate(client.rate)
    return sorted(planned, key=lambda p: (p.at, p.client.name))


def _output(rng: random.Random, client: Client) -> int:
    return max(4, round(rng.lognormvariate(0, 0.4) * client.output_tokens))


def _text(rng: random.Random, tokens: int) -> str:
    size = tokens * _BYTES_PER_TOKEN
    text = ""
    while len(text) < size:
        text += " ".join(rng.choices(_WORDS, k=size // 5)) + " "
    return text[:size]


def _words() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(4096)]


_WORDS = _words()
