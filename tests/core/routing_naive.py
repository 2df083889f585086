"""The rules of four policies as their definitions read, one object a worker: slow, and easy to check.

Tests compare the policies with these; the benchmark gives its ratios against them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Worker:
    slot: int
    batch_size: int = 0
    queued: int = 0
    pending_prefill_tokens: int = 0
    kv_used: int = 0
    kv_cached: int = 0
    kv_tokens: int = 500_000
    context: int = 0
    hit_rate: float = 0.0
    matched: int = 0
    candidate: bool = True


def pick(workers: list[Worker], key: Callable[[Worker], tuple[float, ...]], last: int) -> int | None:
    """The candidate of the least key; ties rotate: the first slot after ``last``, cyclically."""
    size = len(workers)
    eligible = [w for w in workers if w.candidate]
    return min(eligible, key=lambda w: (*key(w), (w.slot - last - 1) % size)).slot if eligible else None


def lmetric_score(worker: Worker, prompt: int) -> float:
    return max(1, worker.pending_prefill_tokens + prompt - worker.matched) * (worker.batch_size + 1)


def lmetric(workers: list[Worker], prompt: int, last: int) -> int | None:
    return pick(workers, lambda w: (lmetric_score(w, prompt), w.batch_size, w.kv_used), last)


def marginal_score(worker: Worker, prompt: int) -> float:
    """125 tokens of output are usual; half as many stand in the KV of each sequence beside it."""
    decoding = 125 / 2_000 * (worker.context + (200 + 125 / 2) * worker.batch_size)
    extend = prompt - worker.matched
    evicting = min(extend, max(0, worker.kv_cached + extend - worker.kv_tokens))
    overflow = max(0, worker.kv_used + extend - worker.kv_tokens)
    return (
        worker.pending_prefill_tokens
        + overflow
        + decoding
        + (extend + 2 * worker.hit_rate * evicting) * (1 + worker.batch_size / 8)
    )


def marginal(workers: list[Worker], prompt: int, last: int) -> int | None:
    return pick(workers, lambda w: (marginal_score(w, prompt), w.batch_size, w.kv_used), last)


class D2lpm:
    """[DLPM] Algorithm 2 to the letter, for workers that are all candidates all the time."""

    def __init__(self, quantum: int, *, w_e: int = 1, w_q: int = 2, by_product: bool = False) -> None:
        self.quantum, self.w_e, self.w_q, self.by_product = quantum, w_e, w_q, by_product
        self.weights: dict[str, int] = defaultdict(lambda: 1)
        self.deficits: dict[tuple[str, int], int] = defaultdict(int)

    def route(self, client: str, workers: list[Worker], prompt: int, last: int) -> int | None:
        d = self.deficits
        while all(d[client, w.slot] <= 0 for w in workers):
            for w in workers:
                d[client, w.slot] += self.quantum * self.weights[client]
        with_credit = [w for w in workers if d[client, w.slot] > 0]
        if self.by_product:
            slots = {w.slot for w in with_credit}
        else:
            longest = max(w.matched for w in workers)
            holders = {w.slot for w in workers if w.matched == longest}
            slots = {w.slot for w in with_credit if w.slot in holders} or {w.slot for w in with_credit}

        def key(w: Worker) -> tuple[float, ...]:
            if self.by_product:
                return (w.slot not in slots, lmetric_score(w, prompt), w.batch_size, w.kv_used)
            return (w.slot not in slots, w.queued, w.batch_size)

        return pick(workers, key, last)

    def assigned(self, client: str, slot: int, extend: int) -> None:
        self.deficits[client, slot] -= self.w_e * extend

    def decoded(self, client: str, slot: int, tokens: int) -> None:
        self.deficits[client, slot] -= self.w_q * tokens
