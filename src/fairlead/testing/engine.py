"""A fake engine: prompts are computed one after the other, then each request gets a token at a time."""

from collections.abc import Sequence
from typing import NamedTuple

from fairlead.core.model import BlockKey, Limits, Request


class Times(NamedTuple):
    """When a request's answer comes, in microseconds, and what the engine found in its cache."""

    first_token_us: int
    end_us: int
    cached_tokens: int


class FakeEngine:
    """One worker. It remembers the blocks of the last prompts, as many as its KV pool has room for.

    ``prefill_tokens_per_s``: how fast prompts are computed, one at a time. ``token_us``: time between
    two output tokens of one request, whatever else runs.
    """

    def __init__(
        self,
        name: str,
        limits: Limits | None = None,
        *,
        prefill_tokens_per_s: int = 10_000,
        token_us: int = 20_000,
    ) -> None:
        self.name = name
        self.limits = limits or Limits(8, 100_000)
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.token_us = token_us
        self._free_us = 0
        """When the prompts that it has are computed."""
        self._blocks: dict[BlockKey, None] = {}
        """Cached blocks, least recently used first."""

    def take(self, now: int, request: Request, output_tokens: int) -> Times:
        """Take a request in and say when its answer will come."""
        cached = request.matched_tokens(self.cached_blocks(request.keys))
        compute_us = (request.prompt_tokens - cached) * 1_000_000 // self.prefill_tokens_per_s
        self._free_us = first = max(now, self._free_us) + max(1, compute_us)
        self._remember(request.keys, int(self.limits.kv_tokens / request.block_tokens))
        return Times(first, first + max(0, output_tokens - 1) * self.token_us, cached)

    def cached_blocks(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of a prompt it caches."""
        return next((n for n, key in enumerate(keys) if key not in self._blocks), len(keys))

    def forget(self) -> None:
        """Drop the cache, as a restart does."""
        self._blocks.clear()
        self._free_us = 0

    def _remember(self, keys: Sequence[BlockKey], most: int) -> None:
        for key in reversed(keys):  # the end of a prompt is evicted before its beginning
            self._blocks.pop(key, None)
            self._blocks[key] = None
        while len(self._blocks) > most:
            del self._blocks[next(iter(self._blocks))]

    def __repr__(self) -> str:
        return f"<FakeEngine {self.name} {len(self._blocks)} blocks>"
