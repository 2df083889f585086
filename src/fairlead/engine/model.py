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
   the watermark free for those that decode: a share of the pool, 0 as vLLM's default is.

No livelock: the sequence admitted first is never preempted while another one runs, and alone it
always fits, since a request longer than the pool is refused. So the oldest one always ends.

With ``async_scheduling``, vLLM's default on GPUs, a step is scheduled when the one before it begins, so that
the GPU never waits for the host. What comes during a step is then looked at by the step after the next, and
a request that ends keeps its place in the batch and its blocks for one step more. If nothing could be
scheduled in advance, the next step is scheduled when the last one has ended.

Cost of a step: the sequences that finish, prefill or are admitted in it, not the batch. A decoding
sequence is not touched between those moments; its state follows from the step number, and the blocks
that a step needs from how many sequences fill one in it. So the engine can *fast-forward*: take many
steps that only decode at once, in closed form. ``fast_forward_steps`` says how many, ``fast_forward`` takes
them, with the same result as so many calls of ``step``.

Blocks that an output completes enter the prefix cache when the request ends or is preempted. vLLM has
them there as they fill; until the answer is known nobody can ask for them. They do whether or not the
caller has keys for them: what nobody will ask for takes room from the rest all the same, until it is the
least recently used.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from fairlead.core.model import BlockKey, ClientId, Request, RequestId
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.core.ordering.base import Ordering, QueuedRequest
from fairlead.engine.decode_batch import DecodeBatch
from fairlead.engine.kv import KVPool
from fairlead.engine.profiles import Profile
from fairlead.engine.sequence import DECODE, GONE, PREEMPTED, PREFILL, WAITING, EngineSequence
from fairlead.engine.step import Admission, Load, StepResult, Stored, with_item
from fairlead.engine.steptime import PS_PER_US

TICK_US = 1_000_000
"""How often the ordering is told of the time, to forget idle clients."""


class TooLongError(ValueError):
    """A request that can never run: prompt and output exceed the engine's context length."""


def _named(keys: list[BlockKey]) -> list[BlockKey]:
    """Return the keys that the engine was given, without those that it made up."""
    return [key for key in keys if key >= 0]


class Engine:
    """One engine: a queue, a batch, a KV pool. See the module for what it models.

    ``ordering`` belongs to this engine alone (queue number 0); first come, first served by default.
    The limits default to the profile's; ``kv_blocks`` overrides its pool size, in blocks. Without
    ``list_tokens`` results do not name the requests that got a token, which takes time for each; without
    ``list_blocks`` they do not name blocks (for an ordering that goes by them they always do).
    ``async_scheduling``: see the module.
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
        watermark: float = 0.0,
        list_tokens: bool = True,
        list_blocks: bool = True,
        async_scheduling: bool = False,
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
        self._sequences: dict[RequestId, EngineSequence] = {}
        self._preempted: deque[EngineSequence] = deque()
        self._batch: dict[RequestId, EngineSequence] = {}
        """In order of admission, so the last one is the next to be preempted."""
        self._prefills: dict[RequestId, EngineSequence] = {}
        self._decodes = DecodeBatch(block_tokens)
        self._carry = 0
        """Picoseconds of steps so far that no duration has told yet."""
        self._list_tokens = list_tokens
        self._tells_blocks = list_blocks
        self._list_blocks = list_blocks or self.ordering.uses_match
        self._ahead = async_scheduling
        self._under_way = False
        """Whether the engine is busy: the last call of ``step`` found something to compute."""
        self._late: list[EngineSequence] = []
        """Requests that came during the last step, if the next step was scheduled before."""
        self._leaving: list[EngineSequence] = []
        """Requests that ended in the last step, and are still in the batch."""
        self._arrivals = 0
        self._admissions = 0
        self._next_tick = 0
        self._queries = self._hits = self._preemptions = 0
        self._unnamed = 0
        """The smallest key made up so far, for a block of an output that the caller gave no key for."""

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
        without a key are never shared; those of a prompt are not even kept. Keys are not negative.
        Raises ``TooLongError`` if it can never run, ValueError if the figures contradict each other,
        KeyError if its id is in use.
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
        answer: tuple[Sequence[BlockKey], range] = (), range(0)
        if len(request.keys) == request.prompt_tokens // block:
            # The last token of an output is never computed on.
            unnamed = max(0, (total - 1) // block - len(request.keys) - len(output_keys))
            self._unnamed -= unnamed
            answer = output_keys, range(self._unnamed, self._unnamed + unnamed)
        item = QueuedRequest(request, self._arrivals)
        self._arrivals += 1
        self._sequences[request.rid] = seq = EngineSequence(item, output_tokens, answer)
        if self._ahead and self._under_way:
            self._late.append(seq)
        else:
            self._push(item)
        if now >= self._next_tick:
            self._tick(now)

    def _push(self, item: QueuedRequest) -> None:
        self._queue.push(item, self.pool.match(item.request.keys) if self.ordering.uses_match else 0)

    def cancel(self, rid: RequestId) -> bool:
        """Drop a request wherever it is; return whether it was still in the engine.

        What it computed stays cached; prompt work that was charged and not done is refunded.
        """
        seq = self._sequences.pop(rid, None)
        if seq is None:
            return False
        if seq.state == WAITING:
            if seq in self._late:
                self._late.remove(seq)
            else:
                self._queue.discard(seq.item)
            return True
        if seq.state == PREEMPTED:
            self._preempted.remove(seq)
        else:
            self._leave_batch(seq)
        undone = seq.paid - seq.computed
        if undone > 0:
            self.ordering.corrected(0, seq.client, 0, -undone)
        self.ordering.ended(0, seq.item, seq.extend - max(0, undone), seq.output)
        self.ordering.released(0, seq.client)
        return True

    def reset_cache(self) -> list[BlockKey]:
        """Empty the prefix cache but for blocks in use; return the keys that went."""
        evicted = _named(self.pool.clear())
        if self.ordering.uses_match:
            self._queue.cache_evicted(evicted)
        return evicted

    def step(self, now: int) -> StepResult | None:
        """Run one step that starts at ``now``; None when there is nothing to compute."""
        if now >= self._next_tick:
            self._tick(now)
        step = StepResult(self.max_num_batched_tokens)
        self._give_blocks(step)
        step.budget -= len(self._decodes)
        for seq in tuple(self._prefills.values()):
            self._prefill(seq, step)
        if not step.full:
            self._admit(step)
        idle = not self._decodes and not step.prefilled
        if self._late or self._leaving:
            self.catch_up()
            if idle:
                self._admit(step)
                idle = not step.prefilled
        self._under_way = not idle
        if idle:
            assert not self._batch, "a batch that makes no progress"
            return None
        return self._compute(step, 1)

    def catch_up(self) -> None:
        """Take note of what happened in the last step, as a step does that was scheduled before.

        For callers whose ``fast_forward`` took the place of that step.
        """
        for seq in self._leaving:
            self._let_go(seq)
        self._leaving.clear()
        for seq in self._late:
            self._push(seq.item)
        self._late.clear()

    def fast_forward_steps(self) -> int:
        """Return how many steps from now would only decode, up to the next that ends a request.

        0 if the next one does more: it has to be a ``step``. Whatever is submitted or cancelled
        changes the answer. Where results name blocks, it stops before an eviction, so that an eviction is
        reported with its own step.
        """
        if not self._decodes or self._prefills or self._late or self._leaving or self._may_admit():
            return 0
        decodes = self._decodes
        steps = decodes.steps_to_end()
        available = self.pool.unused if self._tells_blocks else self.pool.available
        most = (steps // self.block_tokens + 1) * len(decodes)
        if most > available and decodes.blocks_for(steps) > available:
            steps = bisect_right(range(1, steps + 1), available, key=decodes.blocks_for)
        return steps

    def fast_forward_us(self, steps: int) -> int:
        """Return how long so many steps that only decode will take."""
        ps = self.profile.steps.decode_ps(len(self._decodes), self._decodes.context, steps)
        return (self._carry + ps) // PS_PER_US

    def fast_forward_steps_until(self, us: int) -> int:
        """Return the least number of steps that only decode after which ``us`` have passed."""
        ps = us * PS_PER_US - self._carry
        return self.profile.steps.decode_steps(len(self._decodes), self._decodes.context, ps)

    def fast_forward(self, steps: int) -> StepResult:
        """Take at most ``fast_forward_steps()`` steps, at least one, at once."""
        step = StepResult(0)
        self._take_blocks(self._decodes.blocks_for(steps), step)
        return self._compute(step, steps)

    @property
    def async_scheduling(self) -> bool:
        """Whether a step is scheduled while the one before it runs."""
        return self._ahead

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._decodes.number

    @property
    def decoding_clients(self) -> Mapping[ClientId, int]:
        """How many requests of each client decode."""
        return self._decodes.clients

    def decoding(self) -> Iterator[tuple[RequestId, int]]:
        """Iterate over the requests that decode: id, and output tokens so far."""
        return self._decodes.outputs()

    def _compute(self, step: StepResult, steps: int) -> StepResult:
        """Compute what the step, and ``steps`` - 1 more that only decode, were given to compute."""
        seqs, context = len(self._decodes), self._decodes.context
        times = self.profile.steps
        if steps == 1:
            ps = times.step_ps(seqs, context, step.prefilled, step.area)
        else:
            ps = times.decode_ps(seqs, context, steps)
        step.duration_us, self._carry = divmod(self._carry + ps, PS_PER_US)
        step.decode_seqs, step.decode_context, step.steps = seqs, context, steps
        if self._list_tokens:
            step.tokens = list(self._decodes.sequences)
        self._decode(step, steps)
        for seq in step.ready:
            self._first_token(seq, step)
            if self._list_tokens:
                step.tokens.append(seq.rid)
        return step

    def __contains__(self, rid: RequestId) -> bool:
        return rid in self._sequences

    @property
    def load(self) -> Load:
        """What the engine reports of itself, as of the end of the last step."""
        return self.load_after(0)

    def load_after(self, steps: int) -> Load:
        """Return what it would report after so many of ``fast_forward_steps()``, without taking them."""
        running = len(self._batch) - len(self._leaving)
        used = self.pool.used + (self._decodes.blocks_for(steps) if steps else 0)
        return Load(
            running,
            len(self._sequences) - running,
            used / self.pool.blocks,
            self._queries,
            self._hits,
            self._preemptions,
        )

    # 1. Decoding sequences

    def _give_blocks(self, step: StepResult) -> None:
        """Give a block to each sequence whose last one is full, the earliest admitted first."""
        count = self._decodes.full_blocks()
        if count <= self.pool.available:
            self._take_blocks(count, step)
            return
        for seq in self._decodes.with_full_block():
            while seq.state == DECODE and not self.pool.available:
                step.full = True
                youngest = next(reversed(self._batch.values()))
                if youngest.state == GONE:
                    self._leaving.remove(youngest)
                    self._let_go(youngest)
                else:
                    self._preempt(youngest, step)
            if seq.state == DECODE:
                self._take_blocks(1, step)

    def _preempt(self, seq: EngineSequence, step: StepResult) -> None:
        if seq.state == DECODE:
            seq.settle(self._decodes.number, self.block_tokens)
            # Scheduled ahead, the engine does not know the newest token yet, and a block has no key without.
            self._publish(seq, step, unknown=int(self._ahead))
        self._leave_batch(seq)
        seq.chain, seq.answer = [*seq.chain, *seq.continued()], ((), range(0))
        seq.state = PREEMPTED
        self._preempted.appendleft(seq)
        self._preemptions += 1
        step.preempted = with_item(step.preempted, seq.rid)

    def _decode(self, step: StepResult, steps: int) -> None:
        """Let every decoding sequence compute a token in each step; end those that the last one ends."""
        decodes = self._decodes
        for client, count in decodes.clients.items():
            self.ordering.decoded(0, client, count * steps)
        decodes.advance(steps)
        while (seq := decodes.pop_done()) is not None:
            seq.settle(decodes.number, self.block_tokens)
            self._publish(seq, step)
            self._finish(seq, step)

    # 2. Prompts

    def _prefill(self, seq: EngineSequence, step: StepResult) -> None:
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
            step.ready = with_item(step.ready, seq)

    def _first_token(self, seq: EngineSequence, step: StepResult) -> None:
        """Emit the token that the end of a prefill gives, and let the sequence decode."""
        if not seq.output:
            step.first = with_item(step.first, seq.rid)
        seq.output += 1
        self.ordering.decoded(0, seq.client, 1)
        if seq.output == seq.output_tokens:
            self._finish(seq, step)
            return
        del self._prefills[seq.rid]
        self._decodes.begin(seq)

    # 3. Admission

    def _admit(self, step: StepResult) -> None:
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

    def _may_admit(self) -> bool:
        """Whether a step, if decoding goes on, could admit somebody before the next request ends.

        What does not fit now will not fit before; but who is next may change by what is decoded.
        """
        if len(self._batch) >= self.max_num_seqs or len(self._decodes) >= self.max_num_batched_tokens:
            return False
        if self._preempted:
            return self._fits(self._preempted[0])
        return len(self._queue) > 0

    def _item_fits(self, item: QueuedRequest) -> bool:
        return self._fits(self._sequences[item.rid])

    def _fits(self, seq: EngineSequence) -> bool:
        """Whether blocks for its whole prompt can be had, with the watermark left unless it is alone."""
        needed = -(-seq.goal // self.block_tokens)
        reserve = self._watermark if self._batch else 0
        available = self.pool.available - reserve
        if needed <= available:
            return True
        matched = self._reusable(seq)
        return needed - matched + self.pool.idle_within(seq.chain, matched) <= available

    def _reusable(self, seq: EngineSequence) -> int:
        """Cached blocks that it can use: at least its last token has to be computed."""
        return self.pool.match(seq.chain, (seq.goal - 1) // self.block_tokens)

    def _enter_batch(self, seq: EngineSequence, step: StepResult) -> None:
        resumed = seq.state == PREEMPTED
        matched = self._reusable(seq)
        cached = matched * self.block_tokens
        seq.held = self.pool.use(seq.chain, matched)
        seq.published = matched
        seq.blocks = -(-seq.goal // self.block_tokens)
        self._take_blocks(-(-seq.goal // self.block_tokens) - matched, step)
        if resumed:
            self.ordering.corrected(0, seq.client, 0, seq.computed - cached)
        else:
            seq.paid = seq.goal
            self.ordering.admitted(0, seq.item, seq.goal - cached)
            self._queries += seq.goal
            self._hits += cached
        seq.extend += seq.goal - cached
        seq.computed = cached
        seq.state = PREFILL
        self._admissions += 1
        seq.admitted = self._admissions
        self._batch[seq.rid] = self._prefills[seq.rid] = seq
        admission = Admission(seq.rid, cached, seq.goal - cached, resumed)
        step.admitted = with_item(step.admitted, admission)
        self._prefill(seq, step)

    # Blocks, and leaving the batch

    def _take_blocks(self, count: int, step: StepResult) -> None:
        """Take private blocks from the pool."""
        if not count:
            return
        evicted = self.pool.allocate(count, self._list_blocks)
        if evicted and (evicted := _named(evicted)):
            if self.ordering.uses_match:
                self._queue.cache_evicted(evicted)
            more = step.take_back(evicted) if step.stored else evicted
            step.evicted = step.evicted + more if step.evicted else more

    def _publish(self, seq: EngineSequence, step: StepResult, unknown: int = 0) -> None:
        """Put the blocks that a sequence has filled, but for its last tokens, into the prefix cache."""
        start, chain, base = seq.published, seq.chain, 0
        if seq.state == DECODE and start == len(chain):
            chain, base = seq.continued(), start
        end = min((seq.computed - unknown) // self.block_tokens, base + len(chain))
        if end <= start:
            return
        seq.held, first = self.pool.publish(seq.held, chain, start - base, end - base)
        seq.published = end
        if first == end - base or chain[first] < 0 or not self._list_blocks:
            return  # nothing new, only what has no name, or nobody to tell
        new = list(chain[first : end - base])
        if new[-1] < 0:
            new = _named(new)
        if self.ordering.uses_match:
            self._queue.cache_stored(new)
        before = chain[first - 1] if first else seq.chain[base - 1] if base else None
        stored = Stored(seq.rid, base + first, new, before)
        step.stored = with_item(step.stored, stored)

    def _leave_batch(self, seq: EngineSequence) -> None:
        """Take a sequence out of the batch and give back its blocks; ``computed`` stays as a record."""
        self._stop(seq)
        self._let_go(seq)

    def _stop(self, seq: EngineSequence) -> None:
        """Compute no more of a sequence."""
        if seq.state == DECODE:
            self._decodes.end(seq)
            seq.goal = seq.item.request.prompt_tokens + seq.output
            seq.paid = seq.computed
        else:
            del self._prefills[seq.rid]
        seq.state = GONE

    def _let_go(self, seq: EngineSequence) -> None:
        """Give up a stopped sequence's place in the batch, and its blocks."""
        del self._batch[seq.rid]
        self.pool.release(seq.held, seq.blocks - seq.published)
        seq.blocks = seq.published = 0

    def _finish(self, seq: EngineSequence, step: StepResult) -> None:
        del self._sequences[seq.rid]
        step.finished = with_item(step.finished, seq.rid)
        self.ordering.ended(0, seq.item, seq.extend, seq.output)
        self.ordering.released(0, seq.client)
        self._stop(seq)
        # The next step was scheduled before; it misses place and blocks only if it has a use for them.
        if self._ahead and (self._preempted or len(self._queue) or self.pool.available < len(self._batch)):
            self._leaving.append(seq)
        else:
            self._let_go(seq)

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
            steps = self._decodes.number - seq.since if seq.state == DECODE else 0
            computed = seq.computed + steps
            blocks = -(-computed // self.block_tokens) if seq.state == DECODE else seq.blocks
            assert blocks * self.block_tokens >= computed
            prompt_blocks = seq.goal // self.block_tokens
            chain = [*seq.chain, *seq.continued()]
            assert seq.published == min(computed // self.block_tokens, prompt_blocks, len(chain))
            context += computed if seq.state == DECODE else 0
            private += blocks - seq.published
            for key in chain[: seq.published]:
                references[key] = references.get(key, 0) + 1
        assert context == self._decodes.context
        self.pool.check_holders(references, private)
        leaving = {seq.rid for seq in self._leaving}
        assert set(self._batch) == set(self._prefills) | set(self._decodes.sequences) | leaving
        self._decodes.check()
        waiting = len(self._preempted) + len(self._queue) + len(self._late)
        assert len(self._batch) - len(leaving) + waiting == len(self._sequences)

    def __repr__(self) -> str:
        load = self.load
        return f"<Engine {self.profile.name} running={load.running} waiting={load.waiting} {self.pool!r}>"
