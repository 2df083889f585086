"""The nouns of the core, and their units.

Time is integer microseconds. Tokens are integers. Service is an integer number of units: with the
default costs, one computed prompt token is 1 unit and one output token is 2 (w_e and w_q in the papers).
A block key names a whole prefix, because keys chain: equal keys mean equal prompts up to and
including that block.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fairlead.core.cached_tokens import cached_prompt_tokens

RequestId = int
ClientId = str
WorkerId = str
BlockKey = int
"""A 60-bit integer: it then fits a two-digit Python int (32 bytes), which keeps the index small."""

BLOCK_KEY_BITS = 60


class Request(NamedTuple):
    """What a policy may know of one generation. The true output length is not part of it.

    ``keys`` are the chained keys of the prompt's full blocks, first to last; the tokens after the
    last full block have no key and never match. ``block_tokens`` is the number of tokens a block
    stands for: exact with a tokenizer, a learned average in bytes mode.
    """

    rid: RequestId
    client: ClientId
    prompt_tokens: int
    keys: Sequence[BlockKey] = ()
    block_tokens: float = 16
    max_tokens: int | None = None
    """The most output tokens that the caller allows, if it said so. A limit, not the true length."""
    session: str = ""
    """Name of the session, for session affinity; empty if there is none."""
    arrived_us: int = 0
    streamed: bool = True
    """Whether a ``FirstToken`` will say when its prompt is computed. If not, the core estimates it."""
    sequences: int = 1
    """Sequences that an engine runs for it, at least 1: ``n``, ``best_of``, the prompts of a list.

    ``prompt_tokens`` is the sum over different prompts; ``max_tokens`` is for each sequence.
    """
    reads_cache: bool = True
    """Whether an engine takes cached blocks of its prompt. If not, it computes all of it, and caches it."""

    def matched_tokens(self, blocks: int) -> int:
        """Return the prompt tokens in the first ``blocks`` blocks: at most all but one."""
        return cached_prompt_tokens(self.prompt_tokens, self.block_tokens, blocks)


class Costs(NamedTuple):
    """Prices in service units a token, integers so that ledgers balance exactly ([VTC] section 3)."""

    extend: int = 1
    """w_e: one prompt token that had to be computed."""
    output: int = 2
    """w_q: one output token."""


class Limits(NamedTuple):
    """What one worker can take at once.

    ``max_num_seqs``: sequences in a batch. ``kv_tokens``: tokens of its KV pool. ``queue``: sequences
    that may wait for it at the dispatcher.
    """

    max_num_seqs: int = 256
    kv_tokens: int = 500_000
    queue: int = 10_000
