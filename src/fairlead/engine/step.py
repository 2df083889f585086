"""What one step of the engine model did, and what the engine reports of itself."""

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from fairlead.core.model import BlockKey, RequestId
from fairlead.engine.sequence import EngineSequence
from fairlead.engine.steptime import Work


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


_NO_IDS: Final[list[RequestId]] = []
_NO_KEYS: Final[list[BlockKey]] = []
_NO_ADMISSIONS: Final[list[Admission]] = []
_NO_STORED: Final[list[Stored]] = []
_NO_SEQUENCES: Final[list[EngineSequence]] = []

T = TypeVar("T")


def with_item(items: list[T], item: T) -> list[T]:
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
