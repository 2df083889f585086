"""What one worker caches or is about to: a radix tree of block runs, with claims, pins and LRU.

A request is *claimed* here while it waits for the worker, *pinned* while it runs on it, and leaves
its prompt *cached* when it ends. A block is **ready** if the worker caches it now, as far as we
know: a finished request computed it and it was not evicted since, or a running request uses it.

The tree is path-compressed: a ``Segment`` is a run of blocks. Since keys chain, equality of one key
means equality of the whole prefix; one comparison passes a segment, and the point where a prompt
leaves one is found by bisection. All costs are in segments, not blocks, but for the blocks that
are added or removed.

Capacity is the worker's KV pool in blocks. What is ready beyond it is evicted, least recently used
first and leaf before parent; blocks in use by running requests are never evicted. A claim does not
protect anything: the engine does not know of a request that waits elsewhere.
"""

from array import array
from collections.abc import Iterator, Sequence
from enum import Enum

from fairlead.core.model import BlockKey
from fairlead.core.prefix.bitmaps import BlockBitmaps
from fairlead.core.prefix.holders import BlockRun, HolderTree, Keys, common
from fairlead.core.prefix.precise import PreciseBlocks
from fairlead.core.prefix.ring import Linked, link_newest, unlink

PRECISE_SLACK = 4
"""A precise source that reports more than so many times the worker's capacity has lost removals."""


class Segment(Linked):
    """A run of blocks without a branch inside. Links go to the parent and the children.

    It is in the LRU ring exactly if it has ``done`` blocks and no ``pins``.
    """

    __slots__ = ("children", "done", "keys", "parent", "pins", "run", "users")

    def __init__(self, keys: Keys, run: BlockRun, parent: "Segment | None", users: int = 0) -> None:
        super().__init__()
        self.keys = keys
        self.run = run
        """Where the last block is in the tree of holders; a run ends there."""
        self.parent = parent
        self.children: dict[BlockKey, Segment] = {}
        """By first key."""
        self.users = users
        """Claims, waiting and running, whose prompt goes through here."""
        self.pins = 0
        """Those of them that run."""
        self.done = 0
        """Leading blocks cached from ended requests. All blocks are ready while pinned, else these."""

    def __repr__(self) -> str:
        return f"<Segment {len(self.keys)} blocks, done={self.done} users={self.users} pins={self.pins}>"


class ClaimState(Enum):
    """The life of a claim."""

    QUEUED = "queued"
    RUNNING = "running"
    OVER = "over"


class Claim:
    """One request's hold on the prefix of its slot; made by ``claim`` and passed back."""

    __slots__ = ("keys", "leaf", "slot", "state", "tree")

    def __init__(self, tree: "SlotTree", keys: Sequence[BlockKey], leaf: Segment) -> None:
        self.slot = tree.slot
        self.keys = keys
        self.state = ClaimState.QUEUED
        self.tree = tree
        self.leaf = leaf
        """Segment that ends with the prompt's last block. It stays so: splits keep the lower half."""

    def __repr__(self) -> str:
        return f"<Claim slot={self.slot} {len(self.keys)} blocks {self.state.value}>"


class SlotTree:
    """All of one slot. ``holders`` and ``bitmaps`` are shared by all slots; this one owns a bit of them.

    With ``precise`` set, the tree keeps only what waiting and running requests use; the rest is what
    the worker's events say.
    """

    __slots__ = (
        "assigned",
        "bit",
        "bitmaps",
        "cached",
        "capacity",
        "dropped",
        "holders",
        "pinned",
        "precise",
        "root",
        "slot",
        "unready",
    )

    def __init__(self, slot: int, capacity: int, holders: HolderTree, bitmaps: BlockBitmaps) -> None:
        self.slot = slot
        self.bit = 1 << slot
        self.holders = holders
        """Who holds what by the requests given."""
        self.bitmaps = bitmaps
        """Who holds what by precise events."""
        self.capacity = capacity
        self.root = Segment(array("Q"), holders.root, None)
        """Sentinel of the tree, and of the LRU ring: ``newer`` is the oldest, ``older`` the newest."""
        self.root.begin_ring()
        self.cached = 0
        """Ready blocks of the tree."""
        self.pinned = 0
        """Distinct blocks that running requests use."""
        self.assigned = 0
        """Distinct blocks that waiting or running requests use."""
        self.precise: PreciseBlocks | None = None
        self.unready: list[BlockKey] = []
        """Blocks that ceased to be ready since this was last taken."""
        self.dropped = False

    # -- requests ----------------------------------------------------------------------------------

    def claim(self, keys: Sequence[BlockKey]) -> Claim:
        """Hold ``keys`` for a waiting request."""
        node = self.root
        at, total = 0, len(keys)
        while at < total:
            child = node.children.get(keys[at])
            if child is None:
                node = self._grow(node, array("Q", keys[at:] if at else keys))
                break
            size = len(child.keys)
            if at + size > total or child.keys[-1] != keys[at + size - 1]:
                child = self._split(child, common(child.keys, keys, at))
                size = len(child.keys)
            if not child.users:
                self.assigned += size
            child.users += 1
            at += size
            node = child
        return Claim(self, keys, node)

    def start(self, claim: Claim) -> int:
        """Pin a waiting claim, and make its blocks ready. Returns how many leading ones were ready."""
        matched = 0
        node = claim.leaf
        while node.parent is not None:
            size = len(node.keys)
            if node.pins:
                matched += size
            else:
                if node.done:
                    matched += node.done
                    unlink(node)
                self.cached += size - node.done
                self.pinned += size
            node.pins += 1
            node = node.parent
        if self.precise is not None:
            matched = max(matched, self.precise.lead(claim.keys))
        claim.state = ClaimState.RUNNING
        return matched

    def end(self, claim: Claim) -> None:
        """Release a running claim; its blocks stay cached, as the most recently used."""
        node = claim.leaf
        below: Segment | None = None
        while node.parent is not None:
            parent = node.parent
            node.pins -= 1
            node.users -= 1
            node.done = len(node.keys)
            if not node.users:
                self.assigned -= node.done
            if not node.pins:
                self.pinned -= node.done
                if below is not None and len(node.children) == 1 and not node.users:
                    self._absorb_parent(below)
                    node = below
                else:
                    link_newest(self.root, node)
                below = None if node.users else node
            node = parent
        claim.state = ClaimState.OVER

    def abandon(self, claim: Claim) -> None:
        """Release a claim without effect: what only it made ready, or only it holds, is gone."""
        running = claim.state is ClaimState.RUNNING
        node = claim.leaf
        while node.parent is not None:
            parent = node.parent
            node.users -= 1
            if not node.users:
                self.assigned -= len(node.keys)
            if running:
                node.pins -= 1
                if not node.pins:
                    self._unready(node)
            if not node.users:
                self._trim(node)
            node = parent
        claim.state = ClaimState.OVER

    def ready(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of ``keys`` are ready."""
        node = self.root
        at, total = 0, len(keys)
        while at < total:
            child = node.children.get(keys[at])
            if child is None:
                break
            run = child.keys
            size = len(run) if child.pins else child.done
            if size < len(run) or at + size > total or run[-1] != keys[at + size - 1]:
                if size:
                    at += min(size, common(run, keys, at))
                break
            at += size
            node = child
        return at if self.precise is None else max(at, self.precise.lead(keys))

    # -- capacity ----------------------------------------------------------------------------------

    def evict(self) -> None:
        """Evict what is cached beyond the capacity and not pinned; a precise slot keeps nothing cached."""
        excess = self.cached - (self.capacity if self.precise is None else 0)
        while excess > 0:
            node = self.root.newer
            assert isinstance(node, Segment)
            if node is self.root:
                return  # all that is left is pinned
            cut = max(0, node.done - excess)
            gone = node.keys[cut : node.done]
            if not cut:
                unlink(node)
            node.done = cut
            excess -= len(gone)
            self.cached -= len(gone)
            self.unready += gone if self.precise is None else gone[self.precise.lead(gone) :]
            if not node.users:
                self._trim(node)

    def clear(self, precise: bool) -> None:
        """Forget what is cached; waiting and running requests keep what they use.

        From now on the cache is known by events if ``precise``, else by the requests sent.
        """
        if self.precise is not None:
            self.unready += self.precise.reachable()
            self.bitmaps.release(self.precise.reachable(), self.bit)
        self.precise = None
        capacity, self.capacity = self.capacity, 0
        self.evict()
        self.capacity = capacity
        for node in self.segments():
            node.done = 0
        if precise:
            self.precise = PreciseBlocks()

    def drop(self) -> None:
        """Forget everything, claims included; those still held may be passed in and do nothing."""
        for node in reversed(list(self.segments())):  # leaf first
            self.holders.release(node.run, len(node.keys), self.bit, keep=False)
            node.children.clear()  # the links are cycles; without them memory is free at once
            node.newer = node.older = None
        if self.precise is not None:
            self.bitmaps.release(self.precise.reachable(), self.bit)
            self.precise = None
        self.root.children.clear()
        self.root.newer = self.root.older = None
        self.cached = self.pinned = self.assigned = 0
        self.dropped = True

    # -- precise sources -----------------------------------------------------------------------------

    def stored(self, keys: Sequence[BlockKey], parent: BlockKey | None) -> list[BlockKey]:
        """Take in an event; return the blocks that can be matched now and could not before."""
        assert self.precise is not None
        fresh, revived = self.precise.stored(keys, parent)
        self.bitmaps.hold(fresh, self.bit)
        self.bitmaps.hold(revived, self.bit)
        return [*fresh, *revived]

    def evicted(self, keys: Sequence[BlockKey]) -> None:
        """Take in an event."""
        assert self.precise is not None
        gone = self.precise.evicted(keys)
        self.bitmaps.release(gone, self.bit)
        self.unready += gone

    def overflowed(self) -> bool:
        """Return whether events claim more than the worker can plausibly hold."""
        return self.precise is not None and len(self.precise) > PRECISE_SLACK * self.capacity

    # -- inside ------------------------------------------------------------------------------------

    def segments(self) -> Iterator[Segment]:
        """Iterate over the segments, parents first."""
        pending = list(self.root.children.values())
        while pending:
            node = pending.pop()
            pending += node.children.values()
            yield node

    def _grow(self, node: Segment, keys: Keys) -> Segment:
        """Add blocks below ``node`` for one user, to whom ``node`` is counted already."""
        self.assigned += len(keys)
        if node.users == 1 and not node.children and node.parent is not None:
            node.run.ends -= 1  # nobody else's prompt ends here: a conversation stays one segment
            node.run = self.holders.hold(node.run, keys, self.bit)
            node.keys += keys
            return node
        child = Segment(keys, self.holders.hold(node.run, keys, self.bit), node, users=1)
        node.children[keys[0]] = child
        return child

    def _split(self, lower: Segment, cut: int) -> Segment:
        """Cut a segment after ``cut`` blocks. Handles stay on ``lower``; the new upper half is returned."""
        parent = lower.parent
        assert parent is not None
        run = self.holders.end_at(lower.run, len(lower.keys) - cut)
        upper = Segment(lower.keys[:cut], run, parent, lower.users)
        del lower.keys[:cut]
        upper.pins = lower.pins
        upper.done = min(cut, lower.done)
        lower.done -= upper.done
        upper.children[lower.keys[0]] = lower
        parent.children[upper.keys[0]] = upper
        lower.parent = upper
        newer = lower.newer
        if newer is not None:  # the halves are neighbours in the LRU, the leaf being older
            upper.older, upper.newer = lower, newer
            lower.newer = newer.older = upper
            if not lower.done:
                unlink(lower)
        return upper

    def _unready(self, node: Segment) -> None:
        """Take back readiness that came from pins alone."""
        size = len(node.keys)
        self.pinned -= size
        self.cached -= size - node.done
        gone = node.keys[node.done :]
        self.unready += gone if self.precise is None else gone[self.precise.lead(gone) :]
        if node.done:
            link_newest(self.root, node)

    def _trim(self, node: Segment) -> None:
        """Remove the blocks of an unused segment that are not cached."""
        count = len(node.keys) - node.done
        if not count:
            return
        node.run = self.holders.release(node.run, count, self.bit, keep=node.done > 0)
        if node.done:
            del node.keys[node.done :]
        else:
            assert node.parent is not None
            del node.parent.children[node.keys[0]]

    def _absorb_parent(self, node: Segment) -> None:
        """Join an idle segment with its idle parent, whose only child it is; ``node`` stays, in the LRU."""
        parent = node.parent
        assert parent is not None
        assert parent.parent is not None
        self.holders.leave(parent.run)
        node.keys[:0] = parent.keys
        node.done += parent.done
        node.parent = parent.parent
        node.parent.children[node.keys[0]] = node
