"""A model of one LLM engine: continuous batching over a paged KV pool. No clock, no I/O.

The caller drives it: ``submit`` requests, call ``step(now)``, wait for the duration that it returns
(or advance virtual time by it), pass the results on, and step again. ``step`` leaves the engine in
the state that it has when the step ends; what is submitted meanwhile is looked at by the next step.

A step, as in vLLM's scheduler:

1. Every decoding sequence computes one token. One that needs a block and finds none preempts the
   sequence admitted last, which loses its KV and goes to the head of the queue (recompute).
2. Sequences with an unfinished prompt continue it in chunks, in order of admission, as far as the
   token budget goes.
3. If nobody was preempted, waiting requests are admitted: preempted ones first, then as the
   ordering policy says. A request needs blocks for its whole prompt and, unless it is alone, leaves
   a watermark free for those that decode.

No livelock: the sequence admitted first is never preempted while another one runs, and alone it
always fits, since a request longer than the pool is refused. So the oldest one always ends.

Cost of a step: the sequences that finish, fill a block, prefill or are admitted in it, not the
batch. A decoding sequence is not touched between those moments; its state follows from the step
number.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from fairlead.core.model import BlockKey, ClientId, Request, RequestId
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.core.ordering.base import Ordering, Waiting
from fairlead.engine.kv import KVPool
from fairlead.engine.profiles import Profile
from fairlead.engine.steptime import Work

TICK_US = 1_000_000
"""How often the ordering is told of the time, to forget idle clients."""


class TooLongError(ValueError):
    """A request that can never run: prompt and output exceed the engine's context length."""


class Admission(NamedTuple):
    """A request that left the queue in this step. ``resumed``: it was preempted before."""

    rid: RequestId
    cached_tokens: int
    computed_tokens: int
    """Tokens that its prefill will compute: prompt, and output so far, less the cached ones."""
    resumed: bool


class Stored(NamedTuple):
    """Blocks ``start`` to ``start + len(keys)`` of a request's chain are now cached."""

    rid: RequestId
    start: int
    keys: Sequence[BlockKey]
    parent: BlockKey | None


class StepResult(NamedTuple):
    """What happened in one step. It takes effect when the step ends, ``duration_us`` after its start."""

    duration_us: int
    work: Work
    tokens: Sequence[RequestId]
    """Requests that got one more output token."""
    first: Sequence[RequestId]
    """Those of ``tokens`` for which it is the first."""
    finished: Sequence[RequestId]
    admitted: Sequence[Admission]
    preempted: Sequence[RequestId]
    evicted: Sequence[BlockKey]
    """Blocks that left the cache, before any of ``stored`` entered it."""
    stored: Sequence[Stored]


class Load(NamedTuple):
    """What an engine reports of itself."""

    running: int
    waiting: int
    """Requests not in the batch, preempted ones included."""
    kv_usage: float
    """Share of the KV blocks that requests hold."""
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache so far; resumed requests are not counted again."""
    prefix_hits: int
    """Prompt tokens found there."""
    preemptions: int


_WAITING, _PREEMPTED, _PREFILL, _DECODE, _GONE = range(5)


class _Sequence:
    """A request inside the engine."""

    __slots__ = (
        "admitted",
        "blocks",
        "chain",
        "computed",
        "due",
        "goal",
        "item",
        "output",
        "output_tokens",
        "paid",
        "published",
        "rid",
        "since",
        "state",
    )

    def __init__(self, item: Waiting, output_tokens: int, chain: Sequence[BlockKey]) -> None:
        self.item = item
        self.rid = item.rid
        self.output_tokens = output_tokens
        """How many it will have in the end: known to the model of the engine only."""
        self.chain = chain
        self.state = _WAITING
        self.goal = item.request.prompt_tokens
        """Tokens that must be in KV before it decodes: the prompt, and the output so far."""
        self.computed = 0
        """Tokens in KV; while it decodes, as of step ``since``."""
        self.output = 0
        """Output tokens so far; while it decodes, as of step ``since``."""
        self.paid = 0
        """Tokens in KV that its client was charged for as prompt work."""
        self.blocks = 0
        self.published = 0
        """Leading blocks that are in the cache, referenced."""
        self.admitted = 0
        """Number of its last admission: the order of the batch."""
        self.since = 0
        self.due = -1
        """Step in which it fills a block or finishes; -1 unless it decodes."""

    @property
    def client(self) -> ClientId:
        return self.item.client


def _by_admission(seq: _Sequence) -> int:
    return seq.admitted


class _Step:
    """What one step gathers on its way to a ``StepResult``."""

    __slots__ = (
        "admitted",
        "area",
        "budget",
        "evicted",
        "finished",
        "first",
        "preempted",
        "prefilled",
        "ready",
        "stored",
    )

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.prefilled = 0
        self.area = 0
        self.ready: list[_Sequence] = []
        self.first: list[RequestId] = []
        self.finished: list[RequestId] = []
        self.admitted: list[Admission] = []
        self.preempted: list[RequestId] = []
        self.evicted: list[BlockKey] = []
        self.stored: list[Stored] = []


class Engine:
    """One engine: a queue, a batch, a KV pool. See the module for what it models.

    ``ordering`` belongs to this engine alone (queue number 0); first come, first served by default.
    The limits default to the profile's; ``kv_blocks`` overrides its pool size, in blocks.
    """

    def __init__(
        self,
        profile: Profile,
        ordering: Ordering | None = None,
        *,
        block_tokens: int = 16,
        kv_blocks: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        max_model_len: int | None = None,
        watermark: float = 0.01,
    ) -> None:
        self.profile = profile
        self.block_tokens = block_tokens
        self.pool = KVPool(profile.kv_tokens // block_tokens if kv_blocks is None else kv_blocks)
        self.max_num_seqs = max_num_seqs or profile.max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens or profile.max_num_batched_tokens
        longest = min(profile.max_model_len, self.pool.blocks * block_tokens)
        self.max_model_len = longest if max_model_len is None else max_model_len
        self._check_limits(watermark)
        self.ordering = ordering or make_ordering("fcfs", {}, OrderingContext())
        self._queue = self.ordering.make_queue(0, self.pool.match)
        self._watermark = int(watermark * self.pool.blocks)
        self._sequences: dict[RequestId, _Sequence] = {}
        self._preempted: deque[_Sequence] = deque()
        self._batch: dict[RequestId, _Sequence] = {}
        """In order of admission, so the last one is the next to be preempted."""
        self._prefills: dict[RequestId, _Sequence] = {}
        self._decodes: dict[RequestId, _Sequence] = {}
        self._context = 0
        """Tokens in KV of the decoding sequences, summed."""
        self._decoding_clients: dict[ClientId, int] = {}
        self._number = 0
        """Steps so far."""
        self._due: dict[int, list[_Sequence]] = {}
        self._full: list[_Sequence] = []
        """Decoding sequences whose last block is full: the next step starts with a new one."""
        self._arrivals = 0
        self._admissions = 0
        self._next_tick = 0
        self._queries = self._hits = self._preemptions = 0

    def _check_limits(self, watermark: float) -> None:
        if self.block_tokens < 1 or self.max_num_seqs < 1:
            raise ValueError("block_tokens and max_num_seqs are at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs"
                f" ({self.max_num_seqs}): every decoding sequence takes a token of each step"
            )
        capacity = self.pool.blocks * self.block_tokens
        if not 1 < self.max_model_len <= capacity:
            raise ValueError(
                f"max_model_len ({self.max_model_len}) must be from 2 to the KV pool's {capacity} tokens"
            )
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark is a share of the pool from 0 to below 1, not {watermark}")

    # What callers do

    def submit(
        self, request: Request, output_tokens: int, now: int = 0, output_keys: Sequence[BlockKey] = ()
    ) -> None:
        """Queue ``request``, which will generate ``output_tokens`` (at least 1) before it ends.

        ``request.keys`` name the prompt's full blocks; ``output_keys`` continue the chain with the
        blocks that the output completes, the one that prompt and output share included. Blocks
        without a key are never shared. Raises ``TooLongError`` if it can never run, ValueError if the
        figures contradict each other, KeyError if its id is in use.
        """
        block = self.block_tokens
        if request.rid in self._sequences:
            raise KeyError(f"request {request.rid} is already in the engine")
        if request.prompt_tokens < 1 or output_tokens < 1:
            raise ValueError("a request has at least one prompt token and one output token")
        if len(request.keys) * block > request.prompt_tokens:
            raise ValueError(f"{len(request.keys)} full blocks in {request.prompt_tokens} prompt tokens")
        total = request.prompt_tokens + output_tokens
        if total > self.max_model_len:
            raise TooLongError(
                f"{total} tokens of prompt and output; the context length is {self.max_model_len}"
            )
        chain = request.keys
        if output_keys and len(chain) == request.prompt_tokens // block:
            chain = [*chain, *output_keys]
        item = Waiting(request, self._arrivals)
        self._arrivals += 1
        self._sequences[request.rid] = _Sequence(item, output_tokens, chain)
        matched = self.pool.match(request.keys) if self.ordering.uses_match else 0
        self._queue.push(item, matched)
        if now >= self._next_tick:
            self._tick(now)

    def cancel(self, rid: RequestId) -> bool:
        """Drop a request wherever it is; return whether it was still in the engine.

        What it computed stays cached; prompt work that was charged and not done is refunded.
        """
        seq = self._sequences.pop(rid, None)
        if seq is None:
            return False
        if seq.state == _WAITING:
            self._queue.discard(seq.item)
            return True
        if seq.state == _PREEMPTED:
            self._preempted.remove(seq)
        else:
            self._leave_batch(seq)
        undone = seq.paid - seq.computed
        if undone > 0:
            self.ordering.corrected(0, seq.client, 0, -undone)
        return True

    def reset_cache(self) -> list[BlockKey]:
        """Empty the prefix cache but for blocks in use; return the keys that went."""
        evicted = self.pool.clear()
        if self.ordering.uses_match:
            self._queue.cache_evicted(evicted)
        return evicted

    def step(self, now: int) -> StepResult | None:
        """Run one step that starts at ``now``; None when there is nothing to compute."""
        if now >= self._next_tick:
            self._tick(now)
        step = _Step(self.max_num_batched_tokens)
        self._give_blocks(step)
        decodes, context = len(self._decodes), self._context
        step.budget -= decodes
        for seq in tuple(self._prefills.values()):
            self._prefill(seq, step)
        if not step.preempted:
            self._admit(step)
        if not decodes and not step.prefilled:
            assert not self._batch, "a batch that makes no progress"
            return None
        work = Work(decodes, context, step.prefilled, step.area)
        tokens = list(self._decodes)
        self._decode(step)
        for seq in step.ready:
            self._first_token(seq, step)
            tokens.append(seq.rid)
        return StepResult(
            self.profile.steps.step_us(work),
            work,
            tokens,
            step.first,
            step.finished,
            step.admitted,
            step.preempted,
            step.evicted,
            step.stored,
        )

    def __contains__(self, rid: RequestId) -> bool:
        return rid in self._sequences

    @property
    def load(self) -> Load:
        """What the engine reports of itself, as of the end of the last step."""
        return Load(
            len(self._batch),
            len(self._sequences) - len(self._batch),
            self.pool.used / self.pool.blocks,
            self._queries,
            self._hits,
            self._preemptions,
        )

    # 1. Decoding sequences

    def _give_blocks(self, step: _Step) -> None:
        """Give a block to each sequence whose last one is full, the earliest admitted first."""
        full = [seq for seq in self._full if seq.state == _DECODE]
        self._full.clear()
        full.sort(key=_by_admission)
        for seq in full:
            while seq.state == _DECODE and not self.pool.available:
                self._preempt(next(reversed(self._batch.values())), step)
            if seq.state == _DECODE:
                self._allocate(seq, 1, step)

    def _preempt(self, seq: _Sequence, step: _Step) -> None:
        self._leave_batch(seq)
        seq.state = _PREEMPTED
        self._preempted.appendleft(seq)
        self._preemptions += 1
        step.preempted.append(seq.rid)

    def _decode(self, step: _Step) -> None:
        """Let every decoding sequence compute one token; look at those that this concerns."""
        self._context += len(self._decodes)
        for client, count in self._decoding_clients.items():
            self.ordering.decoded(0, client, count)
        self._number += 1
        due = [seq for seq in self._due.pop(self._number, ()) if seq.due == self._number]
        due.sort(key=_by_admission)  # the others were preempted or cancelled since
        for seq in due:
            self._settle(seq)
            self._publish(seq, step)
            if seq.output == seq.output_tokens:
                self._finish(seq, step)
            else:
                self._schedule(seq)

    def _schedule(self, seq: _Sequence) -> None:
        """Note the next step that concerns a decoding sequence: its block is full, or it ends."""
        room = seq.blocks * self.block_tokens - seq.computed
        if not room:
            self._full.append(seq)
            room = self.block_tokens
        seq.since = self._number
        seq.due = self._number + min(room, seq.output_tokens - seq.output)
        self._due.setdefault(seq.due, []).append(seq)

    def _settle(self, seq: _Sequence) -> None:
        """Bring a decoding sequence's counts up to date."""
        steps = self._number - seq.since
        seq.computed += steps
        seq.output += steps
        seq.since = self._number

    # 2. Prompts

    def _prefill(self, seq: _Sequence, step: _Step) -> None:
        """Compute as much of a prompt as the budget allows."""
        chunk = min(step.budget, seq.goal - seq.computed)
        if not chunk:
            return
        step.budget -= chunk
        step.prefilled += chunk
        step.area += chunk * (2 * seq.computed + chunk)
        seq.computed += chunk
        self._publish(seq, step)
        if seq.computed == seq.goal:
            step.ready.append(seq)

    def _first_token(self, seq: _Sequence, step: _Step) -> None:
        """Emit the token that the end of a prefill gives, and let the sequence decode."""
        if not seq.output:
            step.first.append(seq.rid)
        seq.output += 1
        self.ordering.decoded(0, seq.client, 1)
        if seq.output == seq.output_tokens:
            self._finish(seq, step)
            return
        del self._prefills[seq.rid]
        seq.state = _DECODE
        self._decodes[seq.rid] = seq
        self._context += seq.computed
        self._decoding_clients[seq.client] = self._decoding_clients.get(seq.client, 0) + 1
        self._schedule(seq)

    # 3. Admission

    def _admit(self, step: _Step) -> None:
        while step.budget and len(self._batch) < self.max_num_seqs:
            if self._preempted:
                seq = self._preempted[0]
                if not self._fits(seq):
                    return
                self._preempted.popleft()
                self._enter_batch(seq, step)
                continue
            item = self._queue.head(self._item_fits)
            if item is None:
                return
            self._queue.discard(item)
            self._enter_batch(self._sequences[item.rid], step)

    def _item_fits(self, item: Waiting) -> bool:
        return self._fits(self._sequences[item.rid])

    def _fits(self, seq: _Sequence) -> bool:
        """Whether blocks for its whole prompt can be had, with the watermark left unless it is alone."""
        needed = -(-seq.goal // self.block_tokens)
        reserve = self._watermark if self._batch else 0
        available = self.pool.available - reserve
        if needed <= available:
            return True
        matched = self._reusable(seq)
        return needed - matched + self.pool.idle_within(seq.chain, matched) <= available

    def _reusable(self, seq: _Sequence) -> int:
        """Cached blocks that it can use: at least its last token has to be computed."""
        return self.pool.match(seq.chain, (seq.goal - 1) // self.block_tokens)

    def _enter_batch(self, seq: _Sequence, step: _Step) -> None:
        resumed = seq.state == _PREEMPTED
        matched = self._reusable(seq)
        cached = matched * self.block_tokens
        self.pool.use(seq.chain, matched)
        seq.blocks = seq.published = matched
        self._allocate(seq, -(-seq.goal // self.block_tokens) - matched, step)
        if resumed:
            self.ordering.corrected(0, seq.client, 0, seq.computed - cached)
        else:
            seq.paid = seq.goal
            self.ordering.admitted(0, seq.item, seq.goal - cached)
            self._queries += seq.goal
            self._hits += cached
        seq.computed = cached
        seq.state = _PREFILL
        self._admissions += 1
        seq.admitted = self._admissions
        self._batch[seq.rid] = self._prefills[seq.rid] = seq
        step.admitted.append(Admission(seq.rid, cached, seq.goal - cached, resumed))
        self._prefill(seq, step)

    # Blocks, and leaving the batch

    def _allocate(self, seq: _Sequence, count: int, step: _Step) -> None:
        evicted = self.pool.allocate(count)
        seq.blocks += count
        if evicted:
            step.evicted += evicted
            if self.ordering.uses_match:
                self._queue.cache_evicted(evicted)

    def _publish(self, seq: _Sequence, step: _Step) -> None:
        """Put the blocks that a sequence has filled into the prefix cache."""
        start = seq.published
        end = min(seq.computed // self.block_tokens, len(seq.chain))
        if end <= start:
            return
        new = self.pool.publish(seq.chain, start, end)
        seq.published = end
        if not new:
            return
        if self.ordering.uses_match:
            self._queue.cache_stored(new)
        # Blocks already there come first (a cached block implies its parents): the new ones are the tail.
        first = end - len(new)
        step.stored.append(Stored(seq.rid, first, new, seq.chain[first - 1] if first else None))

    def _leave_batch(self, seq: _Sequence) -> None:
        """Take a sequence out of the batch and give back its blocks; ``computed`` stays as a record."""
        del self._batch[seq.rid]
        if seq.state == _DECODE:
            self._settle(seq)
            del self._decodes[seq.rid]
            self._context -= seq.computed
            seq.due = -1
            seq.goal = seq.item.request.prompt_tokens + seq.output
            seq.paid = seq.computed
            left = self._decoding_clients[seq.client] - 1
            if left:
                self._decoding_clients[seq.client] = left
            else:
                del self._decoding_clients[seq.client]
        else:
            del self._prefills[seq.rid]
        seq.state = _GONE
        self.pool.release(seq.chain, seq.published, seq.blocks - seq.published)
        seq.blocks = seq.published = 0

    def _finish(self, seq: _Sequence, step: _Step) -> None:
        self._leave_batch(seq)
        del self._sequences[seq.rid]
        step.finished.append(seq.rid)

    def _tick(self, now: int) -> None:
        self._next_tick = now + TICK_US
        self.ordering.tick(now)

    def check(self) -> None:
        """Raise AssertionError if blocks, counts or queues contradict each other."""
        self.pool.check()
        self.ordering.check()
        references: dict[BlockKey, int] = {}
        private = context = 0
        for seq in self._batch.values():
            steps = self._number - seq.since if seq.state == _DECODE else 0
            computed = seq.computed + steps
            assert seq.blocks * self.block_tokens >= computed
            assert seq.published == min(computed // self.block_tokens, len(seq.chain))
            context += computed if seq.state == _DECODE else 0
            private += seq.blocks - seq.published
            for key in seq.chain[: seq.published]:
                references[key] = references.get(key, 0) + 1
        assert context == self._context
        self.pool.check_holders(references, private)
        assert set(self._batch) == set(self._prefills) | set(self._decodes)
        assert len(self._batch) + len(self._preempted) + len(self._queue) == len(self._sequences)

    def __repr__(self) -> str:
        load = self.load
        return f"<Engine {self.profile.name} running={load.running} waiting={load.waiting} {self.pool!r}>"
