"""The interface of ordering policies, which say who goes next in one worker's queue.

An ``Ordering`` belongs to one dispatcher (or to one engine) and keeps what clients are owed; it
makes one ``Queue`` a worker. A queue is told of requests that come and go and of blocks that its
worker caches and evicts; it never looks at the whole queue again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from typing import ClassVar, Generic, Protocol, TypeVar

from fairlead.core.cached_tokens import cached_prompt_tokens
from fairlead.core.model import BlockKey, ClientId, Costs, Request, RequestId
from fairlead.core.open_class import mypyc_attr
from fairlead.core.params import Param


class QueuedRequest:
    """A queued request, as its queue sees it. Mutable: ``matched`` follows the worker's cache."""

    __slots__ = ("client", "keys", "matched", "request", "rid", "seq")

    def __init__(self, request: Request, seq: int) -> None:
        self.request = request
        self.rid: RequestId = request.rid
        self.client: ClientId = request.client
        self.keys: Sequence[BlockKey] = request.keys if request.reads_cache else ()
        """Keys of the prompt's blocks that may be cached."""
        self.seq = seq
        """Number of its arrival, unique; the last tie-break."""
        self.matched = 0
        """Leading blocks that the worker caches now."""

    @property
    def matched_tokens(self) -> int:
        """Prompt tokens that the worker caches now."""
        request = self.request
        return cached_prompt_tokens(request.prompt_tokens, request.block_tokens, self.matched)

    def __repr__(self) -> str:
        return f"<QueuedRequest {self.rid} {self.client} matched={self.matched}/{len(self.keys)}>"


Fits = Callable[[QueuedRequest], bool]
Matched = Callable[[Sequence[BlockKey]], int]
"""Leading blocks of a prompt that one worker caches now."""


class Queue(Protocol):
    """One worker's waiting requests in a policy's order."""

    def push(self, item: QueuedRequest, matched: int) -> None:
        """Add ``item``, of whose blocks the worker caches the first ``matched``."""

    def discard(self, item: QueuedRequest) -> None:
        """Take out ``item``, wherever it goes. Raises KeyError if it is not queued here."""

    def head(self, fits: Fits | None = None) -> QueuedRequest | None:
        """Return who goes next, without taking it out; None if nobody may.

        Credit may be refilled. With ``fits``, a policy whose ``on_no_fit`` is ``skip`` passes over
        requests that do not fit, one whose ``on_no_fit`` is ``stop`` returns None at the first.
        """

    def cache_stored(self, keys: Iterable[BlockKey]) -> None:
        """Say that the worker now caches ``keys``; their parents it cached before or in this call.

        Of a run of blocks that continue each other the first is enough: who waits for a later one
        of the run waits for its first.
        """

    def cache_evicted(self, keys: Iterable[BlockKey]) -> None:
        """Say that the worker no longer caches ``keys``: leaves first, or with every descendant."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[QueuedRequest]: ...


class Ordering(Protocol):
    """Who goes next, over all the queues of one dispatcher. Facts in, order out.

    ``queue`` is the number that ``make_queue`` was called with.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    summary: ClassVar[str]
    params: ClassVar[tuple[Param, ...]]
    uses_match: ClassVar[bool]
    """Whether the order depends on what workers cache; if not, callers may skip cache notices."""
    in_turns: ClassVar[bool]
    """Whether waiting clients are served in turns, so that the long queue of one does not delay another."""
    steals: bool
    """Whether a client with credit goes before those without on any worker: ``credit`` is the same for all
    queues, and a worker that would serve somebody without takes a request from another's queue."""
    skips: bool
    """Whether ``on_no_fit`` is ``skip``. If not, the head of the queue is never bypassed."""

    def make_queue(self, number: int, matched: Matched) -> Queue:
        """Make the queue of worker slot ``number``; ``matched`` asks how much that worker caches."""

    def drop_queue(self, number: int) -> None:
        """Forget an empty queue and all that was kept for it."""

    def passes(self, number: int, client: ClientId) -> bool:
        """Let a request that finds queue ``number`` empty, and fits, go without being queued.

        Has then had the effects on the policy's books that ``push``, ``head`` and ``discard`` would
        have had. False asks the caller to queue it after all, and has had no effect.
        """

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's weight (> 0; 1 when never set)."""

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:
        """``item`` was taken from queue ``number`` and runs; ``extend_tokens`` will be computed.

        A request that ran before and comes through a queue again is charged again: take back with
        ``corrected`` what it was charged and will not get, so that no work is charged twice.
        Returns what ``credit`` would have said just before.
        """

    def decoded(self, number: int, client: ClientId, tokens: int) -> None:
        """Charge ``tokens`` output tokens that were computed for ``client``; a negative number takes back."""

    def corrected(self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int) -> None:
        """Correct what was charged for the prompt at admission, by these signed amounts."""

    def settled(
        self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int, output_tokens: int
    ) -> None:
        """A request ended: ``corrected`` and ``decoded`` in one."""

    def ended(self, number: int, item: QueuedRequest, extend_tokens: int, output_tokens: int) -> None:
        """``item``, which ran, ended after so much work in all; everything of it was charged before."""

    def released(self, number: int, client: ClientId) -> None:
        """A request that was admitted from queue ``number`` runs no more: it ended, or waits again."""

    def credited(self) -> bool:
        """Whether any client that waits has credit; for an ordering that ``steals``."""

    def credit(self, number: int, client: ClientId) -> float:
        """Return what the client may still use before it has to wait; 0 if the policy keeps no accounts."""

    def tick(self, now: int) -> None:
        """Forget clients that were idle for long enough. ``now`` is in microseconds."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""


class OrderingContext:
    """What an ordering gets besides its own parameters."""

    __slots__ = ("costs",)

    def __init__(self, costs: Costs | None = None) -> None:
        self.costs = costs or Costs()


ON_NO_FIT = Param(
    "on_no_fit",
    "stop",
    "when the next request does not fit: stop (wait for room), or skip it, which starves large requests",
    choices=("stop", "skip"),
)

Q = TypeVar("Q", bound=Queue)


@mypyc_attr(allow_interpreted_subclasses=True)
class OrderingBase(Generic[Q]):
    """Keeps a policy's queues by number; for policies without books every notice is ignored."""

    in_turns: ClassVar[bool] = False
    steals = False
    skips = False

    def __init__(self, context: OrderingContext) -> None:
        self.costs = context.costs
        self._queues: dict[int, Q] = {}

    def make_queue(self, number: int, matched: Matched) -> Queue:
        """Make queue ``number``. Raises ValueError if there is one already."""
        if number in self._queues:
            raise ValueError(f"there is a queue {number} already")
        queue = self._queues[number] = self._new_queue(number, matched)
        return queue

    def drop_queue(self, number: int) -> None:
        """Forget an empty queue. Raises KeyError if there is none, ValueError if it is not empty."""
        if len(self._queues[number]):
            raise ValueError(f"queue {number} is not empty")
        del self._queues[number]

    def passes(self, number: int, client: ClientId) -> bool:  # noqa: ARG002 - one interface
        """Let it pass: without books, nothing has to be done."""
        return True

    def _new_queue(self, number: int, matched: Matched) -> Q:
        raise NotImplementedError

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Check the weight; it changes nothing here. Raises ValueError unless it is above 0."""
        if not (weight > 0 and isfinite(weight)):
            raise ValueError(f"the weight of client {client!r} must be a number above 0, not {weight!r}")

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:  # noqa: ARG002 - one interface
        """Return 0: nothing is kept."""
        return 0.0

    def decoded(self, number: int, client: ClientId, tokens: int) -> None:
        """Ignore."""

    def corrected(self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int) -> None:
        """Ignore."""

    def settled(
        self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int, output_tokens: int
    ) -> None:
        """Correct, and count the output."""
        self.corrected(number, client, prompt_tokens, extend_tokens)
        self.decoded(number, client, output_tokens)

    def ended(self, number: int, item: QueuedRequest, extend_tokens: int, output_tokens: int) -> None:
        """Ignore."""

    def released(self, number: int, client: ClientId) -> None:
        """Ignore."""

    def credited(self) -> bool:
        """Return False: nothing is kept."""
        return False

    def credit(self, number: int, client: ClientId) -> float:  # noqa: ARG002 - one interface
        """Return 0: nothing is kept."""
        return 0.0

    def tick(self, now: int) -> None:
        """Ignore."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        for queue in self._queues.values():
            queue.check()
