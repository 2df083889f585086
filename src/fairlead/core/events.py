"""Events: what happened. Nothing else reaches the dispatcher. ``at`` is a time in microseconds.

Tuples rather than dataclasses: they are made on the hot path, and a NamedTuple costs a third of a
frozen dataclass while being as immutable.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fairlead.core.model import BlockKey, Limits, Request, RequestId, WorkerId


class Arrived(NamedTuple):
    """A client's request was accepted, and needs a worker."""

    at: int
    request: Request


class FirstToken(NamedTuple):
    """The worker sent the first output token: the prompt is computed."""

    at: int
    rid: RequestId


class Progressed(NamedTuple):
    """The worker sent ``tokens`` more output tokens since the last report."""

    at: int
    rid: RequestId
    tokens: int


class Finished(NamedTuple):
    """The answer is complete. The figures are the worker's; None where it reported none."""

    at: int
    rid: RequestId
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class Failed(NamedTuple):
    """The worker refused, died or broke off.

    ``retryable``: no byte of an answer was seen, so another worker may be tried.
    """

    at: int
    rid: RequestId
    retryable: bool
    reason: str = ""


class Refused(NamedTuple):
    """The worker has no room now and says so, before a byte of an answer: the request waits again.

    ``wait_us``: how long the worker is to get nothing. That is no failure: it costs neither one of the
    request's attempts nor a retry, and the request ends when it has waited for too long in all.
    """

    at: int
    rid: RequestId
    wait_us: int
    reason: str = ""


class Cancelled(NamedTuple):
    """The client went away, or gave up waiting."""

    at: int
    rid: RequestId
    reason: str = "client disconnected"


class WorkerUp(NamedTuple):
    """A worker joined, or is healthy again. ``limits`` replace what was known."""

    at: int
    worker: WorkerId
    limits: Limits
    precise: bool = False
    """Whether the worker reports its cache by events; otherwise it is approximated from what was sent."""


class WorkerDown(NamedTuple):
    """A worker takes no new requests (unhealthy or draining). Its running requests may end."""

    at: int
    worker: WorkerId
    reason: str = ""
    forget_cache: bool = True
    """Whether its cache is gone, too (it died), or still there (it drains)."""


class WorkerGone(NamedTuple):
    """A worker was taken out for good; its slot is free once its last request ended."""

    at: int
    worker: WorkerId


class WorkerChanged(NamedTuple):
    """A worker's limits or its own load figures were read. None leaves a value as it was."""

    at: int
    worker: WorkerId
    limits: Limits | None = None
    engine_running: int | None = None
    engine_waiting: int | None = None


class CacheStored(NamedTuple):
    """A precise source says that ``worker`` now holds ``keys``, a chain that continues ``parent``."""

    at: int
    worker: WorkerId
    keys: Sequence[BlockKey]
    parent: BlockKey | None = None
    """None when the first key starts a prompt."""


class CacheEvicted(NamedTuple):
    """A precise source says that ``worker`` no longer holds ``keys``."""

    at: int
    worker: WorkerId
    keys: Sequence[BlockKey]


class CacheCleared(NamedTuple):
    """``worker`` holds nothing, or nothing is known of it any more. ``precise`` says what comes next."""

    at: int
    worker: WorkerId
    precise: bool = False


class Tick(NamedTuple):
    """Time passed: requests that waited for too long are rejected, and idle clients forgotten."""

    at: int


Event = (
    Arrived
    | FirstToken
    | Progressed
    | Finished
    | Failed
    | Refused
    | Cancelled
    | WorkerUp
    | WorkerDown
    | WorkerGone
    | WorkerChanged
    | CacheStored
    | CacheEvicted
    | CacheCleared
    | Tick
)
