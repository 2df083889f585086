"""Which worker slots hold a block, for every block, as one bit mask a block.

A slot's bit is set on a block only if it is set on every block before it in the chain. So masks
only lose bits along a prompt: two blocks with equal masks have that mask on every block between
them, and runs of equal masks are found by galloping instead of a look-up a block. The same runs
let whole stretches be changed by single calls into the dict.

A key that two different prefixes share (a 60-bit collision, or a caller whose keys do not chain)
makes answers about those prefixes wrong but breaks nothing: no operation expects a bit to be there.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

from fairlead.core.model import BlockKey

Step = tuple[int, int]
"""(leading blocks held, mask of the slots that hold exactly so many)."""

SHARED_MASKS = 4096
"""Most masks remembered for sharing; beyond it the memory of them starts afresh."""


def run_end(get: Callable[[BlockKey], object], keys: Sequence[BlockKey], at: int, value: object) -> int:
    """Return the first index after ``at`` where ``get(key)`` is no longer ``value``, or ``len(keys)``.

    ``get(keys[at])`` is ``value``, and never comes back to it once it has changed. Logarithmic in
    the length of the run; a single look-up where the run reaches the end.
    """
    high = len(keys)
    if get(keys[-1]) == value:
        return high
    step = 1
    probe = at + 1
    while probe < high:
        if get(keys[probe]) != value:
            high = probe
            break
        at = probe
        step += step
        probe += step
    while high - at > 1:
        middle = (at + high) >> 1
        if get(keys[middle]) == value:
            at = middle
        else:
            high = middle
    return high


class BlockMasks:
    """Block key to the mask of the slots that hold it. Equal masks are one object, to save memory."""

    __slots__ = ("_shared", "table")

    def __init__(self) -> None:
        self.table: dict[BlockKey, int] = {}
        self._shared: dict[int, int] = {}

    def match(self, keys: Sequence[BlockKey]) -> list[Step]:
        """Return how many leading blocks each slot holds, longest first; slots without any are left out."""
        if not keys:
            return []
        get = self.table.get
        mask = get(keys[0])
        at = 0
        steps: list[Step] = []
        while mask is not None:
            at = run_end(get, keys, at, mask)
            rest = get(keys[at]) if at < len(keys) else None
            steps.append((at, mask if rest is None else mask & ~rest))
            mask = rest
        steps.reverse()
        return steps

    def hold(self, keys: Sequence[BlockKey], bit: int) -> None:
        """Set ``bit`` on ``keys``: blocks of one chain, in its order, gaps allowed."""
        table = self.table
        at, end = 0, len(keys)
        while at < end:
            mask = table.get(keys[at])
            if mask is None:  # nobody holds this block, so nobody holds a later one
                table.update(dict.fromkeys(keys[at:] if at else keys, bit))
                return
            stop = run_end(table.get, keys, at, mask)
            if not mask & bit:
                table.update(dict.fromkeys(keys[at:stop], self._share(mask | bit)))
            at = stop

    def release(self, keys: Sequence[BlockKey], bit: int) -> None:
        """Clear ``bit`` on ``keys``: blocks of one chain, in its order, gaps allowed."""
        table = self.table
        at, end = 0, len(keys)
        while at < end:
            mask = table.get(keys[at])
            if mask is None:
                return
            stop = run_end(table.get, keys, at, mask)
            if mask == bit:
                deque(map(table.pop, keys[at:stop], repeat(None)), maxlen=0)
            elif mask & bit:
                table.update(dict.fromkeys(keys[at:stop], self._share(mask ^ bit)))
            at = stop

    def hold_each(self, keys: Iterable[BlockKey], bit: int) -> None:
        """Set ``bit`` on ``keys``, in any order."""
        table = self.table
        for key in keys:
            table[key] = self._share(table.get(key, 0) | bit)

    def release_each(self, keys: Iterable[BlockKey], bit: int) -> None:
        """Clear ``bit`` on ``keys``, in any order."""
        table = self.table
        for key in keys:
            mask = table.get(key, 0)
            if mask == bit:
                del table[key]
            elif mask & bit:
                table[key] = self._share(mask ^ bit)

    def _share(self, mask: int) -> int:
        shared = self._shared
        if len(shared) > SHARED_MASKS:
            shared.clear()
        return shared.setdefault(mask, mask)
