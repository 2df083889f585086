"""Block keys from the ids that a source gives its blocks.

A source's ids may be numbers, local to a session, or hashes of one block without its prefix. Chaining them
makes keys that are equal if and only if all ids up to there are equal.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from xxhash import xxh3_64_intdigest

from fairlead.core.keys import seed_key
from fairlead.core.model import BLOCK_KEY_BITS, BlockKey
from fairlead.trace.faults import Faults

_MASK = (1 << BLOCK_KEY_BITS) - 1
BROKEN_CHAIN = "hash ids that break their chain: given keys of their own"
"""The rule by which an id that follows two different prefixes is mended."""

_PRIVATE = -(1 << 70)
"""Ids of made-up blocks count down from here, away from any source's."""


class Chain:
    """Turns the ids of one source into keys, all in one process and every other equally."""

    def __init__(self, namespace: str = "") -> None:
        self.root: BlockKey = seed_key("trace")
        """What the first block of a prompt continues."""
        self.example = ""
        """The first id that followed two different prefixes."""
        self._namespace = namespace
        self._known: dict[int, tuple[BlockKey, BlockKey]] = {}  # id: key before it, its own key
        self._private = _PRIVATE

    def extend(
        self, before: BlockKey, ids: Iterable[int], labels: Mapping[int, str] | None = None
    ) -> tuple[list[BlockKey], int]:
        """Return the keys of blocks ``ids`` that continue a prefix whose last key is ``before``.

        ``labels`` names blocks whose content is known from elsewhere: equal labels are equal content in
        every namespace. Also returned is how many ids were seen after another prefix before: they break
        their chain, and have a key of their own here.
        """
        keys: list[BlockKey] = []
        broken = 0
        known = self._known
        key = before
        for block in ids:
            found = known.get(block)
            if found is not None and found[0] == key:
                key = found[1]
            else:
                text = (labels and labels.get(block)) or f"{self._namespace} {block}"
                parent, key = key, xxh3_64_intdigest(text.encode(), key) & _MASK
                if found is None:
                    known[block] = (parent, key)
                else:
                    broken += 1
                    self.example = self.example or f"id {block} follows two different prefixes"
            keys.append(key)
        return keys, broken

    def fit(
        self, faults: Faults, where: str, prompt_tokens: int, block: int, ids: Sequence[int]
    ) -> Sequence[int]:
        """Return one id for each full block of the prompt, and count what had to be mended.

        A last id for a partial block is regular, and dropped: such a block is never shared.
        """
        full = prompt_tokens // block
        if len(ids) == full:
            return ids
        problem = f"{len(ids)} hash ids for {prompt_tokens} tokens in blocks of {block}"
        if len(ids) > full:
            if len(ids) > ceil(prompt_tokens / block):
                faults.doubtful(where, "more hash ids than the prompt has blocks: cut off", problem)
            return ids[:full]
        faults.doubtful(where, "fewer hash ids than full blocks: the rest shares nothing", problem)
        first = self._private - (full - len(ids))
        made_up = range(self._private, first, -1)
        self._private = first
        return [*ids, *made_up]
