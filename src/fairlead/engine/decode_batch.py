"""The sequences of an engine that decode, in closed form.

A sequence is changed when it begins to decode and when it ends, not in between: its state follows from the
number of the step. Every decoding sequence takes one block every ``block_tokens`` steps; the remainder of the
step's number at which it does is its *phase*. So how many blocks a step needs is the number of sequences of
its phase.
"""

from collections.abc import Iterator
from heapq import heappop, heappush

from fairlead.core.model import ClientId, RequestId
from fairlead.engine.sequence import DECODE, EngineSequence, by_admission


class DecodeBatch:
    """The decoding sequences, and the number of the step. ``block_tokens``: tokens in a KV block."""

    __slots__ = (
        "_block_tokens",
        "_ends",
        "_phase_counts",
        "_phases",
        "clients",
        "context",
        "number",
        "sequences",
    )

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.number = 0
        """Steps so far."""
        self.sequences: dict[RequestId, EngineSequence] = {}
        self.context = 0
        """Tokens in KV of all of them, summed."""
        self.clients: dict[ClientId, int] = {}
        """How many of each client's."""
        self._ends: list[tuple[int, int, EngineSequence]] = []
        """Heap of (step in which it finishes, admission, sequence); some have left the batch since."""
        self._phases: list[dict[RequestId, EngineSequence]] = [{} for _ in range(block_tokens)]
        self._phase_counts = [0] * block_tokens

    def __len__(self) -> int:
        return len(self.sequences)

    def begin(self, seq: EngineSequence) -> None:
        """Let a sequence decode from the next step on; its counts are up to date."""
        seq.state = DECODE
        self.sequences[seq.rid] = seq
        self.context += seq.computed
        self.clients[seq.client] = self.clients.get(seq.client, 0) + 1
        seq.since = self.number
        seq.due = self.number + seq.output_tokens - seq.output
        heappush(self._ends, (seq.due, seq.admitted, seq))
        size = self._block_tokens
        seq.phase = phase = (self.number + seq.blocks * size - seq.computed) % size
        self._phases[phase][seq.rid] = seq
        self._phase_counts[phase] += 1

    def end(self, seq: EngineSequence) -> None:
        """Take a sequence out, with its counts brought up to date."""
        seq.settle(self.number, self._block_tokens)
        del self.sequences[seq.rid]
        self.context -= seq.computed
        seq.due = -1
        del self._phases[seq.phase][seq.rid]
        self._phase_counts[seq.phase] -= 1
        left = self.clients[seq.client] - 1
        if left:
            self.clients[seq.client] = left
        else:
            del self.clients[seq.client]

    def advance(self, steps: int) -> None:
        """Let every sequence compute a token in each of so many steps. ``pop_done`` tells who is done."""
        self.context += len(self.sequences) * steps
        self.number += steps

    def pop_done(self) -> EngineSequence | None:
        """Return a sequence that has all its output and is still here, in order of admission; else None."""
        ends = self._ends
        while ends and ends[0][0] <= self.number:
            due, _, seq = heappop(ends)
            if seq.due == due:  # else it has left the batch since
                return seq
        return None

    def steps_to_end(self) -> int:
        """Return in how many steps the next sequence is done. There is one."""
        ends = self._ends
        while ends[0][2].due != ends[0][0]:
            heappop(ends)  # it has left the batch since
        return ends[0][0] - self.number

    def full_blocks(self) -> int:
        """Return how many sequences need a block for the next step."""
        return self._phase_counts[self.number % self._block_tokens]

    def with_full_block(self) -> list[EngineSequence]:
        """Return the sequences that need a block for the next step, the earliest admitted first."""
        return sorted(self._phases[self.number % self._block_tokens].values(), key=by_admission)

    def blocks_for(self, steps: int) -> int:
        """Return how many blocks the next ``steps`` steps take if they only decode."""
        size, counts = self._block_tokens, self._phase_counts
        rounds, rest = divmod(steps, size)
        start = self.number % size
        end = start + rest
        blocks = sum(counts[start:end])
        if end > size:
            blocks += sum(counts[: end - size])
        return blocks + rounds * len(self.sequences)

    def outputs(self) -> Iterator[tuple[RequestId, int]]:
        """Iterate over the sequences: id, and output tokens so far."""
        number = self.number
        for seq in self.sequences.values():
            yield seq.rid, seq.output + number - seq.since

    def check(self) -> None:
        """Raise AssertionError if counts contradict each other."""
        assert [len(phase) for phase in self._phases] == self._phase_counts
        assert sum(self._phase_counts) == sum(self.clients.values()) == len(self.sequences)
