"""What policies that charge clients share: one set of books for the fleet, or one a worker."""

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from fairlead.core.model import ClientId
from fairlead.core.ordering.base import OrderingBase, OrderingContext, Queue, QueuedRequest


class Books(Protocol):
    """The accounts of all clients within one scope."""

    def credit(self, client: ClientId) -> float:
        """Return what the client may still use; 0 for one that is not known."""

    def charge(self, client: ClientId, units: int) -> None:
        """Take units of service from the client; negative gives back."""

    def set_weight(self, client: ClientId) -> None:
        """Take up a changed weight."""

    def tick(self, now: int) -> None:
        """Forget clients that were idle for long enough."""

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""


B = TypeVar("B", bound=Books)
Q = TypeVar("Q", bound=Queue)


class ScopedOrdering(OrderingBase[Q], Generic[Q, B]):
    """Keeps the books of a policy. ``open_books`` makes them: once for the fleet, or for each queue."""

    def __init__(
        self, context: OrderingContext, open_books: Callable[[], B], *, fleet: bool, skips: bool
    ) -> None:
        super().__init__(context)
        self.skips = skips
        self._weights: dict[ClientId, float] = {}
        self._open_books = open_books
        self._fleet: B | None = open_books() if fleet else None
        self._scopes: dict[int, B] = {}

    def _scope_of_new(self, number: int) -> B:
        """Return the books that new queue ``number`` goes by."""
        scope = self._scopes[number] = self._fleet or self._open_books()
        return scope

    def drop_queue(self, number: int) -> None:
        """Forget an empty queue, and the books that were kept for it alone."""
        super().drop_queue(number)
        del self._scopes[number]

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's weight. Raises ValueError unless it is above 0."""
        super().set_weight(client, weight)
        self._weights[client] = weight
        for books in self._books():
            books.set_weight(client)

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:
        """Charge the prompt; return the client's credit before that."""
        books = self._fleet if self._fleet is not None else self._scopes[number]
        credit = books.credit(item.client)
        books.charge(item.client, self.costs.extend * self._billed(item.request.prompt_tokens, extend_tokens))
        return credit

    def decoded(self, number: int, client: ClientId, tokens: int) -> None:
        """Charge output tokens."""
        self._charge(number, client, self.costs.output * tokens)

    def corrected(self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int) -> None:
        """Charge the signed difference in the prompt tokens that are billed."""
        self._charge(number, client, self.costs.extend * self._billed(prompt_tokens, extend_tokens))

    def settled(
        self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int, output_tokens: int
    ) -> None:
        """Charge the difference in prompt tokens, and the output, at once."""
        units = self.costs.extend * self._billed(prompt_tokens, extend_tokens)
        self._charge(number, client, units + self.costs.output * output_tokens)

    def _billed(self, prompt_tokens: int, extend_tokens: int) -> int:  # noqa: ARG002 - one interface
        """Return which of the two a client pays for."""
        return extend_tokens

    def _charge(self, number: int, client: ClientId, units: int) -> None:
        """Charge where the client's account is; the books of a worker that is gone are closed."""
        books = self._fleet if self._fleet is not None else self._scopes.get(number)
        if books is not None:
            books.charge(client, units)

    def credit(self, number: int, client: ClientId) -> float:
        """Return what the client may still use, for explanations."""
        books = self._fleet if self._fleet is not None else self._scopes.get(number)
        return books.credit(client) if books is not None else 0.0

    def tick(self, now: int) -> None:
        """Forget clients that were idle for an hour and whose return would change nothing."""
        for books in self._books():
            books.tick(now)

    def _books(self) -> Iterable[B]:
        return (self._fleet,) if self._fleet is not None else self._scopes.values()

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        super().check()
        for books in self._books():
            books.check()
