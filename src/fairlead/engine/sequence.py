"""A request inside the engine model."""

from collections.abc import Sequence
from typing import Final

from fairlead.core.model import BlockKey, ClientId
from fairlead.core.ordering.base import QueuedRequest
from fairlead.engine.kv import BlockRun

# Where it is.
WAITING: Final = 0
PREEMPTED: Final = 1
"""It was in the batch, lost its KV, and waits again."""
PREFILL: Final = 2
DECODE: Final = 3
GONE: Final = 4
"""It is computed no more."""


class EngineSequence:
    """A request inside the engine."""

    __slots__ = (
        "admitted",
        "answer",
        "blocks",
        "chain",
        "computed",
        "due",
        "extend",
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

    def __init__(
        self, item: QueuedRequest, output_tokens: int, answer: tuple[Sequence[BlockKey], range]
    ) -> None:
        self.item = item
        self.rid = item.rid
        self.output_tokens = output_tokens
        """Output tokens that it will have in the end. Only the model of the engine knows."""
        self.chain: Sequence[BlockKey] = item.keys
        """Keys of its blocks: of the prompt; once it was preempted, of the answer too."""
        self.answer = answer
        """The keys that continue the chain with the answer's blocks, given and made up."""
        self.state = WAITING
        self.goal = item.request.prompt_tokens
        """Tokens that must be in KV before it decodes: the prompt, and the output so far."""
        self.computed = 0
        """Tokens in KV; while it decodes, as of step ``since``."""
        self.output = 0
        """Output tokens so far; while it decodes, as of step ``since``."""
        self.paid = 0
        """Tokens in KV that its client was charged for as prompt work."""
        self.extend = 0
        """Prompt tokens that it was admitted to compute, each time."""
        self.blocks = 0
        """While it decodes, as of step ``since``."""
        self.published = 0
        """Leading blocks that are in the cache, referenced."""
        self.held: BlockRun
        """The blocks of the cache that it holds, while it is in the batch."""
        self.admitted = 0
        """Number of its last admission: the order of the batch."""
        self.since = 0
        self.due = -1
        """Step in which it finishes; -1 unless it decodes."""
        self.phase = 0
        """It takes a new block in the steps that leave this remainder when divided by the block size."""

    @property
    def client(self) -> ClientId:
        """Whose request it is."""
        return self.item.client

    def settle(self, number: int, block_tokens: int) -> None:
        """Bring the counts of a sequence that decodes up to date, as of step ``number``."""
        steps = number - self.since
        self.computed += steps
        self.output += steps
        self.blocks = -(-self.computed // block_tokens)
        self.since = number

    def continued(self) -> list[BlockKey]:
        """Return the keys of the answer's blocks."""
        return [*self.answer[0], *self.answer[1]]


def by_admission(seq: EngineSequence) -> int:
    """Return the key that sorts sequences by their last admission."""
    return seq.admitted
