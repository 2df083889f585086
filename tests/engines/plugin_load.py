"""Three clients with documents of their own, one of whom floods: sent to a real vLLM server, and measured."""

import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import openai

from tests.engines.servers import MODEL, Engine, get

STEPS = "FAIRLEAD_TEST_STEPS"
"""The environment variable that names the folder of logs of steps."""
TELLS = "order:"
"""What begins the client of a request that changes the order."""
OPEN = {"alice": 6, "bob": 6, "mallory": 30}
"""Requests that each client keeps open. Four run at a time, so that everybody always has some waiting."""
DOCUMENTS = 4
"""Of each client."""
DOCUMENT_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 640, 64, 8


class Answer(NamedTuple):
    """One request, as its client saw it."""

    client: str
    number: int
    text: str
    ttft_s: float


class Measured(NamedTuple):
    """One run."""

    answers: list[Answer]
    seconds: float
    queries: float
    hits: float
    """Of vLLM's own counters: prompt tokens looked up in the prefix cache, and found."""

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were cached."""
        return self.hits / self.queries

    @property
    def tokens_a_second(self) -> float:
        """Prompt and output tokens of the requests that ended."""
        each = DOCUMENT_TOKENS + OWN_TOKENS + OUTPUT_TOKENS
        return len(self.answers) * each / self.seconds

    def ttft_s(self, client: str) -> float:
        """Median time to first token of a client."""
        return statistics.median(answer.ttft_s for answer in self.answers if answer.client == client)

    def texts(self) -> dict[tuple[str, int], str]:
        """Return what was answered to each request."""
        return {(answer.client, answer.number): answer.text for answer in self.answers}


def prompt_of(client: str, number: int) -> list[int]:
    """Return the tokens of a client's request: a document of the client's, and a question of its own."""
    document = random.Random(f"{client} document {random.Random(f'{client} {number}').randrange(DOCUMENTS)}")
    own = random.Random(f"{client} question {number}")
    shared = document.choices(range(300, 2000), k=DOCUMENT_TOKENS)
    return shared + own.choices(range(300, 2000), k=OWN_TOKENS)


def ask(client: openai.OpenAI, name: str, number: int) -> Answer:
    """Send a request and wait for its end."""
    began = time.monotonic()
    first, parts = 0.0, []
    chunks = client.completions.create(
        model=MODEL,
        prompt=prompt_of(name, number),
        max_tokens=OUTPUT_TOKENS,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True, "vllm_xargs": {"client_id": name}},
    )
    for chunk in chunks:
        if chunk.choices:
            first = first or time.monotonic() - began
            parts.append(chunk.choices[0].text)
    return Answer(name, number, "".join(parts), first)


def counter(engine: Engine, name: str) -> float:
    """Return one of vLLM's own counters."""
    for line in get(engine.url + "/metrics").decode().splitlines():
        if line.startswith(f"vllm:{name}_total{{"):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no counter {name}")


def measure(engine: Engine, enough: int, order: str = "") -> Measured:
    """Keep all requests open until there are ``enough`` answers, then wait for the rest. Tells ``order``."""
    client = engine.client()
    if order:
        tell = {"vllm_xargs": {"client_id": TELLS + order}}
        client.completions.create(model=MODEL, prompt=[300] * 4, max_tokens=1, extra_body=tell)
    before = [counter(engine, name) for name in ("prefix_cache_queries", "prefix_cache_hits")]
    answers: list[Answer] = []
    began = time.monotonic()

    def keep_asking(name: str, numbers: Iterator[int]) -> None:
        while len(answers) < enough:
            answers.append(ask(client, name, next(numbers)))

    threads = []
    for name, count in OPEN.items():
        numbers = itertools.count()
        threads += [threading.Thread(target=keep_asking, args=(name, numbers)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    after = [counter(engine, name) for name in ("prefix_cache_queries", "prefix_cache_hits")]
    return Measured(answers, took, after[0] - before[0], after[1] - before[1])


def widest_gap(steps: Path) -> float:
    """Return the largest change of two clients' difference of service while both had requests waiting."""
    rows: Sequence[Mapping[str, Sequence[float]]] = [
        json.loads(line) for line in steps.read_text().splitlines()
    ]
    widest = 0.0
    for one, other in itertools.combinations(OPEN, 2):
        low = high = None
        for row in rows:
            if one not in row or other not in row:
                continue
            if not (row[one][1] and row[other][1]):
                low = high = None
                continue
            difference = row[one][0] - row[other][0]
            low = difference if low is None else min(low, difference)
            high = difference if high is None else max(high, difference)
            widest = max(widest, high - low)
    return widest
