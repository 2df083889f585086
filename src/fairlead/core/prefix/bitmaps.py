"""Which worker slots hold a block according to their own events: one bitmap a block.

Events name blocks, not paths, so here every block has an entry of its own. A slot's bit is set on a
block only if it is set on every block before it in the chain. So bitmaps only lose bits along a
prompt: two blocks with equal bitmaps have that bitmap on every block between them, and runs of equal
bitmaps are found by galloping instead of a look-up a block.

A key that two different prefixes share (a 60-bit collision, or a source whose keys do not chain)
makes answers about those prefixes wrong but breaks nothing: no operation expects a bit to be there.
"""

from collections.abc import Callable, Iterable, Sequence

from fairlead.core.model import BlockKey
from fairlead.core.prefix.holders import Step

SHARED_BITMAPS = 4096
"""Most bitmaps remembered for sharing; beyond it the memory of them starts afresh."""


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


class BlockBitmaps:
    """Block key to the bitmap of the slots that hold it. Equal bitmaps are one object, to save memory."""

    __slots__ = ("_shared", "table")

    def __init__(self) -> None:
        self.table: dict[BlockKey, int] = {}
        self._shared: dict[int, int] = {}

    def match(self, keys: Sequence[BlockKey]) -> list[Step]:
        """Return how many leading blocks each slot holds, longest first; slots without any are left out."""
        if not keys:
            return []
        get = self.table.get
        total = len(keys)
        bitmap = get(keys[0])
        at = 0
        step = max(1, total - 1)
        steps: list[Step] = []
        while bitmap is not None:
            # The first try of a run is the length of the run before; run_end, with the bitmap after it.
            low, high, rest = at, total, None
            probe = at + step
            while probe < total:
                found = get(keys[probe])
                if found != bitmap:
                    high, rest = probe, found
                    break
                low = probe
                step += step
                probe += step
            while high - low > 1:
                middle = (low + high) >> 1
                found = get(keys[middle])
                if found == bitmap:
                    low = middle
                else:
                    high, rest = middle, found
            steps.append((high, bitmap if rest is None else bitmap & ~rest))
            step = high - at
            at, bitmap = high, rest
        steps.reverse()
        return steps

    def hold(self, keys: Iterable[BlockKey], bit: int) -> None:
        """Set ``bit`` on ``keys``."""
        table = self.table
        for key in keys:
            bitmap = table.get(key)
            table[key] = bit if bitmap is None else self._share(bitmap | bit)

    def release(self, keys: Iterable[BlockKey], bit: int) -> None:
        """Clear ``bit`` on ``keys``."""
        table = self.table
        for key in keys:
            bitmap = table.get(key, 0)
            if bitmap == bit:
                del table[key]
            elif bitmap & bit:
                table[key] = self._share(bitmap ^ bit)

    def _share(self, bitmap: int) -> int:
        shared = self._shared
        if len(shared) > SHARED_BITMAPS:
            shared.clear()
        return shared.setdefault(bitmap, bitmap)
