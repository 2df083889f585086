"""Signed credit of clients and the rounds that refill it (deficit round robin, in O(log n)).

A refill gives every queued client without credit its quantum, and happens only while no queued
client has credit. So all queued clients see the same rounds, and one counter R of rounds stands for
all their refills: a queued client keeps ``balance = q - R * quantum``, which no refill touches, and
the round in which it will have credit, which only its own charges change. A refill then is a jump
of R to the least of these rounds. Clients with nothing queued keep q itself: they bank nothing.
All arithmetic is in integers, so books balance exactly.
"""

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Protocol

from fairlead.core.model import ClientId
from fairlead.core.ordering.clients import Accounts
from fairlead.core.ordering.heaps import SPARE

_NEVER = -(1 << 62)
"""A balance that no account gets to."""


class Holder(Protocol):
    """A queue in which a client has requests."""

    def eased(self, account: "Deficit") -> None:
        """Say that the client will have credit earlier than it looked."""


class Deficit:
    """One client's account. ``holders`` are the queues that it has requests in, by number."""

    __slots__ = ("balance", "client", "edge", "holders", "idle_us", "quantum", "round", "used")

    def __init__(self, client: ClientId, quantum: int) -> None:
        self.client = client
        self.quantum = quantum
        self.balance = 0
        """While queued q - R * quantum, else q."""
        self.round = 0
        """While queued: the first round in which the client has credit, past or to come."""
        self.edge = _NEVER
        """The balance at which ``round`` becomes a later one; none while nothing is queued."""
        self.holders: dict[int, Holder] = {}
        self.used = False
        self.idle_us = -1


class Deficits:
    """The credit of all clients within one scope: one queue, or all of them."""

    __slots__ = ("_coming", "_quantum", "_rounds", "_weights", "accounts", "by_client", "credited", "rounds")

    def __init__(self, quantum: int, weights: Mapping[ClientId, float]) -> None:
        self._quantum = quantum
        self._weights = weights
        self.accounts: Accounts[Deficit] = Accounts(self._new)
        self.by_client = self.accounts.by_client
        self.rounds = 0
        """R: how many rounds have passed."""
        self.credited = 0
        """How many queued clients have credit: their round has come."""
        self._coming: dict[int, int] = {}
        """How many queued clients will have credit, by round."""
        self._rounds: list[int] = []
        """A heap of these rounds; some are stale."""

    def _quantum_of(self, client: ClientId) -> int:
        return max(1, round(self._quantum * self._weights.get(client, 1.0)))

    def _new(self, client: ClientId) -> Deficit:
        return Deficit(client, self._quantum_of(client))

    def credit(self, client: ClientId) -> int:
        """Return q of the client; 0 for one that is not known."""
        account = self.by_client.get(client)
        return self.credit_of(account) if account is not None else 0

    def credit_of(self, account: Deficit) -> int:
        """Return q of the account."""
        return account.balance + self.rounds * account.quantum if account.holders else account.balance

    def join(self, account: Deficit, number: int, holder: Holder) -> None:
        """Say that the client has requests in queue ``number`` now, and had none there."""
        if not account.holders:
            self.accounts.busy(account)
            account.balance -= self.rounds * account.quantum
            self._aim(account)
            self._count(account.round, 1)
        account.holders[number] = holder

    def leave(self, account: Deficit, number: int) -> None:
        """Say that the client has no request in queue ``number`` any more."""
        del account.holders[number]
        if not account.holders:
            self._count(account.round, -1)
            account.balance += self.rounds * account.quantum
            account.edge = _NEVER
            account.used = True
            self.accounts.idle(account)

    def passes(self, client: ClientId, debt_limit: int) -> bool:
        """Do what a request that joins, is served at once and leaves would do; False if it is not simple.

        The request is alone in its queue, so it is served in any case; only the refills count.
        """
        account = self.by_client.get(client)
        if account is None:
            account = self.accounts.get(client)
        account.used = True
        if not self.credited and not self._coming:
            if account.balance <= 0:
                account.balance += (-account.balance // account.quantum + 1) * account.quantum
            return True
        credit = self.credit_of(account)
        return credit > 0 or (self.credited > 0 and -credit // account.quantum < debt_limit)

    def charge(self, client: ClientId, units: int) -> None:
        """Take ``units`` of service from the client's credit; negative gives back."""
        account = self.by_client.get(client)
        if account is None:
            account = self.accounts.get(client)
        account.balance -= units
        account.used = True
        if account.balance <= account.edge or (units < 0 and account.holders):
            self._move(account)

    def refill(self) -> None:
        """Let rounds pass until some queued client has credit. Only valid while none has."""
        rounds, coming = self._rounds, self._coming
        while rounds[0] not in coming:
            heappop(rounds)
        self.rounds = heappop(rounds)
        self.credited = coming.pop(self.rounds)

    def forgive(self, accounts: Iterable[Deficit], rounds: int) -> None:
        """Give each of these queued clients ``rounds`` quanta; all must owe more than that."""
        for account in accounts:
            account.balance += rounds * account.quantum
            self._move(account)

    def set_weight(self, client: ClientId) -> None:
        """Take up a changed weight: debts stay as they are, credit is cut to the new quantum."""
        account = self.by_client.get(client)
        if account is None:
            return
        account.balance = self.credit_of(account)
        account.quantum = self._quantum_of(client)
        account.balance = min(account.balance, account.quantum)
        if account.holders:
            account.balance -= self.rounds * account.quantum
            self._move(account)

    def tick(self, now: int) -> None:
        """Forget clients that are idle and in no debt."""
        self.accounts.tick(now, lambda account: account.balance < 0)

    def _aim(self, account: Deficit) -> None:
        account.round = -account.balance // account.quantum + 1
        account.edge = -account.round * account.quantum

    def _move(self, account: Deficit) -> None:
        """Bring a queued account's round up to date."""
        before = account.round
        self._aim(account)
        if account.round != before:
            self._count(before, -1)
            self._count(account.round, 1)
        if account.round < before:
            for holder in account.holders.values():
                holder.eased(account)

    def _count(self, number: int, change: int) -> None:
        """Count a client in or out of a round."""
        if number <= self.rounds:
            self.credited += change
            return
        clients = self._coming.get(number, 0) + change
        if clients:
            self._coming[number] = clients
        else:
            del self._coming[number]
        if clients == change == 1:
            heappush(self._rounds, number)
        if len(self._rounds) > 2 * len(self._coming) + SPARE:
            self._rounds = list(self._coming)
            heapify(self._rounds)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        queued = [account for account in self.by_client.values() if account.holders]
        assert self.credited == sum(self.credit_of(account) > 0 for account in queued)
        assert self.credited + sum(self._coming.values()) == len(queued)
        assert set(self._coming) <= set(self._rounds)
        assert len(self._rounds) <= 2 * len(self._coming) + SPARE
        idle = {client for client, account in self.by_client.items() if not account.holders}
        assert idle == set(self.accounts.idle_clients())
        for account in queued:
            short = account.round - self.rounds
            credit = self.credit_of(account)
            assert credit + short * account.quantum > 0 >= credit + (short - 1) * account.quantum
            assert account.balance > account.edge
