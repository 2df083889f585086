"""The paged KV pool of one engine, with its prefix cache.

Only counts and keys are kept, no block numbers: a block is either *cached* (it is full, has a chained
key, and any request with the same prefix may use it) or *private* to the request that fills it. A
cached block that no request uses is *idle* and may be evicted, least recently used first.

Whoever uses a block uses all blocks before it in its chain, and gives them back last one first. So
an idle parent is always younger in the LRU order than its children, eviction takes leaves first,
and blocks that are always used together stay together: they are one *run*, a node of a radix tree.
The costs below are in runs, not blocks. A run is split when a request uses its beginning only.

vLLM behaves the same but for one case: when two requests compute the same block side by side, vLLM
keeps both copies, this pool keeps one (as SGLang does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.core.prefix.holders import common
from fairlead.core.prefix.ring import Linked, link_newest, unlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fairlead.core.model import BlockKey


class BlockRun(Linked):
    """Cached blocks that continue each other and are in use by the same requests; in the ring while idle."""

    __slots__ = ("children", "keys", "parent", "users")

    def __init__(self, keys: list[BlockKey], parent: BlockRun | None, users: int) -> None:
        super().__init__()
        self.keys = keys
        self.parent = parent
        self.users = users
        self.children: dict[BlockKey, BlockRun] = {}
        """By the first key of each."""

    def __repr__(self) -> str:
        return f"<BlockRun {len(self.keys)} blocks, {self.users} users>"


def _common(chain: Sequence[BlockKey], start: int, end: int, keys: list[BlockKey]) -> int:
    """Return how many of ``keys`` the chain has from ``start`` on, before ``end``; the first one it has.

    Keys are chained: where one is equal, all before it are.
    """
    most = min(len(keys), end - start)
    if chain[start + most - 1] == keys[most - 1]:
        return most
    return common(keys, chain, start)


class KVPool:
    """``blocks`` blocks of KV cache, of any size. Callers speak in blocks and keys.

    What a request holds of the cache is named by the last run of it, which ``use`` and ``publish`` return
    and ``release`` takes.
    """

    __slots__ = ("_cached", "_private", "_root", "blocks", "used")

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"a KV pool has at least one block, not {blocks}")
        self.blocks = blocks
        self._root = BlockRun([], None, 1)
        """Of the tree; and of the ring of runs without a user: ``newer`` is the least recently used."""
        self._root.begin_ring()
        self._cached = 0
        self._private = 0
        self.used = 0
        """Blocks that a request holds; idle cached blocks do not count, as in vLLM's usage figure."""

    @property
    def available(self) -> int:
        """Blocks that can be had, by eviction of idle ones where need be."""
        return self.blocks - self.used

    @property
    def unused(self) -> int:
        """Blocks that can be had without an eviction."""
        return self.blocks - self._cached - self._private

    @property
    def cached(self) -> int:
        """Blocks in the prefix cache, in use or idle."""
        return self._cached

    @property
    def root(self) -> BlockRun:
        """The holding of a request that holds nothing."""
        return self._root

    def match(self, chain: Sequence[BlockKey], limit: int | None = None) -> int:
        """Return how many leading blocks of ``chain`` (of its first ``limit``) are cached."""
        end = len(chain) if limit is None else min(limit, len(chain))
        at, run = 0, self._root
        while at < end and (child := run.children.get(chain[at])) is not None:
            run = child
            count = _common(chain, at, end, run.keys)
            at += count
            if count < len(run.keys):
                break
        return at

    def idle_within(self, chain: Sequence[BlockKey], matched: int) -> int:
        """Return how many of the first ``matched`` blocks, all cached, are idle.

        Taking those uses up available blocks although nothing has to be computed for them.
        """
        at, run = 0, self._root
        while at < matched:
            run = run.children[chain[at]]
            if not run.users:
                return matched - at
            at += len(run.keys)
        return 0

    def use(self, chain: Sequence[BlockKey], matched: int) -> BlockRun:
        """Take a reference on the first ``matched`` blocks of ``chain``, all of them cached."""
        at, run = 0, self._root
        while at < matched:
            run = run.children[chain[at]]
            if len(run.keys) > matched - at:
                run = self._split(run, matched - at)
            at += len(run.keys)
            if not run.users:
                unlink(run)
                self.used += len(run.keys)
            run.users += 1
        return run

    def _split(self, run: BlockRun, count: int) -> BlockRun:
        """Split the first ``count`` blocks of a run off, into a run of their own, and return that.

        The rest stays the same object: it keeps its place in the LRU order and the requests that end in it.
        """
        assert run.parent is not None
        upper = BlockRun(run.keys[:count], run.parent, run.users)
        del run.keys[:count]
        upper.parent = run.parent
        run.parent.children[upper.keys[0]] = upper
        upper.children[run.keys[0]] = run
        run.parent = upper
        if not run.users:
            # Both are idle, the rest being older; whoever splits takes the upper one at once.
            link_newest(self._root, upper)
        return upper

    def allocate(self, count: int, tell: bool = True) -> list[BlockKey]:
        """Take ``count`` private blocks; return the keys evicted for them, in order, if to be told.

        Callers check ``available`` first; it is an error to ask for more.
        """
        assert count <= self.available, "allocated more than is available"
        self._private += count
        self.used += count
        excess = self._cached + self._private - self.blocks
        return self._evict(excess, tell) if excess > 0 else []

    def _evict(self, count: int, tell: bool) -> list[BlockKey]:
        """Evict so many idle blocks, the least recently used first, leaves before their parents."""
        self._cached -= count
        evicted: list[BlockKey] = []
        while count:
            run = self._root.newer
            assert isinstance(run, BlockRun)
            keys = run.keys
            if len(keys) > count:
                if tell:
                    evicted += keys[: -count - 1 : -1]
                del keys[-count:]
                return evicted
            if tell:
                evicted += keys[::-1]
            count -= len(keys)
            unlink(run)
            assert run.parent is not None
            del run.parent.children[keys[0]]
        return evicted

    def publish(
        self, held: BlockRun, chain: Sequence[BlockKey], start: int, end: int
    ) -> tuple[BlockRun, int]:
        """Turn a request's private blocks ``start`` to ``end`` of its chain, now full, into cached ones.

        ``held`` names what it holds: the blocks before ``start``. A block that another request published
        meanwhile is shared, and the private copy freed. Returns what it holds now, and from where to
        ``end`` its blocks are new to the cache.
        """
        self._private -= end - start
        at = start
        while at < end and (child := held.children.get(chain[at])) is not None:
            common = _common(chain, at, end, child.keys)
            held = self._split(child, common) if common < len(child.keys) else child
            if held.users:
                self.used -= common
            else:
                unlink(held)
            held.users += 1
            at += common
        if at == end:
            return held, end
        new = list(chain[at:end])
        self._cached += len(new)
        if held.users == 1 and not held.children and held is not self._root:
            held.keys += new  # nobody else has seen the end of it
        else:
            held.children[new[0]] = run = BlockRun(new, held, 1)
            held = run
        return held, at

    def release(self, held: BlockRun, private: int) -> None:
        """Give back ``private`` blocks and the references on what is held, last block first."""
        self._private -= private
        self.used -= private
        run, root = held, self._root
        while run is not root:
            run.users -= 1
            if not run.users:
                link_newest(root, run)
                self.used -= len(run.keys)
            assert run.parent is not None
            run = run.parent

    def clear(self) -> list[BlockKey]:
        """Evict every idle block; return their keys. Blocks in use stay cached."""
        return self._evict(sum(len(run.keys) for run in self._idle()), True)

    def _idle(self) -> Iterator[BlockRun]:
        """Iterate over the runs without a user, least recently used first."""
        run = self._root.newer
        while run is not self._root:
            assert isinstance(run, BlockRun)
            yield run
            run = run.newer

    def keys(self) -> Iterator[BlockKey]:
        """Iterate over the keys of all cached blocks, parents first."""
        for run in self._runs():
            yield from run.keys

    def _runs(self) -> Iterator[BlockRun]:
        stack = list(self._root.children.values())
        while stack:
            run = stack.pop()
            yield run
            stack += run.children.values()

    def check_holders(self, references: dict[BlockKey, int], private: int) -> None:
        """Raise AssertionError if the pool's books differ from what its users say they hold."""
        held = {key: run.users for run in self._runs() if run.users for key in run.keys}
        assert held == references
        assert self._private == private

    def check(self) -> None:
        """Raise AssertionError if blocks were lost or made, or counts disagree."""
        runs = list(self._runs())
        assert self._private >= 0
        assert self._cached == sum(len(run.keys) for run in runs)
        in_use = sum(len(run.keys) for run in runs if run.users)
        assert self.used == in_use + self._private
        assert 0 <= self.used <= self.blocks, f"{self.used} of {self.blocks} blocks used"
        assert self._cached + self._private <= self.blocks
        assert {run for run in runs if not run.users} == set(self._idle())
        for run in runs:
            assert run.keys
            assert run.users >= 0
            for key, child in run.children.items():
                assert child.keys[0] == key
                assert child.parent is run
                assert child.users <= run.users

    def __repr__(self) -> str:
        idle = sum(len(run.keys) for run in self._idle())
        return f"<KVPool used={self.used} idle={idle} of {self.blocks}>"
