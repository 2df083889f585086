"""Random runs, and what is counted of them."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.plugins_sglang.bare_sglang import VOCABULARY, Bare

Seen = Callable[[Any], None]


def prompt(length: int, own: object, shared: int = 0, document: object = None) -> list[int]:
    """Return a prompt that begins with ``shared`` tokens of a document."""
    common = random.Random(f"document {document}").choices(range(VOCABULARY), k=shared)
    return common + random.Random(f"own {own}").choices(range(VOCABULARY), k=length - shared)


def drive(
    bare: Bare,
    seed: int,
    seen: Seen = lambda batch: None,
    requests: int = 260,
    outputs: Sequence[int] = (1, 2, 30, 180),
) -> None:
    """Send and abort at random; three clients over documents that the cache cannot all hold.

    ``seen`` is told of the batch of each step.
    """
    rng, sent, names = random.Random(seed), 0, list[str]()
    while sent < requests or bare.live:
        for _ in range(rng.choice((0, 0, 0, 1, 2, 12)) if sent < requests else 0):
            name, client = f"r{sent}.", rng.choice(("alice", "bob", "mallory", "mallory"))
            shared = rng.choice((0, 96, 320, 608))
            length = shared + rng.choice((1, 31, 32, 33, 64, 200))
            bare.send(name, client, prompt(length, name, shared, rng.randrange(6)), rng.choice(outputs))
            names.append(name)
            sent += 1
        if names and rng.random() < 0.08:
            bare.abort(names.pop(rng.randrange(len(names))))
        seen(bare.step())


class Meter:
    """Adds up what a scheduler computes for each client, from its batches alone."""

    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self.work: dict[str | None, int] = {}
        """Tokens computed."""

    def __call__(self, batch: Any) -> None:
        if batch is None:
            return
        counts = batch.extend_lens if batch.forward_mode.is_extend() else [1] * len(batch.reqs)
        for req, count in zip(batch.reqs, counts, strict=True):
            client = self._bare.clients[req.rid]
            self.work[client] = self.work.get(client, 0) + count
