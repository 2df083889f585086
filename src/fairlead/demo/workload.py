"""The demo's traffic: two clients that share long prefixes, and one that floods.

All of it is synthetic and seeded: every phase gets the same requests at the same times.
"""

import random
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
    documents: int
    """Different long prefixes that its requests start with; 0: nothing is shared."""
    shared_tokens: int
    own_tokens: int
    output_tokens: int
    outstanding: int
    """Most requests that it keeps open; beyond, it waits for one to end, as a pool of threads does."""


CLIENTS = (
    Client("assistant", "chat over 8 long system prompts", 6, 8, 5_000, 80, 30, 64),
    Client("docs", "questions on 6 long documents", 5, 6, 6_000, 120, 40, 64),
    Client("flood", "a batch job without manners", 50, 0, 0, 2_600, 40, 320),
)


class Planned(NamedTuple):
    """One request to be sent ``at`` seconds after the phase begins."""

    at: float
    client: Client
    prompt: str
    max_tokens: int


def plan(seconds: float, seed: int = 1) -> list[Planned]:
    """Return every request of one phase, by time: Poisson arrivals, documents picked evenly."""
    planned: list[Planned] = []
    for number, client in enumerate(CLIENTS):
        rng = random.Random(seed * 1000 + number)
        documents = [_text(rng, client.shared_tokens) for _ in range(client.documents)]
        at = rng.expovariate(client.rate)
        while at < seconds:
            shared = rng.choice(documents) + "\n" if documents else ""
            output = max(4, round(rng.lognormvariate(0, 0.4) * client.output_tokens))
            planned.append(Planned(at, client, shared + _text(rng, client.own_tokens), output))
            at += rng.expovariate(client.rate)
    return sorted(planned, key=lambda p: (p.at, p.client.name))


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
