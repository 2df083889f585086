"""PrefixIndex: which workers cache how much of a prompt, over all of them at once.

Workers are slots, small integers that the caller hands out. What a worker caches is known from one
of two sources: *approximate*, the requests sent to it, bounded by its cache size with LRU; or
*precise*, the worker's own cache events, plus what requests that wait for it or run on it use.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from fairlead.core.model import BlockKey
from fairlead.core.prefix.bitmaps import BlockBitmaps
from fairlead.core.prefix.holders import BlockRun, HolderTree, Step
from fairlead.core.prefix.ring import Linked
from fairlead.core.prefix.tree import Claim, ClaimState, SlotTree

Notice = Callable[[int, Sequence[BlockKey]], None]
"""``notice(slot, keys)``, called after the change; the index may be asked, but not changed, inside."""


def _ignore(slot: int, keys: Sequence[BlockKey]) -> None:
    """Drop a notice that nobody asked for."""


class PrefixIndex:
    """Block key to worker slots, and per slot what is ready, in use, and least recently used.

    ``on_stored`` is told the first block that a started request makes ready, and every block that
    precise events make matchable. ``on_evicted`` is told every block that ceased to be ready,
    including the descendants of one removed in the middle; it may also name a block that a running
    request keeps ready, so ask ``ready`` again rather than subtract.

    Unknown slots raise KeyError. Keys must chain (see ``keys.py``).
    """

    __slots__ = ("_bitmaps", "_holders", "_on_evicted", "_on_stored", "_trees")

    def __init__(self, on_stored: Notice | None = None, on_evicted: Notice | None = None) -> None:
        self._holders = HolderTree()
        self._bitmaps = BlockBitmaps()
        self._trees: dict[int, SlotTree] = {}
        self._on_stored = on_stored or _ignore
        self._on_evicted = on_evicted or _ignore

    # -- slots -------------------------------------------------------------------------------------

    def add(self, slot: int, capacity_blocks: int, precise: bool = False) -> None:
        """Add an empty slot that caches up to ``capacity_blocks``. ValueError if it is there already."""
        if slot in self._trees:
            raise ValueError(f"slot {slot} is in use; drop it first")
        if slot < 0 or capacity_blocks < 0:
            raise ValueError(f"slot {slot} with {capacity_blocks} blocks: neither may be negative")
        tree = SlotTree(slot, capacity_blocks, self._holders, self._bitmaps)
        tree.clear(precise)
        self._trees[slot] = tree

    def resize(self, slot: int, capacity_blocks: int) -> None:
        """Set how many blocks the slot caches, evicting what is too much."""
        if capacity_blocks < 0:
            raise ValueError(f"slot {slot} with {capacity_blocks} blocks: may not be negative")
        tree = self._trees[slot]
        tree.capacity = capacity_blocks
        self._settle(tree)

    def clear(self, slot: int, precise: bool) -> None:
        """Forget what the slot caches, and say whether ``precise`` events follow.

        Requests that wait for it or run on it keep their claims.
        """
        tree = self._trees[slot]
        tree.clear(precise)
        self._settle(tree)

    def drop(self, slot: int) -> None:
        """Remove the slot, without notices. Claims on it that are still about do nothing from now on."""
        self._trees.pop(slot).drop()

    # -- questions ---------------------------------------------------------------------------------

    def match(self, keys: Sequence[BlockKey]) -> list[Step]:
        """Return (blocks, bitmap of slots) steps: how many leading blocks each slot holds, longest first.

        A slot holds what it caches and what requests waiting for it will make it cache. Each slot
        that holds the first block is in exactly one bitmap (bit ``1 << slot``), the others in none.
        Cost: logarithmic in the blocks for each distinct length, none for blocks past the longest.
        """
        steps = self._holders.match(keys)
        if self._bitmaps.table:
            steps = _longest(steps, self._bitmaps.match(keys))
        return steps

    def ready(self, slot: int, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks the worker caches now, or is computing for a running request."""
        return self._trees[slot].ready(keys)

    def cached(self, slot: int) -> int:
        """Return the blocks that the worker caches; with a precise source, that it reported."""
        tree = self._trees[slot]
        return tree.cached if tree.precise is None else max(len(tree.precise), tree.cached)

    def pinned(self, slot: int) -> int:
        """Return the distinct blocks in use by running requests."""
        return self._trees[slot].pinned

    def assigned(self, slot: int) -> int:
        """Return the distinct blocks in use by waiting and running requests."""
        return self._trees[slot].assigned

    def __len__(self) -> int:
        """Return the blocks remembered over all slots; one known by requests and by events counts twice."""
        return self._holders.blocks + len(self._bitmaps.table)

    def __repr__(self) -> str:
        return f"<PrefixIndex slots={len(self._trees)} blocks={len(self)}>"

    # -- requests ----------------------------------------------------------------------------------

    def claim(self, slot: int, keys: Sequence[BlockKey]) -> Claim:
        """Assign a request to the slot: its blocks count as held there from now on. ``keys`` is kept."""
        return self._trees[slot].claim(keys)

    def start(self, claim: Claim) -> int:
        """Send a claimed request to its worker; return how many leading blocks were ready there.

        All its blocks are ready and pinned from now on; what exceeds the capacity is evicted.
        ValueError unless the claim is queued.
        """
        if claim.state is not ClaimState.QUEUED:
            raise ValueError(f"only a queued claim can start, not {claim}")
        tree = claim.tree
        if tree.dropped:
            claim.state = ClaimState.RUNNING
            return 0
        matched = tree.start(claim)
        self._settle(tree)
        if matched < len(claim.keys):
            self._on_stored(tree.slot, (claim.keys[matched],))
        return matched

    def end(self, claim: Claim) -> None:
        """Say that a started request ended; its blocks stay cached. ValueError unless it is running."""
        if claim.state is not ClaimState.RUNNING:
            raise ValueError(f"only a running claim can end, not {claim}")
        tree = claim.tree
        if tree.dropped:
            claim.state = ClaimState.OVER
            return
        tree.end(claim)
        self._settle(tree)

    def abandon(self, claim: Claim) -> None:
        """Take a claim back, queued or started without work having been done.

        Blocks that no other request made ready or claims are gone. ValueError if it is over.
        """
        if claim.state is ClaimState.OVER:
            raise ValueError(f"cannot abandon {claim}")
        tree = claim.tree
        if tree.dropped:
            claim.state = ClaimState.OVER
            return
        tree.abandon(claim)
        self._settle(tree)

    # -- precise sources -----------------------------------------------------------------------------

    def stored(self, slot: int, keys: Sequence[BlockKey], parent: BlockKey | None) -> None:
        """Take in an event of a precise slot: it holds ``keys``, a chain that continues ``parent``.

        Blocks behind a hole are remembered and match once the hole is filled. If a worker reports
        several times its capacity, removals were lost, and everything reported is forgotten.
        ValueError if the slot is not precise.
        """
        tree = self._precise(slot)
        fresh = tree.stored(keys, parent)
        if tree.overflowed():
            tree.clear(precise=True)
            self._settle(tree)
        elif fresh:
            self._on_stored(slot, fresh)

    def evicted(self, slot: int, keys: Sequence[BlockKey]) -> None:
        """Take in an event of a precise slot: it no longer holds ``keys``.

        ValueError if the slot is not precise.
        """
        tree = self._precise(slot)
        tree.evicted(keys)
        self._settle(tree)

    # -- inside ------------------------------------------------------------------------------------

    def _precise(self, slot: int) -> SlotTree:
        tree = self._trees[slot]
        if tree.precise is None:
            raise ValueError(f"slot {slot} takes no events: its cache is guessed from requests")
        return tree

    def _settle(self, tree: SlotTree) -> None:
        """Evict, then give the notices."""
        if tree.cached > tree.capacity or tree.precise is not None:
            tree.evict()
        gone = tree.unready
        if gone:
            tree.unready = []
            self._on_evicted(tree.slot, gone)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken. Cost: all blocks of all slots."""
        by_request: dict[BlockKey, int] = {}
        by_event: dict[BlockKey, int] = {}
        ends: dict[int, int] = {}
        for tree in self._trees.values():
            for node in tree.segments():
                assert node.run.keys[-1] == node.keys[-1]
                ends[id(node.run)] = ends.get(id(node.run), 0) + 1
                for key in node.keys:
                    by_request[key] = by_request.get(key, 0) + tree.bit
            if tree.precise is not None:
                tree.precise.check()
                for key in tree.precise.reachable():
                    by_event[key] = by_event.get(key, 0) + tree.bit
            _check_tree(tree)
        assert by_event == self._bitmaps.table
        assert by_request == _check_holders(self._holders, ends)


def _longest(one: list[Step], other: list[Step]) -> list[Step]:
    """Combine two matches of one prompt: for each slot the longer one."""
    if not one or not other:
        return one or other
    steps: list[Step] = []
    seen = 0
    for blocks, bitmap in sorted((*one, *other), reverse=True):
        bitmap &= ~seen
        if bitmap:
            seen |= bitmap
            if steps and steps[-1][0] == blocks:
                bitmap |= steps.pop()[1]
            steps.append((blocks, bitmap))
    return steps


def _check_holders(holders: HolderTree, ends: dict[int, int]) -> dict[BlockKey, int]:
    """Check links, bitmaps and compression of the tree of holders; return the bitmap of every block."""
    found: dict[BlockKey, int] = {}
    pending: list[BlockRun] = [holders.root]
    while pending:
        node = pending.pop()
        pending += node.children.values()
        found.update(dict.fromkeys(node.keys, node.bitmap))
        for first, child in node.children.items():
            assert child.parent is node
            assert child.keys[0] == first
            assert child.bitmap
            assert node is holders.root or child.bitmap & ~node.bitmap == 0
        if node is not holders.root:
            assert node.ends == ends.get(id(node), 0)
            assert node.ends or len(node.children) > 1
    assert len(found) == holders.blocks
    return found


def _check_tree(tree: SlotTree) -> None:
    """Check one slot's counts, segments and LRU order."""
    nodes = list(tree.segments())
    ring: list[Linked] = []
    node = tree.root.newer
    while node is not None and node is not tree.root:
        assert node.newer is not None
        assert node.newer.older is node
        ring.append(node)
        node = node.newer
    age = {id(node): position for position, node in enumerate(ring)}
    assert age.keys() == {id(node) for node in nodes if node.done and not node.pins}
    for node in nodes:
        assert node.keys
        assert 0 <= node.done <= len(node.keys)
        assert node.users or node.done == len(node.keys)
        assert node.users >= max(node.pins, sum(child.users for child in node.children.values()))
        assert node.pins >= sum(child.pins for child in node.children.values())
        for first, child in node.children.items():
            assert child.keys[0] == first
            assert child.parent is node
            assert not child.done or node.done == len(node.keys)
            if id(node) in age and id(child) in age:
                assert age[id(child)] < age[id(node)]
    sizes = [(node, len(node.keys)) for node in nodes]
    assert tree.assigned == sum(size for node, size in sizes if node.users)
    assert tree.pinned == sum(size for node, size in sizes if node.pins)
    assert tree.cached == sum(size if node.pins else node.done for node, size in sizes)
    assert tree.cached <= max(tree.pinned, 0 if tree.precise is not None else tree.capacity)
    assert not tree.unready
    for newer, older in pairwise(reversed(ring)):
        assert newer.older is older
