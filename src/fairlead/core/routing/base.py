"""The interface of routing policies, which say which worker takes a request.

Workers are *slots*: small integers that the dispatcher hands out and reuses, so that the state of a
fleet is a few parallel lists. A policy reads them through ``Fleet`` and must not write.
"""

from collections.abc import Sequence
from random import Random
from typing import ClassVar, Protocol

from fairlead.core.model import ClientId, Costs, Request, WorkerId
from fairlead.core.open_class import mypyc_attr
from fairlead.core.params import Param, resolve


class Fleet(Protocol):
    """A read-only view of all workers. Each list is indexed by slot; empty slots hold zeros."""

    @property
    def ids(self) -> Sequence[WorkerId]:
        """Names; an empty string marks a free slot."""

    @property
    def candidates(self) -> Sequence[int]:
        """Slots that may take a request now (up, not full, not excluded), ascending."""

    @property
    def running(self) -> Sequence[int]:
        """Sequences of the requests that were sent to the worker and have not ended."""

    @property
    def queued(self) -> Sequence[int]:
        """Sequences of the requests that wait for the worker at the dispatcher."""

    @property
    def batch_size(self) -> Sequence[int]:
        """Batch size: ``running`` + ``queued``."""

    @property
    def pending_prefill_tokens(self) -> Sequence[int]:
        """Pending prefill: extend tokens assigned to the worker and not yet computed."""

    @property
    def kv_used(self) -> Sequence[int]:
        """KV tokens in use by assigned requests; blocks that requests share count once."""

    @property
    def kv_running(self) -> Sequence[int]:
        """The part of ``kv_used`` that is in use by requests sent to the worker."""

    @property
    def kv_cached(self) -> Sequence[int]:
        """Tokens that the worker's prefix cache is known to hold, in use or not."""

    @property
    def kv_tokens(self) -> Sequence[int]:
        """Size of the KV pool in tokens."""

    @property
    def max_num_seqs(self) -> Sequence[int]:
        """Most sequences in a batch."""

    @property
    def context(self) -> Sequence[int]:
        """Prompt tokens of the requests sent to the worker, shared ones counted for each."""

    def expected_output(self, client: ClientId) -> float:
        """Return the output tokens that a sequence of the client is expected to have."""

    @property
    def hit_rate(self) -> Sequence[float]:
        """Recent share of prompt tokens found cached, 0 to 1."""

    @property
    def engine_waiting(self) -> Sequence[int]:
        """Requests waiting inside the engine, as it last reported; 0 if it never did."""

    @property
    def engine_running(self) -> Sequence[int]:
        """Requests running inside the engine, as it last reported."""

    @property
    def waiting(self) -> int:
        """Sequences of the requests that wait for any worker: the sum of ``queued``."""

    def waiting_tokens(self, slot: int) -> int:
        """Return which of ``pending_prefill_tokens`` are of requests that wait at the dispatcher."""

    def ahead(self, slot: int, client: ClientId, sequences: int, tokens: int) -> tuple[int, int]:
        """Return sequences waiting for the worker, and their extend tokens, that would go before others.

        Those others are a request of ``client`` with so many sequences and extend tokens. All that wait go
        before it, where the order is not in turns of clients; else the client's own, and of each other
        client at most as much again.
        """

    @property
    def reported_us(self) -> Sequence[int]:
        """When ``engine_*`` were read, microseconds; 0 if never. Policies judge their age by it."""


class Match:
    """How much of one prompt each worker caches. A class, not a tuple: it is faster to make."""

    __slots__ = ("best", "blocks", "holders", "tokens")

    def __init__(self, tokens: Sequence[int], best: int, holders: Sequence[int], blocks: int = 0) -> None:
        self.tokens = tokens
        """Cached prompt tokens by slot, an entry for every slot of the fleet; at most prompt - 1."""
        self.best = best
        """The largest of ``tokens`` over the candidates; 0 when nobody caches any."""
        self.holders = holders
        """Candidate slots whose match is ``best``, ascending; empty when ``best`` is 0."""
        self.blocks = blocks
        """Blocks behind ``best``."""

    def __repr__(self) -> str:
        return f"Match({self.tokens}, best={self.best}, holders={self.holders}, blocks={self.blocks})"


class Choice:
    """A routing decision and its reasons."""

    __slots__ = ("branch", "scores", "slot")

    def __init__(self, slot: int, scores: Sequence[float] = (), branch: str = "") -> None:
        self.slot = slot
        self.scores = scores
        """One a candidate, in the order of ``Fleet.candidates``; lower is better. Empty if not scored."""
        self.branch = branch
        """The branch of the rule that was taken, for explanations."""

    def __repr__(self) -> str:
        return f"Choice({self.slot}, scores={self.scores}, branch={self.branch!r})"


class Routing(Protocol):
    """A routing policy. ``choose`` picks a worker, ``assigned`` says that the request was given to it.

    ``choose`` writes nothing but the policy's own books; asked twice with nothing in between, a
    policy that draws no random numbers answers the same.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    params: ClassVar[tuple[Param, ...]]

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:
        """Pick a slot of ``fleet.candidates``, which has at least one. ``now`` is in microseconds."""

    def assigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:
        """The request was given to ``slot``; ``extend_tokens`` of it are to be computed there."""

    def unassigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:
        """Take back an assignment before any work was done (a retry, or a cancel while queued)."""

    def corrected(self, client: ClientId, slot: int, prompt_tokens: int, extend_tokens: int) -> None:
        """Correct what ``assigned`` was told, by these signed amounts: the real usage is known."""

    def decoded(self, client: ClientId, slot: int, tokens: int) -> None:
        """``tokens`` output tokens were computed for the client on the slot."""

    def settled(
        self, client: ClientId, slot: int, prompt_tokens: int, extend_tokens: int, output_tokens: int
    ) -> None:
        """A request ended: ``corrected`` and ``decoded`` in one."""

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's weight (> 0; 1 when never set)."""

    def slot_reset(self, slot: int) -> None:
        """Forget what was kept for a slot: it was freed, or belongs to another worker now."""

    def tick(self, now: int) -> None:
        """Forget what is old. ``now`` is in microseconds."""


class RoutingContext:
    """What a routing policy gets besides its own parameters."""

    __slots__ = ("costs", "rng")

    def __init__(self, rng: Random, costs: Costs | None = None) -> None:
        self.rng = rng
        """The policy's own random stream. The core has no other source of randomness."""
        self.costs = costs or Costs()


@mypyc_attr(allow_interpreted_subclasses=True)
class RoutingBase:
    """A base for policies: it checks parameters, and ignores all notices except for the turn in rotation.

    ``Cls(context, **given)`` fills in the defaults; an unknown name or a value out of range raises
    ``PolicyError``.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    params: ClassVar[tuple[Param, ...]] = ()

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        self.context = context
        self.values = resolve(self.name, self.params, given)
        self.last = -1
        """The slot that was assigned last. Ties go to the first tied slot after it, cyclically."""

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:
        """Pick a slot of ``fleet.candidates``, which has at least one. ``now`` is in microseconds."""
        raise NotImplementedError

    def assigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:  # noqa: ARG002 - for books
        """Note the slot as the last one."""
        self.last = slot

    def unassigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:
        """Ignore."""

    def corrected(self, client: ClientId, slot: int, prompt_tokens: int, extend_tokens: int) -> None:
        """Ignore."""

    def decoded(self, client: ClientId, slot: int, tokens: int) -> None:
        """Ignore."""

    def settled(
        self, client: ClientId, slot: int, prompt_tokens: int, extend_tokens: int, output_tokens: int
    ) -> None:
        """Correct, and count the output."""
        self.corrected(client, slot, prompt_tokens, extend_tokens)
        self.decoded(client, slot, output_tokens)

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Ignore."""

    def slot_reset(self, slot: int) -> None:
        """Ignore."""

    def tick(self, now: int) -> None:
        """Ignore."""

    def check(self) -> None:
        """Raise AssertionError if an invariant of the policy's books is broken."""

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.values.items())
        return f"<{type(self).__name__} {self.name}({given})>"
