"""Whose fault a failed request is: the worker's, or its own.

A request that makes engines fail must not take the workers of all others with it. So a failure counts
against a worker only as long as the same request did not fail on another worker too. Then it was the
request's own fault: none of its failures count, and it is not tried a third time.
"""

from typing import NamedTuple

from fairlead.core.model import ClientId, RequestId


class Failure(NamedTuple):
    """One request that failed on a worker."""

    client: ClientId
    silent: bool
    """It got no answer at all: no connection, a time-out, a connection that closed."""


class FailureRow:
    """The requests that failed on one worker since its last good answer; at most ``most``, newest kept."""

    __slots__ = ("_failures", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._failures: dict[RequestId, Failure] = {}

    def __len__(self) -> int:
        """Return how many requests failed in a row, each counted once however often it failed."""
        return len(self._failures)

    def add(self, rid: RequestId, failure: Failure) -> None:
        """Count a failed request."""
        self._failures[rid] = failure
        if len(self._failures) > self._most:
            self._drop_oldest()

    def withdraw(self, rid: RequestId) -> None:
        """Count a request no more: it was its own fault."""
        self._failures.pop(rid, None)

    def clear(self) -> None:
        """Start anew: the worker gave a good answer."""
        self._failures.clear()

    def trust_again(self) -> None:
        """Give the worker another chance, of a single failure."""
        while len(self._failures) >= self._most:
            self._drop_oldest()

    @property
    def silent(self) -> int:
        """How many of the requests got no answer at all."""
        return sum(failure.silent for failure in self._failures.values())

    @property
    def only_client(self) -> ClientId | None:
        """The client that all the requests are of; None if they are of several."""
        clients = {failure.client for failure in self._failures.values()}
        return clients.pop() if len(clients) == 1 else None

    def _drop_oldest(self) -> None:
        del self._failures[next(iter(self._failures))]

    def __repr__(self) -> str:
        return f"<FailureRow {len(self)}/{self._most}>"
