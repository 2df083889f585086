"""Three clients with documents of their own, one of whom floods: sent to a real vLLM server, and measured."""

import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import openai

from fairlead.core.model import Costs
from tests.engines.servers import MODEL, Engine, Gateway, get, wait_for

STEPS = "FAIRLEAD_TEST_STEPS"
"""The environment variable that names the folder of logs of steps."""
TELLS = "order:"
"""What begins the client of a request that changes the order."""
OPEN = {"alice": 6, "bob": 6, "mallory": 30}
"""Requests that each client keeps open. Four run at a time, so that everybody always has some waiting."""
DOCUMENTS = 4
"""Of each client, for each engine."""
DOCUMENT_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 640, 64, 8
COUNTERS = ("prefix_cache_queries", "prefix_cache_hits")


class Answer(NamedTuple):
    """One request, as its client saw it."""

    client: str
    number: int
    text: str
    ttft_s: float
    ended_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def service(self) -> int:
        """What was computed for it, in tokens of prompt."""
        costs = Costs()
        return costs.extend * (self.prompt_tokens - self.cached_tokens) + costs.output * self.output_tokens


class Measured(NamedTuple):
    """One run."""

    answers: list[Answer]
    began_s: float
    enough_s: float
    """When the clients stopped asking."""
    ended_s: float
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
        tokens = sum(answer.prompt_tokens + answer.output_tokens for answer in self.answers)
        return tokens / (self.ended_s - self.began_s)

    def ttft_s(self, client: str) -> float:
        """Median time to first token of a client."""
        return statistics.median(answer.ttft_s for answer in self.answers if answer.client == client)

    def summary(self) -> str:
        """Return the figures as a line."""
        ttfts = ", ".join(f"{self.ttft_s(client):.2f}" for client in OPEN)
        return (
            f"{len(self.answers)} answers, {self.tokens_a_second:,.0f} tokens/s, {self.hit_rate:.1%} cached, "
            f"gap seen {self.gap_seen():,}, median TTFT {ttfts} s"
        )

    def texts(self) -> dict[tuple[str, int], str]:
        """Return what was answered to each request."""
        return {(answer.client, answer.number): answer.text for answer in self.answers}

    def gap_seen(self) -> int:
        """Return the largest change of two clients' difference of service, counted as requests end.

        While all clients keep asking, all of them always have requests waiting.
        """
        served = dict.fromkeys(OPEN, 0)
        pairs = list(itertools.combinations(OPEN, 2))
        seen: dict[tuple[str, str], list[int]] = {pair: [0] for pair in pairs}
        for answer in sorted(self.answers, key=lambda answer: answer.ended_s):
            if answer.ended_s <= self.enough_s:
                served[answer.client] += answer.service
                for pair in pairs:
                    seen[pair].append(served[pair[0]] - served[pair[1]])
        return max(max(differences) - min(differences) for differences in seen.values())


def prompt_of(client: str, number: int, documents: int) -> list[int]:
    """Return the tokens of a client's request: one of its documents, and a question of its own."""
    document = random.Random(f"{client} document {random.Random(f'{client} {number}').randrange(documents)}")
    own = random.Random(f"{client} question {number}")
    shared = document.choices(range(300, 2000), k=DOCUMENT_TOKENS)
    return shared + own.choices(range(300, 2000), k=OWN_TOKENS)


def ask(client: openai.OpenAI, name: str, number: int, documents: int, told: str) -> Answer:
    """Send a request that says it is ``told``'s, and wait for its end."""
    began = time.monotonic()
    first, parts, usage = 0.0, [], None
    chunks = client.completions.create(
        model=MODEL,
        prompt=prompt_of(name, number, documents),
        max_tokens=OUTPUT_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "vllm_xargs": {"client_id": told}},
    )
    for chunk in chunks:
        usage = chunk.usage or usage
        if chunk.choices:
            first = first or time.monotonic() - began
            parts.append(chunk.choices[0].text)
    assert usage is not None
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return Answer(
        name,
        number,
        "".join(parts),
        first,
        time.monotonic(),
        usage.prompt_tokens,
        cached or 0,
        usage.completion_tokens,
    )


def counter(engines: Sequence[Engine], name: str) -> float:
    """Return one of vLLM's own counters, added up."""
    found = []
    for engine in engines:
        lines = get(engine.url + "/metrics").decode().splitlines()
        found += [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}_total{{")]
    assert len(found) == len(engines), f"no counter {name}"
    return sum(found)


def tell(engine: Engine, order: str) -> None:
    """Have an engine of ``plugin_switch`` begin anew with another order, its cache empty."""
    more = {"vllm_xargs": {"client_id": TELLS + order}}
    engine.client().completions.create(model=MODEL, prompt=[300] * 4, max_tokens=1, extra_body=more)


def measure(
    engines: Sequence[Engine],
    enough: int,
    through: Gateway | None = None,
    told: str | None = None,
    fold: int = 1,
) -> Measured:
    """Keep all requests open until there are ``enough`` answers, then wait for the rest.

    They go to the only one of ``engines``, or ``through`` a gateway in front of them. Clients keep ``fold``
    times as many open, and have ``fold`` times as many documents.
    Each says that it is its client's, or ``told``'s.
    """
    before = [counter(engines, name) for name in COUNTERS]
    answers: list[Answer] = []
    began = time.monotonic()

    def keep_asking(name: str, numbers: Iterator[int]) -> None:
        client = through.client(name) if through else engines[0].client()
        while len(answers) < enough:
            answers.append(ask(client, name, next(numbers), fold * DOCUMENTS, told or name))

    with ThreadPoolExecutor(fold * sum(OPEN.values())) as pool:
        lanes = []
        for name, count in OPEN.items():
            numbers = itertools.count()
            lanes += [pool.submit(keep_asking, name, numbers) for _ in range(fold * count)]
        for lane in lanes:
            lane.result()
    queries, hits = (counter(engines, name) - was for name, was in zip(COUNTERS, before, strict=True))
    stopped = sorted(answer.ended_s for answer in answers)[enough - 1]
    return Measured(answers, began, stopped, max(answer.ended_s for answer in answers), queries, hits)


def figures_of(client: str, folder: Path) -> dict[str, Any]:
    """Return what a server with the plugin says of a client, once nothing of it runs."""
    path = folder / "figures.json"

    def now() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text())["clients"]
        return found

    wait_for(lambda: client in now(), 10, f"the figures of {client}")
    wait_for(lambda: not now()[client]["running"], 10, "the end of the last request")
    found: dict[str, Any] = now()[client]
    return found


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
