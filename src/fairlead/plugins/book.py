"""What happens in an engine, told to an ordering policy. Knows no engine and decides nothing.

The engine's hooks say that a request arrived, was taken out of the queue, put back, admitted, preempted, or
ended, and which blocks entered the cache. Whoever goes next is the policy's answer.

Of the blocks that leave the cache nobody has to tell. Eviction only ever makes a match shorter, so the
requests that look too good come up first; there their match is looked up and put right.

Charging, in tokens of prompt work: a request is charged what it has to compute when it is admitted. One that
was preempted had ``computed`` tokens in KV; when it is resumed with ``cached`` of them left, it is charged
the difference: what is computed a second time. One that ends early gets back what was not computed.
"""

from collections.abc import Iterator, Mapping, Sequence

from fairlead.core.model import BlockKey, ClientId, Request
from fairlead.core.ordering.base import Matched, Ordering, Waiting
from fairlead.plugins.figures import ClientFigures, Figures

WAITING, ADMITTED, PREEMPTED = range(3)


class Entry:
    """A request in the engine."""

    __slots__ = ("client", "computed", "figures", "item", "paid", "queued", "state")

    def __init__(self, item: Waiting, figures: ClientFigures) -> None:
        self.item = item
        self.client: ClientId = item.client
        self.figures = figures
        self.state = WAITING
        self.queued = False
        """Whether it is in the policy's queue now."""
        self.paid = 0
        """Leading tokens whose computation was charged as prompt work."""
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
        request = Request(self._arrivals, client, prompt_tokens, keys, block_tokens, arrived_us=now_us)
        item = Waiting(request, self._arrivals)
        self._arrivals += 1
        entry = self.entries[name] = Entry(item, self.figures.of(client))
        entry.figures.waiting += 1
        self._push(entry)
        return entry

    def head(self) -> Waiting | None:
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

        The first of a run is not enough. A request whose match was evicted up to somewhere before it still
        waits for the block behind its old end.
        """
        self._queue.cache_stored(keys)

    def admitted(self, entry: Entry, tokens: int, cached: int) -> None:
        """Say that a request runs: ``tokens`` have to be in KV before it decodes, ``cached`` of them are.

        Said again of a request that runs, it means that its prompt has grown.
        """
        figures, client = entry.figures, entry.client
        if entry.state == PREEMPTED:
            again = entry.computed - cached
            self.ordering.corrected(0, client, 0, again)
            figures.extend_tokens += again
            figures.preempted -= 1
            figures.running += 1
        elif entry.state == WAITING:
            self.ordering.admitted(0, entry.item, tokens - cached)
            figures.admitted += 1
            figures.prompt_tokens += tokens
            figures.cached_tokens += cached
            figures.extend_tokens += tokens - cached
            figures.waiting -= 1
            figures.running += 1
        else:
            grown = tokens - cached
            self.ordering.corrected(0, client, grown, grown)
            figures.prompt_tokens += grown
            figures.extend_tokens += grown
        entry.state = ADMITTED
        entry.paid = max(entry.paid, tokens)

    def decoded(self, tokens: Mapping[ClientId, int]) -> None:
        """Say how many output tokens were computed for each client."""
        for client, count in tokens.items():
            self.ordering.decoded(0, client, count)
            self.figures.of(client).output_tokens += count

    def preempted(self, entry: Entry, computed: int) -> None:
        """Say that a request lost its KV: ``computed`` tokens."""
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
        if entry.state == WAITING:
            figures.waiting -= 1
            if entry.queued:
                self.take(entry)
            return
        if entry.state == PREEMPTED:
            computed = entry.computed
            figures.preempted -= 1
        else:
            figures.running -= 1
        undone = 0 if computed is None else entry.paid - computed
        if undone > 0:
            self.ordering.corrected(0, entry.client, 0, -undone)
            figures.extend_tokens -= undone

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._queue)
