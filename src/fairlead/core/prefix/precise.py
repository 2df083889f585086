"""What one worker holds according to its own cache events."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from fairlead.core.model import BlockKey
from fairlead.core.prefix.bitmaps import run_end


class PreciseBlocks:
    """The blocks a worker reported as stored and not yet as removed.

    A held block is *reachable* if every block before it is held too; only those can be matched.
    Engines evict leaf first, so nearly all held blocks are reachable; the others (*lost*, behind a
    hole) are listed apart, and are moved only when a hole opens or closes.
    """

    __slots__ = ("_children", "_lost", "_parent")

    def __init__(self) -> None:
        self._parent: dict[BlockKey, BlockKey | None] = {}
        """Of every held block; None where it starts a prompt."""
        self._children: dict[BlockKey, BlockKey | set[BlockKey]] = {}
        """Held blocks by parent, held or not. An only child stands alone: a set costs 200 bytes."""
        self._lost: set[BlockKey] = set()

    def __len__(self) -> int:
        """Return the number of held blocks, reachable or not."""
        return len(self._parent)

    def __contains__(self, key: object) -> bool:
        """Return whether ``key`` is held and reachable."""
        return key in self._parent and key not in self._lost

    def reachable(self) -> Iterator[BlockKey]:
        """Iterate over the blocks that can be matched."""
        lost = self._lost
        return (key for key in self._parent if key not in lost)

    def lead(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading ones of ``keys`` (a stretch of one chain) are reachable."""
        holds: Callable[[BlockKey], bool] = self.__contains__ if self._lost else self._parent.__contains__
        return run_end(holds, keys, 0, True) if keys and holds(keys[0]) else 0

    def stored(
        self, keys: Sequence[BlockKey], parent: BlockKey | None
    ) -> tuple[Sequence[BlockKey], list[BlockKey]]:
        """Add ``keys``, a chain after ``parent``; blocks that are held already stay as they are.

        Returns those of ``keys`` that became reachable, in order, and the blocks held before that
        became reachable with them, in any order.
        """
        if not self._lost and (parent is None or parent in self._parent):
            distinct = set(keys)  # a malformed event that repeats a key must not tie a loop
            if len(distinct) == len(keys) and self._parent.keys().isdisjoint(distinct):
                self._append(keys, parent)
                return keys, []
        fresh: list[BlockKey] = []
        revived: list[BlockKey] = []
        for key in keys:
            if key not in self._parent:
                reachable = parent is None or parent in self  # before it is linked: it may name itself
                self._link(key, parent)
                if reachable:
                    fresh.append(key)
                    found = self._below(key)
                    self._lost.difference_update(found)
                    revived += found
                else:
                    self._lost.add(key)
            parent = key
        return fresh, revived

    def evicted(self, keys: Iterable[BlockKey]) -> list[BlockKey]:
        """Remove ``keys``; unknown ones are ignored. Returns the blocks that can no longer be matched."""
        gone: list[BlockKey] = []
        for key in keys:
            if key not in self._parent:
                continue
            self._unlink(key)
            if key in self._lost:
                self._lost.discard(key)
                continue
            gone.append(key)
            if key in self._children:
                found = self._below(key)
                self._lost.update(found)
                gone += found
        return gone

    def check(self) -> None:
        """Raise AssertionError if the links or the lost blocks are not what the held blocks imply."""
        children: dict[BlockKey, set[BlockKey]] = {}
        for key, parent in self._parent.items():
            if parent is not None:
                children.setdefault(parent, set()).add(key)
        assert children == {p: c if isinstance(c, set) else {c} for p, c in self._children.items()}
        assert all(len(c) > 1 for c in self._children.values() if isinstance(c, set))
        reachable = [key for key, parent in self._parent.items() if parent is None]
        for key in reachable:
            reachable += children.get(key, ())
        assert self._lost == self._parent.keys() - set(reachable)

    def _append(self, keys: Sequence[BlockKey], parent: BlockKey | None) -> None:
        """Link new ``keys`` that have no held children, all at C speed."""
        if not keys:
            return
        self._link(keys[0], parent)
        self._parent.update(zip(keys[1:], keys, strict=False))
        self._children.update(pairwise(keys))

    def _link(self, key: BlockKey, parent: BlockKey | None) -> None:
        self._parent[key] = parent
        if parent is None:
            return
        known = self._children.setdefault(parent, key)
        if isinstance(known, set):
            known.add(key)
        elif known != key:
            self._children[parent] = {known, key}

    def _unlink(self, key: BlockKey) -> None:
        parent = self._parent.pop(key)
        if parent is None:
            return
        known = self._children[parent]
        if isinstance(known, set):
            known.discard(key)
            if len(known) == 1:
                self._children[parent] = known.pop()
        else:
            del self._children[parent]

    def _below(self, key: BlockKey) -> list[BlockKey]:
        """Return the held blocks that descend from ``key`` without a hole in between."""
        found: list[BlockKey] = []
        children: BlockKey | set[BlockKey] | None = self._children.get(key)
        pending = [children]
        while pending:
            children = pending.pop()
            for child in children if isinstance(children, set) else () if children is None else (children,):
                found.append(child)
                pending.append(self._children.get(child))
        return found
