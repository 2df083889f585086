"""Keeps the matches of waiting requests current as their worker caches and evicts blocks."""

from collections.abc import Iterable

from fairlead.core.model import BlockKey
from fairlead.core.ordering.base import Matched, QueuedRequest

_Index = dict[BlockKey, dict[int, QueuedRequest]]


class MatchTracker:
    """Waiting requests by the next block that they miss and by the last block that they match.

    A match can only grow when the first missing block is stored and only shrink when the last
    matched one goes, because caches evict leaves first (or report every descendant). So a notice
    costs one look-up a block, and one new match for each request whose match really changes.
    """

    __slots__ = ("_last", "_matched", "_next")

    def __init__(self, matched: Matched) -> None:
        self._matched = matched
        self._next: _Index = {}
        self._last: _Index = {}

    def add(self, item: QueuedRequest, matched: int) -> None:
        """Follow ``item``, of whose blocks the first ``matched`` are cached now."""
        item.matched = matched
        keys = item.keys
        if matched < len(keys):
            _put(self._next, keys[matched], item)
        if matched:
            _put(self._last, keys[matched - 1], item)

    def remove(self, item: QueuedRequest) -> None:
        """Follow ``item`` no longer."""
        matched, keys = item.matched, item.keys
        if matched < len(keys):
            _take(self._next, keys[matched], item)
        if matched:
            _take(self._last, keys[matched - 1], item)

    def stored(self, keys: Iterable[BlockKey]) -> list[QueuedRequest]:
        """Match again who waited for one of ``keys``; return those whose match changed."""
        return self._match_again(self._next, keys)

    def evicted(self, keys: Iterable[BlockKey]) -> list[QueuedRequest]:
        """Match again who held one of ``keys`` last; return those whose match changed."""
        return self._match_again(self._last, keys)

    def _match_again(self, index: _Index, keys: Iterable[BlockKey]) -> list[QueuedRequest]:
        changed = []
        for key in keys:
            items = index.get(key)
            if items is None:
                continue
            for item in tuple(items.values()):
                matched = self._matched(item.keys)
                if matched != item.matched:
                    self.remove(item)
                    self.add(item, matched)
                    changed.append(item)
        return changed

    def check(self, items: Iterable[QueuedRequest]) -> None:
        """Raise AssertionError unless exactly ``items`` are followed, each with its present match."""
        waits = holds = 0
        for item in items:
            matched = item.matched
            assert matched == self._matched(item.keys), item
            if matched < len(item.keys):
                assert self._next[item.keys[matched]][item.seq] is item
                waits += 1
            if matched:
                assert self._last[item.keys[matched - 1]][item.seq] is item
                holds += 1
        assert waits == sum(map(len, self._next.values()))
        assert holds == sum(map(len, self._last.values()))


def _put(index: _Index, key: BlockKey, item: QueuedRequest) -> None:
    items = index.get(key)
    if items is None:
        index[key] = {item.seq: item}
    else:
        items[item.seq] = item


def _take(index: _Index, key: BlockKey, item: QueuedRequest) -> None:
    items = index[key]
    del items[item.seq]
    if not items:
        del index[key]
