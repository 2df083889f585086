"""One request inside the dispatcher, from arrival to its end."""

from collections.abc import Sequence

from fairlead.core.ledger import Account
from fairlead.core.lifecycle import MOVES, LifecycleError, State
from fairlead.core.model import Request
from fairlead.core.ordering.base import QueuedRequest
from fairlead.core.prefix import Claim
from fairlead.core.routing.base import Choice


class TrackedRequest(QueuedRequest):
    """Mutable state of one request: what queues see of it, and what only the dispatcher may touch."""

    __slots__ = (
        "account", "attempts", "cached_prompt_tokens", "candidates", "choice", "claim", "deadline", "decoded",
        "expected", "extend", "kv_extra", "pending_prefill_tokens", "refusals", "sequences", "slot", "state",
        "tried",
    )  # fmt: skip

    account: Account
    """The client's books, while it runs."""
    choice: Choice
    candidates: Sequence[int]
    """The slots that ``choice.scores`` belong to. Both are set by routing."""

    def __init__(self, request: Request, seq: int, expected: int) -> None:
        super().__init__(request, seq)
        self.sequences = request.sequences
        self.state = State.QUEUED
        self.slot = -1
        """Worker slot; -1 while parked because no worker is up."""
        self.claim: Claim | None = None
        self.cached_prompt_tokens = 0
        """Prompt tokens predicted to be cached: at routing, then again at admission."""
        self.extend = 0
        """Extend tokens as last told to the routing policy; once running, as charged."""
        self.pending_prefill_tokens = 0
        """Extend tokens of this request counted in the worker's pending prefill."""
        self.kv_extra = 0
        """KV tokens beside its blocks: the tail of the prompt and the output."""
        self.expected = expected
        """Output tokens of all its sequences that are expected, and kept free for.

        Fixed at arrival, so that what fits, stays fitting.
        """
        self.decoded = 0
        """Output tokens charged so far."""
        self.deadline = 0
        """When its waiting ends, set when it first waits; 0 for never."""
        self.attempts = 0
        """How often it was sent."""
        self.refusals = 0
        """How many of these a worker refused because it had no room."""
        self.tried: tuple[int, ...] = ()
        """Slots that failed it."""

    def move(self, what: str) -> None:
        """Make a legal move of the lifecycle; ``LifecycleError`` otherwise."""
        try:
            self.state = MOVES[self.state][what]
        except KeyError:
            raise LifecycleError(f"request {self.rid} is {self.state}: it cannot {what}") from None

    def __repr__(self) -> str:
        return f"<TrackedRequest {self.rid} {self.client} {self.state} slot={self.slot}>"
