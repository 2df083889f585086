"""One request inside the dispatcher, from arrival to its end."""

from collections.abc import Sequence

from fairlead.core.lifecycle import State, move
from fairlead.core.model import Request
from fairlead.core.ordering.base import Waiting
from fairlead.core.prefix_tree import Claim
from fairlead.core.routing.base import Choice


class Job:
    """Mutable state of one request. Only the dispatcher writes to it."""

    __slots__ = (
        "attempts", "candidates", "choice", "claim", "decoded", "expected", "extend", "item", "kv_extra",
        "matched", "pending", "request", "slot", "state", "tried",
    )  # fmt: skip

    def __init__(self, request: Request, seq: int) -> None:
        self.request = request
        self.item = Waiting(request, seq)
        self.state = State.QUEUED
        self.slot = -1
        """Worker slot; -1 while parked because no worker is up."""
        self.claim: Claim | None = None
        self.matched = 0
        """Prompt tokens predicted to be cached: at routing, then again at admission."""
        self.extend = 0
        """Extend tokens as last told to the routing policy; once running, as charged."""
        self.pending = 0
        """Extend tokens of this request counted in the worker's pending prefill."""
        self.kv_extra = 0
        """KV tokens beside its blocks: the tail of the prompt and the output."""
        self.expected = 0
        """Output tokens that room is kept for. Fixed at arrival, so that what fits, stays fitting."""
        self.decoded = 0
        """Output tokens charged so far."""
        self.attempts = 0
        self.tried: tuple[int, ...] = ()
        """Slots that failed it."""
        self.choice: Choice | None = None
        self.candidates: Sequence[int] = ()
        """The slots that ``choice.scores`` belong to."""

    def move(self, what: str) -> None:
        """Make a legal move of the lifecycle; ``LifecycleError`` otherwise."""
        self.state = move(self.request.rid, self.state, what)

    def __repr__(self) -> str:
        return f"<Job {self.request.rid} {self.request.client} {self.state} slot={self.slot}>"
