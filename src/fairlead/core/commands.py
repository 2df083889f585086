"""Commands: what the caller of the dispatcher is to do. A ``Dispatch`` carries its reasons."""

from collections.abc import Sequence
from typing import NamedTuple

from fairlead.core.model import RequestId, WorkerId


class Reasons(NamedTuple):
    """The reasons of one dispatch, kept as references so that recording them costs nothing."""

    policy: str
    """The routing policy, and the branch that it took, such as ``lmetric`` or ``preble: explore``."""
    scores: Sequence[float]
    """Score of each candidate, lower is better; empty when the rule does not score."""
    candidates: Sequence[int]
    """Worker slots that ``scores`` belong to."""
    matched_tokens: int
    """Prompt tokens predicted to be cached on the chosen worker."""
    credit: float
    """The client's credit (DLPM) or minus its counter (VTC) when admitted; 0 for the others."""


class Dispatch(NamedTuple):
    """Send the request to the worker now. ``attempt`` counts from 1."""

    rid: RequestId
    worker: WorkerId
    attempt: int
    reasons: Reasons


class Reject(NamedTuple):
    """Tell the caller that the request will not be served. Nothing of it is charged.

    ``code`` is ``queue_full``, ``queue_timeout`` or ``no_worker``.
    """

    rid: RequestId
    code: str
    message: str
    retry_after_s: int = 1


class Fail(NamedTuple):
    """Tell the caller that its request was sent to a worker, and failed for good."""

    rid: RequestId
    reason: str


class Cancel(NamedTuple):
    """Stop the request on the worker: nobody waits for its answer any more."""

    rid: RequestId
    worker: WorkerId


Command = Dispatch | Reject | Fail | Cancel
