"""One worker in the dispatcher's books: what waits for it, what runs on it, and whether it can take more.

Capacity holds requests back so that fairness can act on them: a worker gets as many sequences, KV tokens
and tokens of prefill as it can use at once, counted in this dispatcher's own books. The rest waits here.
"""

from functools import partial

from fairlead.core.cached_tokens import cached_prompt_tokens
from fairlead.core.fleet import FleetState
from fairlead.core.ordering.base import Ordering, Queue, QueuedRequest
from fairlead.core.prefilling import Prefilling
from fairlead.core.prefix import PrefixIndex
from fairlead.core.settings import Settings
from fairlead.core.tracked import TrackedRequest

_HIT_MEMORY = 0.98  # weight of the past in a worker's hit rate: the last ~50 requests count


class Worker:
    """The books of one worker, from its join until its last request has ended.

    What routing policies read of it stands in the lists of ``FleetState`` under ``slot``; whoever changes
    one changes the other, and that is only this class.
    """

    __slots__ = (
        "_cached", "_fleet", "_forward", "_gated", "_index", "_prompts", "_uses_match", "head",
        "held_until", "kv_extra", "leaving", "precise", "prefilling", "queue", "slot",
    )  # fmt: skip

    def __init__(
        self,
        slot: int,
        precise: bool,
        fleet: FleetState,
        index: PrefixIndex,
        ordering: Ordering,
        settings: Settings,
    ) -> None:
        self.slot = slot
        self.precise = precise
        """Its cache is reported by its own events; else it is guessed from what was sent."""
        self.queue: Queue = ordering.make_queue(slot, partial(index.ready, slot))
        self.head: QueuedRequest | None = None
        """The request that is next and does not fit yet. It keeps its turn, or large requests starve."""
        self.prefilling = Prefilling(settings.prefill_backlog_us, settings.first_token_patience)
        self.kv_extra = 0
        """KV tokens in use beside the blocks of prompts: their last, partial blocks, and outputs."""
        self.leaving = False
        """It was taken out for good, and its last requests have not ended yet."""
        self.held_until = 0
        """It said that it has no room, and gets nothing before then, in microseconds; 0: it did not."""
        self._fleet = fleet
        self._index = index
        self._uses_match = ordering.uses_match
        self._gated = settings.prefill_backlog_us > 0
        self._forward = settings.forward
        # Cached and all prompt tokens of recent requests, older ones with ever less weight.
        self._cached = self._prompts = 0.0

    # ------------------------------------------------------------------ capacity

    @property
    def full(self) -> bool:
        """Whether it has all it can use, of whatever size the next request is."""
        if self.held_until:
            return True
        if self._forward:
            return False
        fleet, slot = self._fleet, self.slot
        if fleet.running[slot] >= fleet.max_num_seqs[slot]:
            return True
        return self._gated and self.prefilling.full

    def has_capacity(self, sequences: int, tokens: int) -> bool:
        """Say whether a request of so many sequences and new KV tokens can go.

        An idle worker takes anything: a request that can never fit is for the engine to refuse, which
        knows its own limit exactly.
        """
        fleet, slot = self._fleet, self.slot
        if self._forward or not fleet.running[slot]:
            return not self.held_until
        if self.full or (sequences > 1 and fleet.running[slot] + sequences > fleet.max_num_seqs[slot]):
            return False
        in_use = self._index.pinned(slot) * fleet.block_tokens + self.kv_extra
        return in_use + tokens <= fleet.kv_tokens[slot]

    def fits(self, item: QueuedRequest) -> bool:
        """Say whether a request that waits for this worker can go."""
        assert isinstance(item, TrackedRequest)
        request = item.request
        matched = item.matched if self._uses_match else self._index.ready(self.slot, item.keys)
        extend = request.prompt_tokens - request.matched_tokens(matched)
        return self.has_capacity(item.sequences, extend + item.expected)

    def resize(self) -> None:
        """Bound what the index remembers of its cache by its KV pool."""
        self._index.resize(self.slot, self._fleet.kv_blocks(self.slot))
        self._fleet.kv_stale.add(self.slot)

    def count_kv(self) -> tuple[int, int, int]:
        """Return the KV tokens that are assigned to it, in use by what runs on it, and cached."""
        slot, index, tokens = self.slot, self._index, self._fleet.block_tokens
        extra = self.kv_extra
        return (
            int(index.assigned(slot) * tokens) + extra,
            int(index.pinned(slot) * tokens) + extra,
            int(index.cached(slot) * tokens),
        )

    # ------------------------------------------------------------------ requests that wait

    def assign(self, tracked: TrackedRequest, matched: int) -> None:
        """Count a request, of which ``matched`` tokens are cached, among those of this worker."""
        request, slot = tracked.request, self.slot
        tracked.slot = slot
        tracked.cached_prompt_tokens = matched
        tracked.extend = tracked.pending_prefill_tokens = extend = request.prompt_tokens - matched
        tracked.claim = self._index.claim(slot, request.keys)
        self._fleet.pending_prefill_tokens[slot] += extend

    def enqueue(self, tracked: TrackedRequest) -> None:
        """Put an assigned request into the queue."""
        fleet, slot, keys = self._fleet, self.slot, tracked.keys
        fleet.add_queued(slot, tracked.sequences)
        fleet.waits(slot, tracked.client, tracked.sequences, tracked.pending_prefill_tokens)
        self.queue.push(tracked, self._index.ready(slot, keys) if self._uses_match else 0)
        fleet.kv_stale.add(slot)

    def leave(self, tracked: TrackedRequest) -> None:
        """Take a request out of the queue and out of the books: it waits elsewhere, or ends."""
        fleet, slot = self._fleet, self.slot
        assert tracked.claim is not None
        self.queue.discard(tracked)
        fleet.waits_no_more(slot, tracked.client, tracked.sequences, tracked.pending_prefill_tokens)
        if self.head is tracked:
            self.head = None
        self._index.abandon(tracked.claim)
        fleet.pending_prefill_tokens[slot] -= tracked.pending_prefill_tokens
        tracked.pending_prefill_tokens = 0
        fleet.add_queued(slot, -tracked.sequences)
        fleet.kv_stale.add(slot)

    # ------------------------------------------------------------------ requests that run

    def take(self, tracked: TrackedRequest) -> None:
        """Take a request out of the queue to run it; ``start`` follows."""
        fleet, slot = self._fleet, self.slot
        self.head = None
        self.queue.discard(tracked)
        fleet.start(slot, tracked.sequences)
        fleet.waits_no_more(slot, tracked.client, tracked.sequences, tracked.pending_prefill_tokens)

    def start(self, tracked: TrackedRequest, now: int) -> int:
        """Count an assigned request among those that run, with what is cached now.

        Returns by how many extend tokens that differs from what was expected.
        """
        request, fleet, slot = tracked.request, self._fleet, self.slot
        assert tracked.claim is not None
        prompt, size = request.prompt_tokens, request.block_tokens
        matched = cached_prompt_tokens(prompt, size, self._index.start(tracked.claim))
        computed_again = 0 if request.reads_cache else matched
        matched -= computed_again
        extend = prompt - matched
        change = extend - tracked.extend
        if change:
            fleet.pending_prefill_tokens[slot] += extend - tracked.pending_prefill_tokens
            tracked.extend = tracked.pending_prefill_tokens = extend
            tracked.cached_prompt_tokens = matched
        tracked.move("dispatch")
        tracked.attempts += 1
        tracked.kv_extra = max(0, prompt - int(len(request.keys) * size)) + tracked.expected + computed_again
        self.kv_extra += tracked.kv_extra
        fleet.context[slot] += prompt
        self.prefilling.begin(extend, now)
        if request.streamed:
            self.prefilling.expect(tracked.rid, now)
        else:
            self.prefilling.guess(tracked.rid, now)
        self._cached = self._cached * _HIT_MEMORY + matched
        self._prompts = total = self._prompts * _HIT_MEMORY + prompt
        fleet.hit_rate[slot] = self._cached / total if total else 0.0
        fleet.kv_stale.add(slot)
        return change

    def computed(self, tracked: TrackedRequest) -> None:
        """Count the prompt of a request that runs as computed."""
        self._fleet.pending_prefill_tokens[self.slot] -= tracked.pending_prefill_tokens
        tracked.pending_prefill_tokens = 0

    def outgrown(self, tracked: TrackedRequest, tokens: int) -> None:
        """Count output tokens of a request beyond what room was kept for; negative takes back."""
        tracked.kv_extra += tokens
        self.kv_extra += tokens
        self._fleet.kv_stale.add(self.slot)

    def release(self, tracked: TrackedRequest, *, computed: bool) -> None:
        """Give back what a running request held; its blocks stay cached if they were computed."""
        fleet, slot = self._fleet, self.slot
        assert tracked.claim is not None
        if computed:
            self._index.end(tracked.claim)
        else:
            self._index.abandon(tracked.claim)
        self.prefilling.forget(tracked.rid)
        if tracked.pending_prefill_tokens:
            self.prefilling.gone(tracked.pending_prefill_tokens)
            fleet.pending_prefill_tokens[slot] -= tracked.pending_prefill_tokens
            tracked.pending_prefill_tokens = 0
        self.kv_extra -= tracked.kv_extra
        tracked.kv_extra = 0
        fleet.context[slot] -= tracked.request.prompt_tokens
        fleet.end(slot, tracked.sequences)
        fleet.kv_stale.add(slot)

    def __repr__(self) -> str:
        fleet, slot = self._fleet, self.slot
        state = "up" if fleet.up[slot] else "down"
        return (
            f"{fleet.ids[slot]}:{state} {fleet.running[slot]}/{fleet.max_num_seqs[slot]}+{fleet.queued[slot]}"
        )
