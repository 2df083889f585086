"""The state of all workers as parallel lists, one entry a slot.

Slots are reused, so that lists stay as long as the largest number of workers ever present at once,
and a decision over a thousand workers is a few passes over plain lists of numbers.
"""

from collections.abc import Callable

from fairlead.core.model import ClientId, Limits, WorkerId
from fairlead.core.outputs import OutputLengths


class FleetState:
    """The writable side of ``routing.base.Fleet``. Only the dispatcher writes to it."""

    def __init__(self, count_kv: Callable[[int], tuple[int, int, int]], outputs: OutputLengths) -> None:
        self.expected_output = outputs.expected
        self._count_kv = count_kv
        """Gives a slot's KV tokens assigned, running and cached."""
        self.ids: list[WorkerId] = []
        self.slots: dict[WorkerId, int] = {}
        self.up: list[bool] = []
        self.candidates: list[int] = []
        self.held: set[int] = set()
        """Slots of workers that said that they have no room: no candidates while there are others."""
        self.candidate_bitmap = 0
        self.running: list[int] = []
        self.queued: list[int] = []
        self.batch_size: list[int] = []
        self.pending_prefill_tokens: list[int] = []
        self._kv_used: list[int] = []
        self._kv_running: list[int] = []
        self._kv_cached: list[int] = []
        self.kv_stale: set[int] = set()
        """Slots whose KV counts changed since a policy last looked: most policies never look."""
        self.kv_tokens: list[int] = []
        self.max_num_seqs: list[int] = []
        self.queue_limit: list[int] = []
        self.context: list[int] = []
        self.block_tokens = 16.0
        """Tokens that a block stands for, in the KV books of all workers."""
        self.hit_rate: list[float] = []
        self.engine_waiting: list[int] = []
        self.engine_running: list[int] = []
        self.reported_us: list[int] = []
        self._free: list[int] = []
        self.in_turns = False
        """Clients that wait are served in turns, so that one's long queue delays no other."""
        self._waits: list[dict[ClientId, tuple[int, int]]] = []
        """By slot and client: sequences of the requests that wait, and their extend tokens."""
        self._waiting_tokens: list[int] = []
        self.waiting = 0

    @property
    def kv_used(self) -> list[int]:
        """KV tokens in use by assigned requests."""
        if self.kv_stale:
            self._recount()
        return self._kv_used

    @property
    def kv_running(self) -> list[int]:
        """KV tokens in use by running requests."""
        if self.kv_stale:
            self._recount()
        return self._kv_running

    @property
    def kv_cached(self) -> list[int]:
        """Tokens that the prefix cache is known to hold."""
        if self.kv_stale:
            self._recount()
        return self._kv_cached

    def _recount(self) -> None:
        for slot in self.kv_stale:
            self._kv_used[slot], self._kv_running[slot], self._kv_cached[slot] = self._count_kv(slot)
        self.kv_stale.clear()

    def join(self, worker: WorkerId) -> int:
        """Give ``worker`` a slot, the lowest free one, and return it."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self.ids)
            self._grow()
        self.ids[slot] = worker
        self.slots[worker] = slot
        return slot

    def _grow(self) -> None:
        self.ids.append("")
        self.up.append(False)
        for zeros in (
            self.running, self.queued, self.batch_size, self.pending_prefill_tokens, self._kv_used,
            self._kv_running, self._kv_cached, self.kv_tokens, self.max_num_seqs, self.queue_limit,
            self.engine_waiting, self.engine_running, self.reported_us, self._waiting_tokens, self.context,
        ):  # fmt: skip
            zeros.append(0)
        self.hit_rate.append(0.0)
        self._waits.append({})

    def leave(self, slot: int) -> None:
        """Free the slot of a worker that has nothing queued or running."""
        assert not self.batch_size[slot], f"worker {self.ids[slot]} leaves with requests"
        del self.slots[self.ids[slot]]
        self.ids[slot] = ""
        self.up[slot] = False
        self.kv_stale.discard(slot)
        self.held.discard(slot)
        for numbers in (
            self.pending_prefill_tokens, self._kv_used, self._kv_running, self._kv_cached, self.kv_tokens,
            self.max_num_seqs,
        ):  # fmt: skip
            numbers[slot] = 0
        self.queue_limit[slot] = self.engine_waiting[slot] = self.engine_running[slot] = 0
        self.reported_us[slot] = 0
        self.hit_rate[slot] = 0.0
        self._free.append(slot)
        self._free.sort(reverse=True)
        self.refresh()

    def kv_blocks(self, slot: int) -> int:
        """Return the blocks that a worker's KV pool holds."""
        return max(1, int(self.kv_tokens[slot] / self.block_tokens))

    def set_limits(self, slot: int, limits: Limits) -> None:
        """Take over what the worker can hold."""
        self.max_num_seqs[slot] = limits.max_num_seqs
        self.kv_tokens[slot] = limits.kv_tokens
        self.queue_limit[slot] = limits.queue
        self.refresh()

    def set_up(self, slot: int, up: bool) -> None:
        """Let the worker take requests, or not."""
        self.up[slot] = up
        self.refresh()

    def add_queued(self, slot: int, change: int) -> None:
        """So many sequences more, or fewer, wait for the worker."""
        before = self.queued[slot]
        self.queued[slot] = after = before + change
        self.batch_size[slot] += change
        limit = self.queue_limit[slot]
        if (before < limit) is not (after < limit):
            self.refresh()

    def waits(self, slot: int, client: ClientId, sequences: int, tokens: int) -> None:
        """A request of so many sequences and extend tokens waits for the worker."""
        waits = self._waits[slot]
        before, tokens_before = waits.get(client, (0, 0))
        waits[client] = (before + sequences, tokens_before + tokens)
        self._waiting_tokens[slot] += tokens
        self.waiting += sequences

    def waits_no_more(self, slot: int, client: ClientId, sequences: int, tokens: int) -> None:
        """It was sent, or went away."""
        waits = self._waits[slot]
        before, tokens_before = waits[client]
        if before > sequences:
            waits[client] = (before - sequences, tokens_before - tokens)
        else:
            del waits[client]
        self._waiting_tokens[slot] -= tokens
        self.waiting -= sequences

    def ahead(self, slot: int, client: ClientId, sequences: int, tokens: int) -> tuple[int, int]:
        """See ``routing.base.Fleet``."""
        waits, queued, total = self._waits[slot], self.queued[slot], self._waiting_tokens[slot]
        if not self.in_turns:
            return queued, total
        own, own_tokens = waits.get(client, (0, 0))
        others = len(waits) - (own > 0)
        # While this one waits for its turns, each other client gets about as much as it does.
        return (
            own + min(queued - own, others * (own + sequences)),
            own_tokens + min(total - own_tokens, others * (own_tokens + tokens)),
        )

    def waiting_tokens(self, slot: int) -> int:
        """Return the extend tokens of all requests that wait for the worker."""
        return self._waiting_tokens[slot]

    def begin(self, slot: int, sequences: int) -> None:
        """A request of so many sequences runs that never waited."""
        self.running[slot] += sequences
        self.batch_size[slot] += sequences

    def start(self, slot: int, sequences: int) -> None:
        """A request goes from waiting to running: the batch size stays."""
        before = self.queued[slot]
        self.queued[slot] = after = before - sequences
        self.running[slot] += sequences
        if before >= self.queue_limit[slot] > after:
            self.refresh()

    def end(self, slot: int, sequences: int) -> None:
        """A running request ended."""
        self.running[slot] -= sequences
        self.batch_size[slot] -= sequences

    def refresh(self) -> None:
        """Find the candidates again. O(slots), on changes of health and of a full queue only."""
        self.candidates = [s for s, up in enumerate(self.up) if up and self.queued[s] < self.queue_limit[s]]
        if self.held:
            self.candidates = [s for s in self.candidates if s not in self.held] or self.candidates
        self.candidate_bitmap = sum(1 << s for s in self.candidates)
