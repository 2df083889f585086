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
from heapq import heappop, heappush
from typing import Final, NamedTuple, TypeVar

from fairlead.core.model import BlockKey, ClientId, Request, RequestId
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.core.ordering.base import Ordering, Waiting
from fairlead.engine.kv import KVPool, Run
from fairlead.engine.profiles import Profile
from fairlead.engine.steptime import PS_PER_US, Work

TICK_US = 1_000_000
"""How often the ordering is told of the time, to forget idle clients."""


class TooLongError(ValueError):
    """A request that can never run: prompt and output exceed the engine's context length."""


class Admission:
    """A request that left the queue in this step."""

    __slots__ = ("cached_tokens", "computed_tokens", "resumed", "rid")

    def __init__(self, rid: RequestId, cached_tokens: int, computed_tokens: int, resumed: bool) -> None:
        self.rid = rid
        self.cached_tokens = cached_tokens
        self.computed_tokens = computed_tokens
        """Tokens that its prefill will compute: prompt, and output so far, less the cached ones."""
        self.resumed = resumed
        """It was preempted before."""

    def __repr__(self) -> str:
        return f"<Admission {self.rid} cached={self.cached_tokens} computed={self.computed_tokens}>"


class Stored(NamedTuple):
    """Blocks ``start`` to ``start + len(keys)`` of a request's chain are now cached."""

    rid: RequestId
    start: int
    keys: Sequence[BlockKey]
    parent: BlockKey | None


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
_NOTHING: Final = range(0)


class _Sequence:
    """A request inside the engine."""

    __slots__ = (
        "admitted",
        "answer",
        "blocks",
        "chain",
        "computed",
        "due",
        "goal",
        "held",
        "item",
        "output",
        "output_tokens",
        "paid",
        "phase",
        "published",
        "rid",
        "since",
        "state",
    )

    def __init__(self, item: Waiting, output_tokens: int, answer: tuple[Sequence[BlockKey], range]) -> None:
        self.item = item
        self.rid = item.rid
        self.output_tokens = output_tokens
        """How many it will have in the end: known to the model of the engine only."""
        self.chain: Sequence[BlockKey] = item.keys
        """Keys of its blocks: of the prompt; once it was preempted, of the answer too."""
        self.answer = answer
        """The keys that continue the chain with the answer's blocks, given and made up."""
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
        """While it decodes, as of step ``since``."""
        self.published = 0
        """Leading blocks that are in the cache, referenced."""
        self.held: Run
        """What it holds of the cache, while it is in the batch."""
        self.admitted = 0
        """Number of its last admission: the order of the batch."""
        self.since = 0
        self.due = -1
        """Step in which it finishes; -1 unless it decodes."""
        self.phase = 0
        """It takes a new block in the steps that leave this remainder when divided by the block size."""

    @property
    def client(self) -> ClientId:
        return self.item.client

    def continued(self) -> list[BlockKey]:
        """Return the keys of the answer's blocks."""
        return [*self.answer[0], *self.answer[1]]


def _by_admission(seq: _Sequence) -> int:
    return seq.admitted


_NO_IDS: Final[list[RequestId]] = []
_NO_KEYS: Final[list[BlockKey]] = []
_NO_ADMISSIONS: Final[list[Admission]] = []
_NO_STORED: Final[list[Stored]] = []
_NO_SEQUENCES: Final[list[_Sequence]] = []

T = TypeVar("T")


def _with(items: list[T], item: T) -> list[T]:
    """Add to a step's list; the first item begins one in place of the shared empty one."""
    if items:
        items.append(item)
        return items
    return [item]


class StepResult:
    """What happened in one step, or in several that only decode.

    It takes effect when the last one ends, ``duration_us`` after the start of the first. Durations are
    rounded down and the rest is carried to the next step, so that they sum up exactly. Lists are to be
    read only: most steps have nothing to tell, and share empty ones.
    """

    __slots__ = (
        "admitted", "area", "budget", "decode_context", "decode_seqs", "duration_us", "evicted", "finished",
        "first", "full", "preempted", "prefilled", "ready", "steps", "stored", "tokens",
    )  # fmt: skip

    def __init__(self, budget: int) -> None:
        self.duration_us = 0
        self.steps = 1
        self.decode_seqs = 0
        self.decode_context = 0
        """Of the first step, as in ``Work``."""
        self.prefilled = 0
        """Prompt tokens computed."""
        self.area = 0
        """``Work.prefill_area``."""
        self.tokens = _NO_IDS
        """Requests that got one more output token in each step; not listed if the engine was told so."""
        self.first = _NO_IDS
        """Those of ``tokens`` for which it is the first."""
        self.finished = _NO_IDS
        self.admitted = _NO_ADMISSIONS
        self.preempted = _NO_IDS
        self.evicted = _NO_KEYS
        """Blocks that left the cache, before any of ``stored`` entered it."""
        self.stored = _NO_STORED
        # While it is made:
        self.budget = budget
        """Tokens that may still be computed."""
        self.ready = _NO_SEQUENCES
        """Sequences whose prefill ends in it."""
        self.full = False
        """Blocks had to be taken from somebody: nobody is admitted."""

    @property
    def work(self) -> Work:
        """What was computed, in the first step."""
        return Work(self.decode_seqs, self.decode_context, self.prefilled, self.area)

    def take_back(self, evicted: list[BlockKey]) -> list[BlockKey]:
        """Forget that blocks were stored in this step which are evicted again; return the other ones.

        It happens to what a preempted sequence leaves, and takes the end of a chain before its beginning.
        """
        gone = set(evicted)
        left: list[Stored] = []
        for stored in self.stored:
            keys = [key for key in stored.keys if key not in gone]
            gone.difference_update(stored.keys)
            if keys:
                left.append(stored._replace(keys=keys))
        self.stored = left
        return [key for key in evicted if key in gone]

    def __repr__(self) -> str:
        return (
            f"<StepResult {self.steps} in {self.duration_us} us: {self.work}, {len(self.first)} first tokens,"
            f" {len(self.finished)} ends, {len(self.admitted)} admitted, {len(self.preempted)} preempted>"
        )


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
        self._carry = 0
        """Picoseconds of steps so far that no duration has told yet."""
        self._ends: list[tuple[int, int, _Sequence]] = []
        """Heap of (step in which it finishes, admission, sequence); some have left the batch since."""
        self._phases: list[dict[RequestId, _Sequence]] = [{} for _ in range(block_tokens)]
        """The decoding sequences by their ``phase``."""
        self._phase_counts = [0] * block_tokens
        self._list_tokens = list_tokens
        self._tells_blocks = list_blocks
        self._list_blocks = list_blocks or self.ordering.uses_match
        self._ahead = async_scheduling
        self._under_way = False
        """Whether a step was taken, and the next one has not been asked for in vain."""
        self._late: list[_Sequence] = []
        """What came during the last step, if the next one was scheduled before."""
        self._leaving: list[_Sequence] = []
        """Requests that ended in the last step, and are still in the batch."""
        self._arrivals = 0
        self._admissions = 0
        self._next_tick = 0
        self._queries = self._hits = self._preemptions = 0
        self._unnamed = 0
        """The least key given so far to a block of an output that the caller has no key for."""

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
        answer: tuple[Sequence[BlockKey], range] = (), _NOTHING
        if len(request.keys) == request.prompt_tokens // block:
            # The last token of an output is never computed on.
            unnamed = max(0, (total - 1) // block - len(request.keys) - len(output_keys))
            self._unnamed -= unnamed
            answer = output_keys, range(self._unnamed, self._unnamed + unnamed)
        item = Waiting(request, self._arrivals)
        self._arrivals += 1
        self._sequences[request.rid] = seq = _Sequence(item, output_tokens, answer)
        if self._ahead and self._under_way:
            self._late.append(seq)
        else:
            self._push(item)
        if now >= self._next_tick:
            self._tick(now)

    def _push(self, item: Waiting) -> None:
        self._queue.push(item, self.pool.match(item.request.keys) if self.ordering.uses_match else 0)

    def cancel(self, rid: RequestId) -> bool:
        """Drop a request wherever it is; return whether it was still in the engine.

        What it computed stays cached; prompt work that was charged and not done is refunded.
        """
        seq = self._sequences.pop(rid, None)
        if seq is None:
            return False
        if seq.state == _WAITING:
            if seq in self._late:
                self._late.remove(seq)
            else:
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
        ends = self._ends
        while ends[0][2].due != ends[0][0]:
            heappop(ends)  # it has left the batch since
        steps = ends[0][0] - self._number
        available = self.pool.unused if self._tells_blocks else self.pool.available
        most = (steps // self.block_tokens + 1) * len(self._decodes)
        if most > available and self._blocks_for(steps) > available:
            steps = bisect_right(range(1, steps + 1), available, key=self._blocks_for)
        return steps

    def fast_forward_us(self, steps: int) -> int:
        """Return how long so many steps that only decode will take."""
        ps = self.profile.steps.decode_ps(len(self._decodes), self._context, steps)
        return (self._carry + ps) // PS_PER_US

    def fast_forward_steps_until(self, us: int) -> int:
        """Return the least number of steps that only decode after which ``us`` have passed."""
        ps = us * PS_PER_US - self._carry
        return self.profile.steps.decode_steps(len(self._decodes), self._context, ps)

    def fast_forward(self, steps: int) -> StepResult:
        """Take at most ``fast_forward_steps()`` steps, at least one, at once."""
        step = StepResult(0)
        self._take_blocks(self._blocks_for(steps), step)
        return self._compute(step, steps)

    @property
    def async_scheduling(self) -> bool:
        """Whether a step is scheduled while the one before it runs."""
        return self._ahead

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._number

    @property
    def decoding_clients(self) -> Mapping[ClientId, int]:
        """How many requests of each client decode."""
        return self._decoding_clients

    def decoding(self) -> Iterator[tuple[RequestId, int]]:
        """Iterate over the requests that decode: id, and output tokens so far."""
        number = self._number
        for seq in self._decodes.values():
            yield seq.rid, seq.output + number - seq.since

    def _compute(self, step: StepResult, steps: int) -> StepResult:
        """Compute what the step, and ``steps`` - 1 more that only decode, were given to compute."""
        seqs, context = len(self._decodes), self._context
        times = self.profile.steps
        if steps == 1:
            ps = times.step_ps(seqs, context, step.prefilled, step.area)
        else:
            ps = times.decode_ps(seqs, context, steps)
        step.duration_us, self._carry = divmod(self._carry + ps, PS_PER_US)
        step.decode_seqs, step.decode_context, step.steps = seqs, context, steps
        if self._list_tokens:
            step.tokens = list(self._decodes)
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
        used = self.pool.used + (self._blocks_for(steps) if steps else 0)
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
        phase = self._number % self.block_tokens
        count = self._phase_counts[phase]
        if count <= self.pool.available:
            self._take_blocks(count, step)
            return
        for seq in sorted(self._phases[phase].values(), key=_by_admission):
            while seq.state == _DECODE and not self.pool.available:
                step.full = True
                youngest = next(reversed(self._batch.values()))
                if youngest.state == _GONE:
                    self._leaving.remove(youngest)
                    self._let_go(youngest)
                else:
                    self._preempt(youngest, step)
            if seq.state == _DECODE:
                self._take_blocks(1, step)

    def _blocks_for(self, steps: int) -> int:
        """Return how many blocks the next ``steps`` steps take if they only decode."""
        size, counts = self.block_tokens, self._phase_counts
        rounds, rest = divmod(steps, size)
        start = self._number % size
        end = start + rest
        blocks = sum(counts[start:end])
        if end > size:
            blocks += sum(counts[: end - size])
        return blocks + rounds * len(self._decodes)

    def _preempt(self, seq: _Sequence, step: StepResult) -> None:
        if seq.state == _DECODE:
            self._settle(seq)
            # Scheduled ahead, the engine does not know the newest token yet, and a block has no key without.
            self._publish(seq, step, unknown=int(self._ahead))
        self._leave_batch(seq)
        seq.chain, seq.answer = [*seq.chain, *seq.continued()], ((), _NOTHING)
        seq.state = _PREEMPTED
        self._preempted.appendleft(seq)
        self._preemptions += 1
        step.preempted = _with(step.preempted, seq.rid)

    def _decode(self, step: StepResult, steps: int) -> None:
        """Let every decoding sequence compute a token in each step; end those that the last one ends."""
        self._context += len(self._decodes) * steps
        for client, count in self._decoding_clients.items():
            self.ordering.decoded(0, client, count * steps)
        self._number += steps
        number, ends = self._number, self._ends
        while ends and ends[0][0] <= number:
            due, _, seq = heappop(ends)
            if seq.due == due:  # else it has left the batch since
                self._settle(seq)
                self._publish(seq, step)
                self._finish(seq, step)

    def _begin_decoding(self, seq: _Sequence) -> None:
        seq.state = _DECODE
        self._decodes[seq.rid] = seq
        self._context += seq.computed
        self._decoding_clients[seq.client] = self._decoding_clients.get(seq.client, 0) + 1
        seq.since = self._number
        seq.due = self._number + seq.output_tokens - seq.output
        heappush(self._ends, (seq.due, seq.admitted, seq))
        size = self.block_tokens
        seq.phase = phase = (self._number + seq.blocks * size - seq.computed) % size
        self._phases[phase][seq.rid] = seq
        self._phase_counts[phase] += 1

    def _end_decoding(self, seq: _Sequence) -> None:
        self._settle(seq)
        del self._decodes[seq.rid]
        self._context -= seq.computed
        seq.due = -1
        del self._phases[seq.phase][seq.rid]
        self._phase_counts[seq.phase] -= 1
        left = self._decoding_clients[seq.client] - 1
        if left:
            self._decoding_clients[seq.client] = left
        else:
            del self._decoding_clients[seq.client]

    def _settle(self, seq: _Sequence) -> None:
        """Bring a decoding sequence's counts up to date."""
        steps = self._number - seq.since
        seq.computed += steps
        seq.output += steps
        seq.blocks = -(-seq.computed // self.block_tokens)
        seq.since = self._number

    # 2. Prompts

    def _prefill(self, seq: _Sequence, step: StepResult) -> None:
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
            step.ready = _with(step.ready, seq)

    def _first_token(self, seq: _Sequence, step: StepResult) -> None:
        """Emit the token that the end of a prefill gives, and let the sequence decode."""
        if not seq.output:
            step.first = _with(step.first, seq.rid)
        seq.output += 1
        self.ordering.decoded(0, seq.client, 1)
        if seq.output == seq.output_tokens:
            self._finish(seq, step)
            return
        del self._prefills[seq.rid]
        self._begin_decoding(seq)

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

    def _enter_batch(self, seq: _Sequence, step: StepResult) -> None:
        resumed = seq.state == _PREEMPTED
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
        seq.computed = cached
        seq.state = _PREFILL
        self._admissions += 1
        seq.admitted = self._admissions
        self._batch[seq.rid] = self._prefills[seq.rid] = seq
        admission = Admission(seq.rid, cached, seq.goal - cached, resumed)
        step.admitted = _with(step.admitted, admission)
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

    def _publish(self, seq: _Sequence, step: StepResult, unknown: int = 0) -> None:
        """Put the blocks that a sequence has filled, but for its last tokens, into the prefix cache."""
        start, chain, base = seq.published, seq.chain, 0
        if seq.state == _DECODE and start == len(chain):
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
        step.stored = _with(step.stored, stored)

    def _leave_batch(self, seq: _Sequence) -> None:
        """Take a sequence out of the batch and give back its blocks; ``computed`` stays as a record."""
        self._stop(seq)
        self._let_go(seq)

    def _stop(self, seq: _Sequence) -> None:
        """Compute no more of a sequence."""
        if seq.state == _DECODE:
            self._end_decoding(seq)
            seq.goal = seq.item.request.prompt_tokens + seq.output
            seq.paid = seq.computed
        else:
            del self._prefills[seq.rid]
        seq.state = _GONE

    def _let_go(self, seq: _Sequence) -> None:
        """Give up a stopped sequence's place in the batch, and its blocks."""
        del self._batch[seq.rid]
        self.pool.release(seq.held, seq.blocks - seq.published)
        seq.blocks = seq.published = 0

    def _finish(self, seq: _Sequence, step: StepResult) -> None:
        del self._sequences[seq.rid]
        step.finished = _with(step.finished, seq.rid)
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
            steps = self._number - seq.since if seq.state == _DECODE else 0
            computed = seq.computed + steps
            blocks = -(-computed // self.block_tokens) if seq.state == _DECODE else seq.blocks
            assert blocks * self.block_tokens >= computed
            prompt_blocks = seq.goal // self.block_tokens
            chain = [*seq.chain, *seq.continued()]
            assert seq.published == min(computed // self.block_tokens, prompt_blocks, len(chain))
            context += computed if seq.state == _DECODE else 0
            private += blocks - seq.published
            for key in chain[: seq.published]:
                references[key] = references.get(key, 0) + 1
        assert context == self._context
        self.pool.check_holders(references, private)
        leaving = {seq.rid for seq in self._leaving}
        assert set(self._batch) == set(self._prefills) | set(self._decodes) | leaving
        assert [len(phase) for phase in self._phases] == self._phase_counts
        waiting = len(self._preempted) + len(self._queue) + len(self._late)
        assert len(self._batch) - len(leaving) + waiting == len(self._sequences)

    def __repr__(self) -> str:
        load = self.load
        return f"<Engine {self.profile.name} running={load.running} waiting={load.waiting} {self.pool!r}>"
