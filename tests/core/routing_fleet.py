"""A fleet of plain lists for tests of routing policies: what a policy sees, and nothing behind it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy

from fairlead.core.model import Request
from fairlead.core.routing import make_routing
from fairlead.core.routing.base import Match, RoutingBase, RoutingContext


class PlainFleet:
    """``n`` idle workers called w0, w1, ...; set what a test needs. ``batch_size`` counts as running."""

    def __init__(self, n: int, *, batch_size: Sequence[int] | None = None, **lists: Sequence[float]) -> None:
        self.ids = [f"w{i}" for i in range(n)]
        self.candidates = list(range(n))
        self.batch_size = list(batch_size or [0] * n)
        self.running = list(self.batch_size)
        self.queued = [0] * n
        self.pending_prefill_tokens = [0] * n
        self.kv_used = [0] * n
        self.kv_running = [0] * n
        self.kv_cached = [0] * n
        self.kv_tokens = [500_000] * n
        self.max_num_seqs = [256] * n
        self.context = [0] * n
        self.hit_rate = [0.0] * n
        self.engine_waiting = [0] * n
        self.engine_running = [0] * n
        self.reported_us = [0] * n
        self.before: list[tuple[int, int]] = []
        """By slot: what waits and goes before any request; none: nothing waits."""
        for name, values in lists.items():
            assert len(values) == n, name
            assert hasattr(self, name), name
            setattr(self, name, list(values))

    @property
    def waiting(self) -> int:
        return sum(self.queued) if self.before else 0

    def expected_output(self, client: str) -> float:
        return 125.0

    def waiting_tokens(self, slot: int) -> int:
        return self.before[slot][1]

    def ahead(self, slot: int, client: str, sequences: int, tokens: int) -> tuple[int, int]:
        return self.before[slot]

    def snapshot(self) -> dict[str, object]:
        return {name: copy(values) for name, values in vars(self).items()}


def policy(name: str, *, seed: int = 1, **given: object) -> RoutingBase:
    return make_routing(name, given, RoutingContext(random.Random(seed)))


def request(
    prompt: int = 1_000, *, client: str = "ann", rid: int = 1, session: str = "", keys: Sequence[int] = ()
) -> Request:
    return Request(rid, client, prompt, keys or range(1, prompt // 16 + 1), session=session)


def match(fleet: PlainFleet, tokens: Sequence[int] | None = None, *, blocks: int | None = None) -> Match:
    """The match of one prompt of which slot s caches ``tokens[s]``."""
    tokens = list(tokens or [0] * len(fleet.ids))
    best = max((tokens[s] for s in fleet.candidates), default=0)
    holders = [s for s in fleet.candidates if tokens[s] == best] if best else []
    return Match(tokens, best, holders, best // 16 if blocks is None else blocks)


def chosen(policy: RoutingBase, fleet: PlainFleet, req: Request, m: Match, now: int = 0) -> int:
    """Choose without committing."""
    choice = policy.choose(req, m, fleet, now)
    assert choice is not None
    return choice.slot


def place(policy: RoutingBase, fleet: PlainFleet, req: Request, m: Match, now: int = 0) -> int:
    """Choose and commit, as the dispatcher does; the fleet's numbers stay as they are."""
    slot = chosen(policy, fleet, req, m, now)
    policy.assigned(req, slot, req.prompt_tokens - m.tokens[slot], now)
    return slot
