"""How much of one prompt each worker caches: the prefix index's answer, as routing policies read it."""

from fairlead.core.cached_tokens import cached_prompt_tokens
from fairlead.core.fleet import FleetState
from fairlead.core.model import Request
from fairlead.core.prefix import PrefixIndex
from fairlead.core.routing.base import Match

_MOST_BITMAPS = 4096
"""Bitmaps whose slots are remembered; then the memory of them starts afresh."""


class Matcher:
    """Asks the index for all workers at once. Nothing is booked."""

    __slots__ = ("_fleet", "_index", "_slots_of")

    def __init__(self, fleet: FleetState, index: PrefixIndex) -> None:
        self._fleet = fleet
        self._index = index
        self._slots_of: dict[int, tuple[int, ...]] = {}

    def match(self, request: Request) -> Match:
        """Return the cached tokens of the prompt by slot, and which candidates cache most."""
        fleet = self._fleet
        tokens = [0] * len(fleet.ids)
        best = blocks_best = 0
        holders: tuple[int, ...] = ()
        candidates = fleet.candidate_bitmap
        prompt, size = request.prompt_tokens, request.block_tokens
        if not request.reads_cache:
            return Match(tokens, 0, (), 0)
        for blocks, bitmap in self._index.match(request.keys):
            matched = cached_prompt_tokens(prompt, size, blocks)
            slots = self._slots(bitmap)
            for slot in slots:
                tokens[slot] = matched
            eligible = bitmap & candidates
            if eligible and matched and not holders:
                best, blocks_best = matched, blocks
                holders = slots if eligible == bitmap else self._slots(eligible)
        return Match(tokens, best, holders, blocks_best)

    def _slots(self, bitmap: int) -> tuple[int, ...]:
        """Return the slots of a bitmap. The same few recur, so the answers are kept."""
        found = self._slots_of.get(bitmap)
        if found is None:
            if len(self._slots_of) >= _MOST_BITMAPS:
                self._slots_of.clear()
            slots = []
            rest = bitmap
            while rest:
                low = rest & -rest
                slots.append(low.bit_length() - 1)
                rest ^= low
            found = self._slots_of[bitmap] = tuple(slots)
        return found
