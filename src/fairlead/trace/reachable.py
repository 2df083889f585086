"""The hit rate that a workload allows: what one cache without a limit, shared by all, would serve."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from fairlead.core.model import BlockKey
from fairlead.trace.model import Trace, Turn


class Reach(NamedTuple):
    """What an endless cache would have served of the first ``requests`` requests."""

    hit_rate: float
    """Cached prompt tokens / prompt tokens, 0 to 1."""
    requests: int
    """How many were looked at."""
    whole: bool
    """Whether that was the whole trace."""


def reach(trace: Trace, limit: int = 1_000_000) -> Reach:
    """Walk the first ``limit`` requests of ``trace`` past an endless cache and return what it serves.

    Requests come session by session in order of their start, each session's turns in their order. Every
    request finds the full blocks of all prompts and answers before it, of its own prompt at most all
    tokens but one. An answer's last token is not in the cache: an engine does not compute it. Memory
    grows with the different blocks of these requests, some 100 bytes each.

    Sessions that overlap in time are taken one after the other, so a request may find what a real system
    would still be computing. That errs on the high side, as a ceiling should.

    Raises ValueError if ``limit`` is below 1.
    """
    if limit < 1:
        raise ValueError(f"at least one request has to be looked at, not {limit}")
    block = trace.block_tokens
    cached: set[BlockKey] = set()
    tokens = hits = seen = 0
    for session in trace.sessions():
        for turn in session.turns:
            if seen == limit:
                return Reach(hits / tokens, seen, whole=False)
            blocks = _cached_blocks(turn.keys, cached)
            hits += min(blocks * block, turn.prompt_tokens - 1)
            tokens += turn.prompt_tokens
            seen += 1
            cached.update(turn.keys[blocks:])
            cached.update(turn.output_keys[: _answered_blocks(turn, block)])
    return Reach(hits / tokens if tokens else 0.0, seen, whole=True)


def reachable(trace: Trace, limit: int = 1_000_000) -> float:
    """Return the hit rate of ``reach``."""
    return reach(trace, limit).hit_rate


def _cached_blocks(keys: Sequence[BlockKey], cached: set[BlockKey]) -> int:
    """Count the leading keys that are cached. Keys chain, so behind one that is not there is none."""
    return bisect_left(keys, True, key=lambda key: key not in cached)


def _answered_blocks(turn: Turn, block: int) -> int:
    """Count the blocks that prompt and computed answer fill beyond the prompt's own."""
    return (turn.prompt_tokens + turn.output_tokens - 1) // block - len(turn.keys)
