"""Stretches of keys in a store, and of ids: what of a sequence is shared with another."""

from collections.abc import Sequence

from fairlead.trace.store import Span


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading elements are equal, by comparing slices: cheap for long equal stretches."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def cut_spans(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    """Return the spans of keys ``start`` to ``stop`` of a sequence that lies in ``spans``."""
    found = []
    for first, last in spans:
        size = last - first
        if max(0, start) < min(size, stop):
            found.append((first + max(0, start), first + min(size, stop)))
        start -= size
        stop -= size
    return found
