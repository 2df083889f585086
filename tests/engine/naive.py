"""The engine and its pool as one would write them first: every sequence touched at every step.

What the real ones are compared with, and timed against (benchmarks/engine.py).
"""

from fairlead.core.model import Request
from fairlead.engine.profiles import Profile
from fairlead.engine.steptime import Work


class NaivePool:
    """Who uses which cached block, and when each became idle; every question by full search."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.users: dict[int, set[int]] = {}
        self.idle_since: dict[int, int] = {}
        self.private = 0
        self.clock = 0

    def match(self, chain: list[int]) -> int:
        count = 0
        while count < len(chain) and chain[count] in self.users:
            count += 1
        return count

    def available(self) -> int:
        return self.blocks - self.private - sum(1 for users in self.users.values() if users)

    def allocate(self, count: int) -> list[int]:
        self.private += count
        evicted = []
        while self.private + len(self.users) > self.blocks:
            oldest = min(
                (key for key, users in self.users.items() if not users), key=self.idle_since.__getitem__
            )
            del self.users[oldest]
            evicted.append(oldest)
        return evicted

    def publish(self, who: int, keys: list[int]) -> list[int]:
        new = [key for key in keys if key not in self.users]
        for key in keys:
            self.users.setdefault(key, set()).add(who)
            self.private -= 1
        return new

    def release(self, who: int, held: list[int], private: int) -> None:
        """Let go of everything; the last block of the chain becomes idle first."""
        self.private -= private
        for key in reversed(held):
            self.users[key].discard(who)
            self.clock += 1
            if not self.users[key]:
                self.idle_since[key] = self.clock


class NaiveSequence:
    """A request: what it will be, and how far it is."""

    def __init__(self, request: Request, output_tokens: int, chain: list[int]) -> None:
        self.rid = request.rid
        self.prompt = request.prompt_tokens
        self.total_output = output_tokens
        self.chain = chain
        self.output = self.computed = self.blocks = self.published = 0

    @property
    def goal(self) -> int:
        """Tokens that a prefill has to compute: all there are, less the newest when it decodes."""
        return self.prompt + self.output


class NaiveEngine:
    """First come, first served. ``step`` returns what ``StepResult`` holds, as a dict."""

    def __init__(
        self,
        profile: Profile,
        blocks: int,
        block_tokens: int,
        seqs: int,
        budget: int,
    ) -> None:
        self.profile = profile
        self.pool = NaivePool(blocks)
        self.size = block_tokens
        self.seqs = seqs
        self.budget = budget
        self.waiting: list[NaiveSequence] = []
        self.batch: list[NaiveSequence] = []
        self.decoding: set[int] = set()
        self.carry = 0

    def submit(self, request: Request, output_tokens: int, output_keys: list[int]) -> None:
        self.waiting.append(NaiveSequence(request, output_tokens, [*request.keys, *output_keys]))

    def step(self) -> dict[str, object] | None:
        self.evicted: list[int] = []
        self.stored: list[tuple[int, int, list[int]]] = []
        self.ready: list[NaiveSequence] = []
        self.left = self.budget
        self.prefilled = self.area = 0
        preempted = self._give_blocks()
        decodes = [seq for seq in self.batch if seq.rid in self.decoding]
        context = sum(seq.computed for seq in decodes)
        self.left -= len(decodes)
        for seq in self.batch:
            if seq.rid not in self.decoding:
                self._prefill(seq)
        admitted = [] if preempted else self._admit()
        work = Work(len(decodes), context, self.prefilled, self.area)
        if work == Work():
            return None
        tokens: list[int] = []
        finished: list[int] = []
        for seq in decodes:
            seq.computed += 1
            if seq.output + 1 == seq.total_output:
                self._publish(seq)
            self._emit(seq, tokens, finished)
        for seq in self.ready:
            self.decoding.add(seq.rid)
            self._emit(seq, tokens, finished)
        ps = self.carry + self.profile.steps.step_ps(*work)
        self.carry = ps % 1_000_000
        return {
            "duration_us": ps // 1_000_000,
            "work": work,
            "tokens": sorted(tokens),
            "finished": finished,
            "admitted": admitted,
            "preempted": preempted,
            "evicted": self.evicted,
            "stored": [entry for entry in self.stored if entry[2]],
        }

    def _give_blocks(self) -> list[int]:
        preempted: list[int] = []
        for seq in list(self.batch):
            if seq.rid not in self.decoding or seq.computed < seq.blocks * self.size:
                continue
            while seq in self.batch and not self.pool.available():
                victim = self.batch.pop()
                self._publish(victim)
                self._release(victim)
                self.waiting.insert(0, victim)
                preempted.append(victim.rid)
            if seq in self.batch:
                self._allocate(seq, 1)
        return preempted

    def _prefill(self, seq: NaiveSequence) -> None:
        chunk = min(self.left, seq.goal - seq.computed)
        if not chunk:
            return
        self.left -= chunk
        self.prefilled += chunk
        self.area += chunk * (2 * seq.computed + chunk)
        seq.computed += chunk
        self._publish(seq)
        if seq.computed == seq.goal:
            self.ready.append(seq)

    def _admit(self) -> list[tuple[int, int]]:
        admitted = []
        while self.waiting and self.left and len(self.batch) < self.seqs:
            seq = self.waiting[0]
            matched = self.pool.match(seq.chain[: (seq.goal - 1) // self.size])
            needed = -(-seq.goal // self.size) - matched
            idle = sum(1 for key in seq.chain[:matched] if not self.pool.users[key])
            if needed + idle > self.pool.available():
                break
            del self.waiting[0]
            for key in seq.chain[:matched]:
                self.pool.users[key].add(seq.rid)
            seq.blocks = seq.published = matched
            self._allocate(seq, needed)
            seq.computed = matched * self.size
            self.batch.append(seq)
            admitted.append((seq.rid, seq.computed))
            self._prefill(seq)
        return admitted

    def _allocate(self, seq: NaiveSequence, count: int) -> None:
        for key in self.pool.allocate(count):
            for _, _, stored in self.stored:
                if key in stored:  # in this very step: nobody has heard of it
                    stored.remove(key)
                    break
            else:
                self.evicted.append(key)
        seq.blocks += count

    def _publish(self, seq: NaiveSequence) -> None:
        end = min(seq.computed // self.size, len(seq.chain))
        new = self.pool.publish(seq.rid, seq.chain[seq.published : end])
        seq.published = max(end, seq.published)
        if new:
            self.stored.append((seq.rid, end - len(new), new))

    def _emit(self, seq: NaiveSequence, tokens: list[int], finished: list[int]) -> None:
        seq.output += 1
        tokens.append(seq.rid)
        if seq.output == seq.total_output:
            finished.append(seq.rid)
            self.batch.remove(seq)
            self._release(seq)

    def _release(self, seq: NaiveSequence) -> None:
        self.pool.release(seq.rid, seq.chain[: seq.published], seq.blocks - seq.published)
        seq.blocks = seq.published = 0
        self.decoding.discard(seq.rid)
