"""Signed credit of clients and the rounds that refill it (deficit round robin, in O(log n)).

A refill gives every queued client without credit its quantum, and happens only while no queued
client has credit. So all queued clients without credit see the same rounds, and one counter of
rounds R stands for all their refills: such a client keeps ``balance = q - R * quantum``, which a
refill leaves alone. Its *tag* says when it becomes positive: the round ``-balance / quantum``. The
least tag is the next client to have credit, and the difference of two tags is a difference of debt
over weight. Clients with credit, and clients with nothing queued, keep q itself, since no refill
concerns them. All arithmetic is in integers, so books balance exactly.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from fairlead.core.model import ClientId
from fairlead.core.ordering.clients import Accounts
from fairlead.core.ordering.heaps import TagHeap

FRACTION = 64
"""Bits of a tag behind the point: exact order for quanta below 2**32."""

IDLE, CREDITED, OWING = 0, 1, 2


class Holder(Protocol):
    """A queue's share of an account: told when the client gets credit or its debt shrinks."""

    def credited(self, account: "Deficit") -> None:
        """Say that the client has credit now."""

    def eased(self, account: "Deficit") -> None:
        """Say that the client's tag became smaller, or jumped."""


class Deficit:
    """One client's account. ``holders`` are the queues that it has requests in."""

    __slots__ = ("balance", "client", "holders", "idle_us", "quantum", "state", "used")

    def __init__(self, client: ClientId, quantum: int) -> None:
        self.client = client
        self.quantum = quantum
        self.state = IDLE
        self.balance = 0
        self.holders: dict[int, Holder] = {}
        self.used = False
        self.idle_us = -1

    def tag(self) -> int | None:
        """Return the round after which the client has credit, in 2**-64 rounds; None if it has."""
        return (-self.balance << FRACTION) // self.quantum if self.state == OWING else None


class Deficits:
    """The credit of all clients within one scope: one queue, or all of them."""

    __slots__ = ("_owing", "_quantum", "_weights", "accounts", "by_client", "credited", "queued", "rounds")

    def __init__(self, quantum: int, weights: Mapping[ClientId, float]) -> None:
        self._quantum = quantum
        self._weights = weights
        self.accounts: Accounts[Deficit] = Accounts(self._new)
        self.by_client = self.accounts.by_client
        self._owing: TagHeap[Deficit] = TagHeap(self.by_client)
        self.rounds = 0
        self.queued = 0
        """Clients with queued requests."""
        self.credited = 0
        """Those of them that have credit."""

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
        if account.state == OWING:
            return account.balance + self.rounds * account.quantum
        return account.balance

    def join(self, account: Deficit) -> None:
        """Say that the client has queued requests now, and had none."""
        self.accounts.busy(account)
        self.queued += 1
        if account.balance > 0:
            account.state = CREDITED
            self.credited += 1
        else:
            self._owe(account)

    def leave(self, account: Deficit) -> None:
        """Say that the client has no queued request any more."""
        self.queued -= 1
        if account.state == CREDITED:
            self.credited -= 1
        else:
            account.balance += self.rounds * account.quantum
            self._owing.drop(account.client)
        account.state = IDLE
        account.used = True
        self.accounts.idle(account)

    def passes(self, client: ClientId, debt_limit: int) -> bool:
        """Do what a request that joins, is served at once and leaves would do; False if it is not simple.

        The request is alone in its queue, so it is served in any case; only the refills count.
        """
        account = self.by_client.get(client)
        if account is None:
            account = self.accounts.get(client)
        if not self.queued:
            if account.balance <= 0:
                account.balance += (-account.balance // account.quantum + 1) * account.quantum
            account.used = True
            return True
        if account.state == CREDITED or (account.state == IDLE and account.balance > 0):
            return True
        return self.credited > 0 and self.rounds_owed(account) < debt_limit

    def charge(self, client: ClientId, units: int) -> None:
        """Take ``units`` of service from the client's credit; negative gives back."""
        account = self.by_client.get(client)
        if account is None:
            account = self.accounts.get(client)
        account.balance -= units
        account.used = True
        if units < 0:
            if account.state == OWING:
                self._ease(account)
        elif account.balance <= 0 and account.state == CREDITED:
            self.credited -= 1
            self._owe(account)

    def refill(self) -> None:
        """Let rounds pass until some queued client has credit. Only valid while none has."""
        account = self._owing.least()
        tag = account.tag() if account else None
        if tag is None:
            raise RuntimeError("a refill needs a queued client, and none with credit")
        self.rounds = (tag >> FRACTION) + 1
        while account is not None and (tag := account.tag()) is not None and tag >> FRACTION < self.rounds:
            self._pay(account)
            account = self._owing.least()

    def forgive(self, accounts: Iterable[Deficit], rounds: int) -> None:
        """Give each of these owing clients ``rounds`` quanta; all must owe more than that."""
        for account in accounts:
            account.balance += rounds * account.quantum
            self._ease(account)

    def set_weight(self, client: ClientId) -> None:
        """Take up a changed weight: debts stay as they are, credit is cut to the new quantum."""
        account = self.by_client.get(client)
        if account is None:
            return
        credit = self.credit_of(account)
        account.quantum = self._quantum_of(client)
        if account.state == OWING:
            account.balance = credit - self.rounds * account.quantum
            self._ease(account)
        else:
            account.balance = min(credit, account.quantum)

    def rounds_owed(self, account: Deficit) -> int:
        """Return how many whole quanta a queued client without credit owes."""
        return -self.credit_of(account) // account.quantum

    def tick(self, now: int) -> None:
        """Forget clients that are idle and in no debt."""
        self.accounts.tick(now, lambda account: account.balance < 0)

    def _owe(self, account: Deficit) -> None:
        account.state = OWING
        account.balance -= self.rounds * account.quantum
        self._file(account)

    def _pay(self, account: Deficit) -> None:
        account.balance += self.rounds * account.quantum
        account.state = CREDITED
        self.credited += 1
        self._owing.drop(account.client)
        for holder in account.holders.values():
            holder.credited(account)

    def _ease(self, account: Deficit) -> None:
        if self.credit_of(account) > 0:
            self._pay(account)
            return
        self._file(account)
        for holder in account.holders.values():
            holder.eased(account)

    def _file(self, account: Deficit) -> None:
        tag = account.tag()
        assert tag is not None
        self._owing.file(account.client, tag, 0)

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        states = [account.state for account in self.by_client.values()]
        assert self.credited == states.count(CREDITED)
        assert self.queued == self.credited + states.count(OWING)
        self._owing.check()
        idle = {client for client, account in self.by_client.items() if account.state == IDLE}
        assert idle == set(self.accounts.idle_clients())
        for client, account in self.by_client.items():
            assert client == account.client
            assert (account.state == IDLE) == (not account.holders)
            credit = self.credit_of(account)
            if account.state != IDLE:
                assert (credit > 0) == (account.state == CREDITED), client
                assert (client in self._owing) == (account.state == OWING)
