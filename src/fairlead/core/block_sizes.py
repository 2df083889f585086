"""How many tokens a block of prompts stands for, where each request brings an estimate of its own.

The books of KV tokens need one number for all blocks. It is the median over clients, of the last
request of each: a client's requests, however many, are one voice.
"""

from fairlead.core.model import ClientId

_MOST_CLIENTS = 255
"""Voices that are kept; the ones that changed longest ago go."""


class BlockSizes:
    """Tokens a block, by client. ``first`` is the answer as long as there is no voice."""

    __slots__ = ("_changed", "_median", "_sizes")

    def __init__(self, first: float) -> None:
        self._median = first
        self._sizes: dict[ClientId, float] = {}
        self._changed = False

    def heard(self, client: ClientId, tokens: float) -> None:
        """Take in the block size of a client's request."""
        sizes = self._sizes
        if sizes.get(client) == tokens:
            return
        if client in sizes:
            del sizes[client]
        elif len(sizes) >= _MOST_CLIENTS:
            del sizes[next(iter(sizes))]
        sizes[client] = tokens
        self._changed = True

    @property
    def median(self) -> float:
        """Tokens a block; of two middle voices the larger one, which sends an engine rather too little."""
        if self._changed:
            self._changed = False
            self._median = sorted(self._sizes.values())[len(self._sizes) // 2]
        return self._median
