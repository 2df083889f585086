"""Tells an ordering policy what happens in an engine. Knows no engine and decides nothing.

The engine's hooks say that a request arrived, was taken out of the queue, put back, admitted, preempted, or
ended, and which blocks entered the cache. The policy says which request goes next.

The engine does not have to report evictions. An eviction only makes matches shorter. So a request whose match
became shorter unseen comes up too early, never too late; then its match is looked up again and corrected.

Charging, in tokens of prompt work: a request is charged what it has to compute when it is admitted. One that
was preempted had ``computed`` tokens in KV; when it is resumed with ``cached`` of them left, it is charged
the difference: what is computed a second time. One that ends early gets back what was not computed.

The engine's figures are checked here. One that cannot be true (more tokens cached than the prompt has, say)
is left out: the book's own estimate is used, the figures count it, and the log says so once. A request is
never charged less than nothing, so that no wrong figure turns into credit.
"""

import logging
import reprlib
from collections.abc import Iterator, Mapping, Sequence

from fairlead.core.model import BlockKey, ClientId, Request
from fairlead.core.ordering.base import Matched, Ordering, QueuedRequest
from fairlead.core.outside import MOST_TOKENS, MOST_US, whole
from fairlead.plugins.figures import ClientFigures, Figures

WAITING, ADMITTED, PREEMPTED = range(3)
_log = logging.getLogger(__name__)


class Entry:
    """A request in the engine."""

    __slots__ = ("charged", "client", "computed", "figures", "item", "paid", "queued", "state")

    def __init__(self, item: QueuedRequest, figures: ClientFigures) -> None:
        self.item = item
        self.client: ClientId = item.client
        self.figures = figures
        self.state = WAITING
        self.queued = False
        """Whether it is in the policy's queue now."""
        self.paid = 0
        """Leading tokens whose computation was charged as prompt work, or that were cached."""
        self.charged = 0
        """Tokens of prompt work that its client was charged for it, less what it got back."""
        self.computed = 0
        """Tokens in KV when it was last preempted."""


class Book:
    """The queue of one engine, and what its clients are charged.

    ``matched`` says how many leading blocks of a prompt the engine caches now; it is asked only for policies
    that go by it.
    """

    def __init__(self, ordering: Ordering, matched: Matched, figures: Figures) -> None:
        self.ordering = ordering
        self.figures = figures
        self.entries: dict[str, Entry] = {}
        self._matched = matched
        self._queue = ordering.make_queue(0, matched)
        self._arrivals = 0
        self._tracks = ordering.uses_match
        self._doubted: set[str] = set()
        """Kinds of figures that the log has told of."""

    def arrived(
        self,
        name: str,
        client: ClientId,
        prompt_tokens: int,
        keys: Sequence[BlockKey] = (),
        block_tokens: int = 1,
        now_us: int = 0,
    ) -> Entry:
        """Queue a request. ``keys`` name the full blocks of its prompt. KeyError if the name is in use."""
        if name in self.entries:
            raise KeyError(f"request {name!r} is in the engine already")
        guess = int(len(keys) * block_tokens)
        prompt_tokens = self._checked("prompt tokens of a request", prompt_tokens, MOST_TOKENS, guess)
        now_us = self._checked("time of arrival in us", now_us, MOST_US, 0)
        request = Request(self._arrivals, client, prompt_tokens, keys, block_tokens, arrived_us=now_us)
        item = QueuedRequest(request, self._arrivals)
        self._arrivals += 1
        entry = self.entries[name] = Entry(item, self.figures.of(client))
        entry.figures.waiting += 1
        self._push(entry)
        return entry

    def head(self) -> QueuedRequest | None:
        """Return who goes next, without taking it out; None if the queue is empty."""
        queue = self._queue
        while True:
            item = queue.head()
            if item is None or not self._tracks or not item.matched:
                return item
            if self._matched(item.keys) >= item.matched:
                return item
            queue.cache_evicted((item.keys[item.matched - 1],))

    def take(self, entry: Entry) -> None:
        """Take a request out of the queue: to be admitted, or put back."""
        self._queue.discard(entry.item)
        entry.queued = False

    def put_back(self, entry: Entry) -> None:
        """Queue a request again that was taken and could not be admitted. Its arrival stays what it was."""
        self._push(entry)

    def _push(self, entry: Entry) -> None:
        item = entry.item
        self._queue.push(item, self._matched(item.keys) if self._tracks else 0)
        entry.queued = True

    def stored(self, keys: Sequence[BlockKey]) -> None:
        """Say which blocks entered the cache: all of them.

        The first block of a run is not enough here. Evictions are not reported, so a request may still wait
        for the block behind its old match although some blocks before that are gone.
        """
        self._queue.cache_stored(keys)

    def admitted(self, entry: Entry, tokens: int, cached: int) -> None:
        """Say that a request runs: ``tokens`` have to be in KV before it decodes, ``cached`` of them are.

        Said again of a request that runs, it means that its prompt has grown.
        """
        if entry.queued:
            self.take(entry)
        own = max(entry.paid, entry.item.request.prompt_tokens)
        tokens = self._checked("tokens of an admitted request", tokens, MOST_TOKENS, own)
        figures, client = entry.figures, entry.client
        if entry.state == PREEMPTED:
            cached = self._cached(cached, tokens, entry.computed)
            again = max(entry.computed - cached, -entry.charged)
            self.ordering.corrected(0, client, 0, again)
            entry.charged += again
            figures.extend_tokens += again
            figures.preempted -= 1
            figures.running += 1
        elif entry.state == WAITING:
            cached = self._cached(cached, tokens, entry.item.matched_tokens)
            self.ordering.admitted(0, entry.item, tokens - cached)
            entry.charged += tokens - cached
            figures.admitted += 1
            figures.prompt_tokens += tokens
            figures.cached_tokens += cached
            figures.extend_tokens += tokens - cached
            figures.waiting -= 1
            figures.running += 1
        else:
            grown = tokens - self._cached(cached, tokens, entry.paid)
            self.ordering.corrected(0, client, grown, grown)
            entry.charged += grown
            figures.prompt_tokens += grown
            figures.extend_tokens += grown
        entry.state = ADMITTED
        entry.paid = max(entry.paid, tokens)

    def _cached(self, cached: int, tokens: int, own: int) -> int:
        return self._checked("cached tokens of an admitted request", cached, tokens, min(own, tokens))

    def decoded(self, tokens: Mapping[ClientId, int]) -> None:
        """Say how many output tokens were computed for each client."""
        for client, count in tokens.items():
            count = self._checked("output tokens of a step", count, MOST_TOKENS, 0)
            self.ordering.decoded(0, client, count)
            self.figures.of(client).output_tokens += count

    def preempted(self, entry: Entry, computed: int) -> None:
        """Say that a request that runs lost its KV: ``computed`` tokens."""
        if entry.state != ADMITTED:
            self._doubt("preemption of a request in state", entry.state)
            return
        computed = self._checked("computed tokens of a preempted request", computed, MOST_TOKENS, entry.paid)
        entry.state = PREEMPTED
        entry.computed = computed
        entry.paid = max(entry.paid, computed)
        entry.figures.preemptions += 1
        entry.figures.running -= 1
        entry.figures.preempted += 1

    def ended(self, name: str, computed: int | None = None) -> None:
        """Say that a request left the engine; nothing happens if it is not known.

        ``computed`` tokens were in KV if it ran; None if its prompt was computed whole.
        """
        entry = self.entries.pop(name, None)
        if entry is None:
            return
        figures = entry.figures
        figures.ended += 1
        if entry.queued:
            self.take(entry)
        if entry.state == WAITING:
            figures.waiting -= 1
            return
        if entry.state == PREEMPTED:
            computed = entry.computed
            figures.preempted -= 1
        else:
            figures.running -= 1
        if computed is not None:
            computed = self._checked("computed tokens of a request", computed, MOST_TOKENS, entry.paid)
        undone = 0 if computed is None else min(entry.paid - computed, entry.charged)
        if undone > 0:
            self.ordering.corrected(0, entry.client, 0, -undone)
            figures.extend_tokens -= undone
        self.ordering.released(0, entry.client)

    def _checked(self, what: str, said: object, most: int, own: int) -> int:
        """Return what the engine said if it is a whole number from 0 to ``most``, else ``own``."""
        found = whole(said, most)
        if found is not None:
            return found
        self._doubt(what, said)
        return own

    def _doubt(self, what: str, said: object) -> None:
        """Count a figure that cannot be true; tell of the first one of its kind."""
        self.figures.ignored += 1
        if what not in self._doubted:
            self._doubted.add(what)
            _log.warning(
                "fairlead: the engine says %s for: %s. That cannot be true, so an estimate is used. Further"
                " ones are only counted, as 'ignored' in the metrics file. Please report it.",
                *(_shown(said), what),
            )

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._queue)


def _shown(said: object) -> str:
    """Return a short text for a log; Python refuses to write out integers of thousands of digits."""
    try:
        return reprlib.repr(said)
    except ValueError:
        return f"a number of more than {10**18:,}"
