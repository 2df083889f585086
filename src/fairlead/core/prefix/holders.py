"""Which worker slots hold which prefix because of the requests they were given, over all slots at once.

One radix tree for all slots. A ``BlockRun`` is a stretch of blocks without a branch inside and with one
bitmap of holders (bit ``1 << slot``); whoever holds a block holds every block before it, so bitmaps only
lose bits on the way down. Since keys chain, one comparison passes a run, and a prompt is matched in
as many steps as it crosses runs, however many blocks they have. Changes cost a step a run too, not
a hash a block: that is what keeps booking of a long prompt cheap.

If two different prefixes share a key (a 60-bit collision, or keys that do not chain), one slot may
come to hold a run twice. Answers about those prefixes are then wrong, and nothing breaks: a run
stays for as long as a segment ends with it or below it, whatever its bitmap.

Keys are kept in arrays: 8 bytes a block, and nothing for the garbage collector to visit.
"""

from array import array
from collections.abc import Sequence
from typing import TypeAlias

from fairlead.core.model import BlockKey

Keys: TypeAlias = "array[int]"
"""Unsigned 64-bit, typecode ``Q``."""

Step = tuple[int, int]
"""(leading blocks held, bitmap of the slots that hold exactly so many)."""


class BlockRun:
    """Blocks with the same holders. Splits and joins keep the object that has the last block."""

    __slots__ = ("bitmap", "children", "ends", "keys", "parent")

    def __init__(self, keys: Keys, bitmap: int, parent: "BlockRun | None") -> None:
        self.keys = keys
        self.bitmap = bitmap
        self.parent = parent
        self.children: dict[BlockKey, BlockRun] = {}
        """By first key."""
        self.ends = 0
        """Segments of slots that end with the last block here, and refer to this run."""


class HolderTree:
    """Prefixes and who holds them."""

    __slots__ = ("blocks", "root")

    def __init__(self) -> None:
        self.root = BlockRun(array("Q"), 0, None)
        self.blocks = 0

    def match(self, keys: Sequence[BlockKey]) -> list[Step]:
        """Return how many leading blocks each slot holds, longest first; slots without any are left out."""
        steps: list[Step] = []
        node = self.root
        bitmap = 0
        at, total = 0, len(keys)
        while at < total:
            child = node.children.get(keys[at])
            if child is None:
                break
            run = child.keys
            if child.bitmap != bitmap:
                if bitmap:
                    steps.append((at, bitmap & ~child.bitmap))
                bitmap = child.bitmap
            size = len(run)
            if at + size > total or run[-1] != keys[at + size - 1]:
                at += common(run, keys, at)
                break
            at += size
            node = child
        if bitmap:
            steps.append((at, bitmap))
        steps.reverse()
        return steps

    def hold(self, node: BlockRun, keys: Keys, bit: int) -> BlockRun:
        """Set ``bit`` on ``keys``, which continue the last block of ``node`` and lack it.

        Returns the run that ends with the last of them, counting the caller's segment there.
        """
        at, total = 0, len(keys)
        while at < total:
            child = node.children.get(keys[at])
            if child is None:
                rest = keys[at:]
                self.blocks += len(rest)
                if node.bitmap == bit and not node.ends and not node.children:
                    node.keys += rest
                else:
                    child = node.children[rest[0]] = BlockRun(rest, bit, node)
                    node = child
                break
            run = child.keys
            size = len(run)
            if at + size > total or run[-1] != keys[at + size - 1]:
                size = common(run, keys, at)
                child = self.split(child, size)
            child.bitmap |= bit
            self.compress(node)
            at += size
            node = child
        node.ends += 1
        return node

    def release(self, node: BlockRun, count: int, bit: int, keep: bool) -> BlockRun:
        """Clear ``bit`` on the last ``count`` blocks up to the end of ``node``, which a segment left.

        Returns the run that ends before them; with ``keep`` the caller's segment now ends there.
        """
        node.ends -= 1
        while count > 0:
            above = node.parent
            assert above is not None
            size = len(node.keys)
            if size > count:
                if node.bitmap == bit and not node.children and not node.ends:
                    del node.keys[size - count :]
                    self.blocks -= count
                    node.ends += keep
                    return node
                above = self.split(node, size - count)
            node.bitmap &= ~bit
            if node.bitmap or node.children or node.ends:
                self.compress(node)
            else:
                del above.children[node.keys[0]]
                self.blocks -= len(node.keys)
            count -= size
            node = above
        node.ends += keep
        return node

    def end_at(self, node: BlockRun, back: int) -> BlockRun:
        """Return the run that ends ``back`` blocks before the end of ``node``, counting a segment there."""
        while back >= len(node.keys):
            back -= len(node.keys)
            assert node.parent is not None
            node = node.parent
        if back:
            node = self.split(node, len(node.keys) - back)
        node.ends += 1
        return node

    def leave(self, node: BlockRun) -> None:
        """Say that a segment which ended with ``node`` no longer does, and still goes through it."""
        node.ends -= 1
        self.compress(node)

    def split(self, lower: BlockRun, cut: int) -> BlockRun:
        """Cut a run after ``cut`` blocks; return the new upper half."""
        parent = lower.parent
        assert parent is not None
        upper = BlockRun(lower.keys[:cut], lower.bitmap, parent)
        del lower.keys[:cut]
        upper.children[lower.keys[0]] = lower
        parent.children[upper.keys[0]] = upper
        lower.parent = upper
        return upper

    def compress(self, node: BlockRun) -> None:
        """Join ``node`` into its only child if no segment ends with it and the holders are the same."""
        parent = node.parent
        if node.ends or parent is None or len(node.children) != 1:
            return
        (child,) = node.children.values()
        if child.bitmap == node.bitmap:
            child.keys[:0] = node.keys
            child.parent = parent
            parent.children[child.keys[0]] = child


def common(run: Sequence[BlockKey], keys: Sequence[BlockKey], at: int) -> int:
    """Return how many blocks of ``run`` and of ``keys`` from ``at`` on are the same; the first are."""
    low, high = 1, min(len(run), len(keys) - at) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if run[middle - 1] == keys[at + middle - 1]:
            low = middle
        else:
            high = middle
    return low
