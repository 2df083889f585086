"""One pass over many workers: columns of the fleet, the least score, and how ties are broken."""

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

from fairlead.core.routing.base import Fleet


def columns(fleet: Fleet, slots: Sequence[int], *lists: Sequence[float]) -> Sequence[Sequence[float]]:
    """Return ``lists`` (one entry a slot) cut down to the ascending ``slots``, in their order.

    Returned as they are when that is every slot, which is the usual case for the candidates.
    """
    if len(slots) == len(fleet.ids):
        return lists
    if len(slots) == 1:
        only = slots[0]
        return [(values[only],) for values in lists]
    take = itemgetter(*slots)
    return [take(values) for values in lists]


def following(slots: Sequence[int], last: int) -> int:
    """Return the first of the ascending ``slots`` after ``last``, cyclically."""
    i = bisect_right(slots, last)
    return slots[i] if i < len(slots) else slots[0]


def least(slots: Sequence[int], scores: Sequence[float], last: int, *then: Sequence[float]) -> int:
    """Return the slot of the least score (``scores`` aligned to the ascending ``slots``).

    Ties: the least of each of ``then`` (one entry a slot) in turn, then rotation from ``last``.
    """
    low = min(scores)
    if scores.count(low) == 1:
        return slots[scores.index(low)]
    tied = [s for s, score in zip(slots, scores, strict=False) if score == low]
    for values in then:
        low = min([values[s] for s in tied])
        tied = [s for s in tied if values[s] == low]
        if len(tied) == 1:
            break
    return following(tied, last)
