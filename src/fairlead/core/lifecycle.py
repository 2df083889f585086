"""The life of a request as a table of legal moves.

::

    arrive -> QUEUED -> RUNNING -> DECODING -> DONE
                ^          |           |
                +- retry --+           |
                +- refuse -+           |
              reject     fail        fail
              cancel     cancel      cancel

A request is QUEUED while it waits at the dispatcher, RUNNING once it was sent to a worker, DECODING
once the worker answered its first token. The other four states are ends, and every accepted request
reaches exactly one of them. A request that has begun to answer is never retried: its caller has
already seen a part.
"""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a request is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DECODING = "decoding"
    DONE = "done"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    FAILED = "failed"


class LifecycleError(Exception):
    """An event that makes no sense for the request: unknown, ended, or out of order."""


MOVES: Final[dict[State, dict[str, State]]] = {
    State.QUEUED: {
        "dispatch": State.RUNNING,
        "reject": State.REJECTED,
        "cancel": State.CANCELLED,
    },
    State.RUNNING: {
        "first_token": State.DECODING,
        "finish": State.DONE,
        "retry": State.QUEUED,
        "refuse": State.QUEUED,
        "fail": State.FAILED,
        "cancel": State.CANCELLED,
    },
    State.DECODING: {
        "progress": State.DECODING,
        "finish": State.DONE,
        "fail": State.FAILED,
        "cancel": State.CANCELLED,
    },
    State.DONE: {},
    State.REJECTED: {},
    State.CANCELLED: {},
    State.FAILED: {},
}

ENDS = (State.DONE, State.REJECTED, State.CANCELLED, State.FAILED)
