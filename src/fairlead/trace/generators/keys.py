"""Keys and lengths of prompts that are never written out.

A generator has no tokens to hash. It only has to keep the promise of chained keys: two prompts have the
same key at a place exactly if they are equal up to there. So text that is new gets keys that were never
handed out before, and text that is shared is the same tuple of keys again.
"""

from typing import NamedTuple

from fairlead.core.model import BLOCK_KEY_BITS, BlockKey
from fairlead.trace.model import TraceError

STEP = 0x9E3779B
"""Distance of two keys: odd and near a golden section, so that keys that follow each other land far apart
in a hash table, as real hashes do. A table would be flatteringly quick with 1, 2, 3."""

LIMIT = 1 << (BLOCK_KEY_BITS - 1)
"""Generated keys stay below it; the upper half is left to whoever clones a workload (``attack``)."""


class Prompt(NamedTuple):
    """A text: how long it is, and the chained keys of its full blocks."""

    tokens: int = 0
    keys: tuple[BlockKey, ...] = ()


EMPTY = Prompt()


class Keys:
    """Hands out keys that are new. One for each pass over a workload."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._next = STEP

    def fresh(self, count: int) -> range:
        """Return ``count`` keys that nobody has. Raises ``TraceError`` after some 3 billion of them."""
        first = self._next
        self._next = after = first + count * STEP
        if after > LIMIT:
            raise TraceError("the workload has more blocks than there are keys; ask for fewer requests")
        return range(first, after, STEP)

    def grow(self, prompt: Prompt, tokens: int) -> Prompt:
        """Return ``prompt`` followed by ``tokens`` tokens that nothing else has in this place."""
        total = prompt.tokens + tokens
        blocks = total // self.block_tokens - len(prompt.keys)
        return Prompt(total, (*prompt.keys, *self.fresh(blocks)))
