"""Accounts of clients: who is queued, who is idle, and when an idle one may be forgotten."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from fairlead.core.model import ClientId

FORGET_AFTER_US = 3_600_000_000
"""A client that owes nothing is forgotten after an hour without requests."""
IDLE_CLIENTS = 100_000
"""Most accounts kept without queued requests; beyond it the longest idle goes, debt or not."""
_PER_TICK = 1_000


class ClientAccount(Protocol):
    """What one client is owed, in whatever form the policy keeps it."""

    client: ClientId
    used: bool
    """Something was charged since the account was last looked at. Set by the owner."""
    idle_us: int
    """Since when it is idle, as far as ticks tell; negative when no tick came yet."""


A = TypeVar("A", bound=ClientAccount)


class Accounts(Generic[A]):
    """Accounts by client. Idle ones stand in a line, longest idle first.

    Time is only known from ``tick``, so that idleness is known to within one tick.
    """

    __slots__ = ("_idle", "_now", "_open", "by_client")

    def __init__(self, new: Callable[[ClientId], A]) -> None:
        self._open = new
        self.by_client: dict[ClientId, A] = {}
        self._idle: OrderedDict[ClientId, A] = OrderedDict()
        self._now = -1

    def get(self, client: ClientId) -> A:
        """Return the client's account, opening an idle one on first sight."""
        account = self.by_client.get(client)
        if account is None:
            account = self.by_client[client] = self._open(client)
            self.idle(account)
        return account

    def busy(self, account: A) -> None:
        """Say that the client has queued requests now: the account is kept."""
        del self._idle[account.client]

    def idle(self, account: A) -> None:
        """Say that the client has no queued request now."""
        account.idle_us = self._now
        self._idle[account.client] = account
        if len(self._idle) > IDLE_CLIENTS:
            forgotten, _ = self._idle.popitem(last=False)
            del self.by_client[forgotten]

    def tick(self, now: int, owes: Callable[[A], bool]) -> None:
        """Forget who was idle for an hour and does not owe; look at the others again in an hour."""
        self._now = now
        for _ in range(min(_PER_TICK, len(self._idle))):
            client, account = next(iter(self._idle.items()))
            if account.idle_us + FORGET_AFTER_US > now:
                return
            if account.used or account.idle_us < 0 or owes(account):
                account.used = False
                account.idle_us = now
                self._idle.move_to_end(client)
            else:
                del self._idle[client], self.by_client[client]

    def idle_clients(self) -> Iterator[ClientId]:
        """Return the names of idle clients, longest idle first."""
        return iter(self._idle)
