"""The paged KV pool of one engine, with its prefix cache.

Only counts and keys are kept, no block numbers: a block is either *cached* (it is full, has a chained
key, and any request with the same prefix may use it) or *private* to the request that fills it. A
cached block that no request uses is *idle* and may be evicted; the idle ones wait in LRU order.

Two facts follow from how requests take and give back blocks, and make look-ups cheap:

- whoever uses a block uses all blocks before it in its chain, so reference counts never rise along
  a chain;
- a request gives its blocks back last one first, so an idle parent is always younger in the LRU
  order than its children, and eviction takes leaves first. Hence a cached block implies that its
  parents are cached, and the length of a match can be found by bisection.

vLLM behaves the same but for one case: when two requests compute the same block side by side, vLLM
keeps both copies, this pool keeps one (as SGLang does).
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

from fairlead.core.model import BlockKey


class KVPool:
    """``blocks`` blocks of KV cache, of any size. Callers speak in blocks and keys."""

    __slots__ = ("_cached", "_idle", "_private", "blocks", "used")

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"a KV pool has at least one block, not {blocks}")
        self.blocks = blocks
        self._cached: dict[BlockKey, int] = {}
        """References to each cached block."""
        self._idle: OrderedDict[BlockKey, None] = OrderedDict()
        """Cached blocks without a reference, least recently used first."""
        self._private = 0
        self.used = 0
        """Blocks that a request holds; idle cached blocks do not count, as in vLLM's usage figure."""

    @property
    def available(self) -> int:
        """Blocks that can be had, by eviction of idle ones where need be."""
        return self.blocks - self.used

    @property
    def cached(self) -> int:
        """Blocks in the prefix cache, in use or idle."""
        return len(self._cached)

    def match(self, chain: Sequence[BlockKey], limit: int | None = None) -> int:
        """Return how many leading blocks of ``chain`` (of its first ``limit``) are cached."""
        cached = self._cached
        end = len(chain) if limit is None else min(limit, len(chain))
        if end == 0 or chain[0] not in cached:
            return 0
        return bisect_left(chain, True, 1, end, key=lambda key: key not in cached)

    def idle_within(self, chain: Sequence[BlockKey], matched: int) -> int:
        """Return how many of the first ``matched`` blocks, all cached, are idle.

        Taking those uses up available blocks although nothing has to be computed for them.
        """
        cached = self._cached
        return matched - bisect_left(chain, True, 0, matched, key=lambda key: cached[key] == 0)

    def use(self, chain: Sequence[BlockKey], matched: int) -> None:
        """Take a reference on the first ``matched`` blocks of ``chain``, all of them cached."""
        cached, idle = self._cached, self._idle
        for key in islice(chain, matched):
            references = cached[key]
            if not references:
                del idle[key]
                self.used += 1
            cached[key] = references + 1

    def allocate(self, count: int) -> list[BlockKey]:
        """Take ``count`` private blocks; return the keys evicted for them, in order.

        Callers check ``available`` first; it is an error to ask for more.
        """
        assert count <= self.available, "allocated more than is available"
        self._private += count
        self.used += count
        evicted = []
        for _ in range(len(self._cached) + self._private - self.blocks):
            key, _none = self._idle.popitem(last=False)
            del self._cached[key]
            evicted.append(key)
        return evicted

    def publish(self, chain: Sequence[BlockKey], start: int, end: int) -> list[BlockKey]:
        """Turn a request's private blocks ``start`` to ``end`` of its chain, now full, into cached ones.

        The request keeps a reference on each. A block that another request published meanwhile is
        shared, and the private copy freed. Returns the keys that are new to the cache.
        """
        cached = self._cached
        new = []
        for i in range(start, end):
            key = chain[i]
            references = cached.get(key)
            if references is None:
                new.append(key)
                cached[key] = 1
                continue
            if references:
                self.used -= 1
            else:
                del self._idle[key]
            cached[key] = references + 1
        self._private -= end - start
        return new

    def release(self, chain: Sequence[BlockKey], published: int, private: int) -> None:
        """Give back ``private`` blocks and the references on the first ``published`` ones, last first."""
        cached, idle = self._cached, self._idle
        self._private -= private
        self.used -= private
        for i in range(published - 1, -1, -1):
            key = chain[i]
            references = cached[key] = cached[key] - 1
            if not references:
                idle[key] = None
                self.used -= 1

    def clear(self) -> list[BlockKey]:
        """Evict every idle block; return their keys. Blocks in use stay cached."""
        evicted = list(self._idle)
        for key in evicted:
            del self._cached[key]
        self._idle.clear()
        return evicted

    def check_holders(self, references: dict[BlockKey, int], private: int) -> None:
        """Raise AssertionError unless the pool's books equal what its users say they hold."""
        assert {key: n for key, n in self._cached.items() if n} == references
        assert self._private == private

    def check(self) -> None:
        """Raise AssertionError if blocks were lost or made, or counts disagree."""
        assert self._private >= 0
        assert self.used == len(self._cached) - len(self._idle) + self._private
        assert 0 <= self.used <= self.blocks, f"{self.used} of {self.blocks} blocks used"
        assert len(self._cached) + self._private <= self.blocks
        assert {key for key, references in self._cached.items() if not references} == set(self._idle)
        assert all(references >= 0 for references in self._cached.values())

    def __repr__(self) -> str:
        return f"<KVPool used={self.used} idle={len(self._idle)} of {self.blocks}>"
