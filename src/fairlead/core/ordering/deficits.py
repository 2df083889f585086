"""Signed credit of clients and the rounds that refill it (deficit round robin, in O(log n)).

A refill gives every queued client without credit its quantum, and happens only while no queued
client has credit. So all queued clients see the same rounds, and one counter R of rounds stands for
all their refills: a queued client keeps ``balance = q - R * quantum``, which no refill touches, and
the round in which it will have credit, which only its own charges change. A refill then is a jump
of R to the least of these rounds.

Clients with nothing queued keep q itself, and the round up to which it counts. With ``light`` rounds
pass for them too, up to ``BANK`` quanta: a client that waits for answers, or thinks, is refilled like
those that wait for a worker. Nobody looks at absent clients when a round passes. Each one's rounds are
counted when it comes back or is charged.

With ``light`` a client is *newly active* from when its first request is queued until its credit is spent
or a round passes. Queues serve such clients first. Two rules protect the others. ``lead`` is what newly
active clients got ahead of others, and is kept to a quantum. And where only newly active clients have
credit, so that no round would pass, one passes at the pace of fair sharing (``pace``): when as much was
served as all active clients' quanta are worth.
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
BANK = 2
"""Quanta that rounds lift an absent client to. With one, a client whose requests all run would lose what is
left of its credit at each round, though it asks for more as soon as it has its answers."""
LEAST_QUANTUM, MOST_QUANTUM = 512, 131_072
"""Limits of a quantum that follows the requests' sizes."""
ROUND = 1 << 32
"""``pace`` at which a round is due."""
FIRST_QUANTUM = LEAST_QUANTUM
"""Before there are requests to learn from. With a large one the first client would be served alone."""
_FEW = 32
"""Admissions between two looks at the requests' sizes, at least; the first looks come sooner."""
_MANY = 4096
"""And at most, however many clients there are."""
_MEMORY = 64
"""Requests that a client's mean size goes back to, about."""


class Holder(Protocol):
    """A queue in which a client has requests."""

    def eased(self, account: "Deficit") -> None:
        """Say that the client will have credit earlier than it looked."""


class Deficit:
    """One client's account. ``holders`` are the queues that it has requests in, by number."""

    __slots__ = (
        "balance", "client", "edge", "holders", "idle_us", "newly", "quantum", "requests", "round", "running",
        "spent", "used",
    )  # fmt: skip

    def __init__(self, client: ClientId, quantum: int, balance: int, now: int) -> None:
        self.client = client
        self.quantum = quantum
        self.balance = balance
        """While queued q - R * quantum, else q when ``round`` passed."""
        self.round = now
        """While queued: the first round in which the client has credit, past or to come. Else: the round
        up to which ``balance`` counts."""
        self.newly = -1
        """The round in which it became newly active; -1: its credit was spent since. See ``newly_active``."""
        self.running = 0
        """Requests that were admitted and have not ended."""
        self.spent = 0
        """What its last requests cost, whole prompts counted; older ones with ever less weight."""
        self.requests = 0
        """How many requests ``spent`` stands for, in 1/64."""
        self.edge = _NEVER
        """The balance at which ``round`` becomes a later one; none while nothing is queued."""
        self.holders: dict[int, Holder] = {}
        self.used = False
        self.idle_us = -1


class Deficits:
    """The credit of all clients within one scope: one queue, or all of them."""

    __slots__ = (
        "_active", "_admitted", "_coming", "_next_look", "_queued", "_rounds", "_turn", "_voices", "_weights",
        "accounts", "by_client", "credited", "lead", "light", "newly", "pace", "quantum", "rounds",
    )  # fmt: skip

    def __init__(self, quantum: int, turn: int, weights: Mapping[ClientId, float], *, light: bool) -> None:
        self.quantum = quantum or FIRST_QUANTUM
        """Of a client of weight 1."""
        self._turn = 0 if quantum else turn
        """The quantum is what so many requests cost; 0: it stays as it is."""
        self._voices: dict[ClientId, Deficit] = {}
        """Clients of which a request was admitted since the sizes were last looked at."""
        self._admitted = 0
        """How many requests that were."""
        self._next_look = 1
        self.light = light
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
        self.newly = 0
        """How many of the queued clients with credit are newly active."""
        self.lead = 0
        """Service that newly active clients got while others waited, less what others got since; at most a
        quantum. While it is a quantum, others go first."""
        self.pace = 0
        """What was served since the last round over the quanta of all who were active: at most ``ROUND``."""
        self._queued = 0
        """How many clients are queued."""
        self._active = 0
        """Quanta of all clients with requests queued or running."""

    def _quantum_of(self, client: ClientId) -> int:
        return max(1, round(self.quantum * self._weights.get(client, 1.0)))

    def _new(self, client: ClientId) -> Deficit:
        quantum = self._quantum_of(client)
        return Deficit(client, quantum, quantum if self.light else 0, self.rounds)

    def credit(self, client: ClientId) -> int:
        """Return q of the client; 0 for one that is not known."""
        account = self.by_client.get(client)
        return self.credit_of(account) if account is not None else 0

    def credit_of(self, account: Deficit) -> int:
        """Return q of the account."""
        balance = account.balance
        if account.holders:
            return balance + self.rounds * account.quantum
        passed = self.rounds - account.round
        if not passed or not self.light:
            return balance
        return max(balance, min(balance + passed * account.quantum, BANK * account.quantum))

    def _catch_up(self, account: Deficit) -> None:
        """Count the rounds that passed for an absent client."""
        account.balance = self.credit_of(account)
        account.round = self.rounds

    def newly_active(self, account: Deficit) -> bool:
        """Say whether the client goes first."""
        return account.newly == self.rounds

    def _begin(self, account: Deficit) -> None:
        """Let a client that has nothing queued become newly active, if it has credit."""
        self._catch_up(account)
        account.newly = self.rounds if self.light and account.balance > 0 else -1

    def arriving(self, client: ClientId) -> Deficit:
        """Return the account of a client of which a request arrives."""
        account = self.by_client.get(client)
        if self.light and (account is None or not account.holders) and self.due():
            self.refill()  # It passed before the client came.
        return account if account is not None else self.accounts.get(client)

    def join(self, account: Deficit, number: int, holder: Holder) -> None:
        """Say that the client has requests in queue ``number`` now, and had none there."""
        if not account.holders:
            if not account.running:
                self._busy(account)
            self._queued += 1
            self._begin(account)
            self.newly += account.newly >= 0
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
            account.round = self.rounds
            if self.light:
                self._cut(account)  # A round that passed while it waited can have lifted it further.
            account.edge = _NEVER
            account.used = True
            self._queued -= 1
            self.newly -= account.newly == self.rounds
            if not account.running:
                self._idle(account)

    def _busy(self, account: Deficit) -> None:
        self.accounts.busy(account)
        self._active += account.quantum

    def _idle(self, account: Deficit) -> None:
        self._active -= account.quantum
        self.accounts.idle(account)

    def passes(self, client: ClientId, debt_limit: int) -> bool:
        """Do what a request that joins, is served at once and leaves would do; False if it is not simple.

        The request is alone in its queue, so it is served in any case; only the refills count.
        """
        account = self.arriving(client)
        account.used = True
        credit = self.credit_of(account)
        if not self.credited and not self._coming:
            self._begin(account)
            if credit <= 0:
                passed = -credit // account.quantum + 1
                account.balance += passed * account.quantum
                self.rounds += passed
                account.round = self.rounds
                self.pace = 0
            elif self.light:
                self._cut(account)
            return True
        if self.credited == self.newly and self.pace >= ROUND:
            return False
        passes = credit > 0 or (self.credited > 0 and -credit // account.quantum < debt_limit)
        if passes and not account.holders:
            self._begin(account)
            if self.light:
                self._cut(account)
        return passes

    def charge(self, client: ClientId, units: int) -> None:
        """Take ``units`` of service from the client's credit; negative gives back."""
        account = self.by_client.get(client)
        if account is None:
            account = self.accounts.get(client)
        account.used = True
        account.spent += units
        if self.light:
            if account.newly != self.rounds:
                self.lead = min(max(self.lead - units, 0), self.quantum)
            elif self._queued > self.newly:
                self.lead = min(max(self.lead + units, 0), self.quantum)
            pace = self.pace + units * ROUND // (self._active or account.quantum)
            self.pace = 0 if pace < 0 else min(pace, ROUND)
        if account.holders:
            account.balance -= units
            if account.balance <= account.edge or units < 0:
                self._move(account)
        else:
            if account.round != self.rounds:
                self._catch_up(account)
            account.balance -= units
            if account.balance <= 0:
                account.newly = -1

    def admitted(self, client: ClientId, cached: int) -> None:
        """Say that a request is admitted; ``charge`` follows. ``cached``: what cached tokens would cost."""
        account = self.by_client.get(client)
        if account is None:
            account = self.accounts.get(client)
        if not account.running and not account.holders:
            self._busy(account)
        account.running += 1
        account.spent += cached
        account.spent -= account.spent // _MEMORY
        account.requests += _MEMORY - account.requests // _MEMORY
        self._voices[client] = account
        self._admitted += 1
        if self._admitted >= self._next_look and self._turn:
            self._follow_sizes()

    def released(self, client: ClientId) -> None:
        """Say that a request which was admitted runs no more."""
        account = self.by_client.get(client)
        if account is not None and account.running:
            account.running -= 1
            if not account.running and not account.holders:
                self._idle(account)

    def _follow_sizes(self) -> None:
        """Let the quantum follow the requests' sizes. Where it shrinks, credit is cut.

        One client has one voice: the median counts. The quantum is a power of two, so that it changes
        rarely.
        """
        sizes = sorted(a.spent * _MEMORY // a.requests for a in self._voices.values())
        self._next_look = min(max(min(_FEW, 2 * self._next_look), 2 * len(sizes)), _MANY)
        self._voices = {}
        self._admitted = 0
        wanted = min(max(self._turn * sizes[(len(sizes) - 1) // 2], LEAST_QUANTUM), MOST_QUANTUM)
        if self.quantum * 4 <= wanted * 5 and wanted * 2 <= self.quantum * 5:
            return
        self.quantum = 1 << (wanted.bit_length() - 1)
        self.lead = min(self.lead, self.quantum)
        for account in self.by_client.values():
            self._resize(account)
            self._cut(account)

    def due(self) -> bool:
        """Say whether a round is due: some queued client has no credit, and no other that goes before it has.

        Newly active clients with credit hold it up no longer than fair sharing would.
        """
        if not self._coming:
            return False
        return not self.credited or (self.credited == self.newly and self.pace >= ROUND)

    def refill(self) -> None:
        """Let rounds pass until a queued client has credit; one, if some have. Valid only when ``due``."""
        rounds, coming = self._rounds, self._coming
        if self.credited:
            self.rounds += 1
        else:
            while rounds[0] not in coming:
                heappop(rounds)
            self.rounds = heappop(rounds)
        self.credited += coming.pop(self.rounds, 0)
        self.newly = self.pace = 0

    def forgive(self, accounts: Iterable[Deficit], rounds: int) -> None:
        """Give each of these queued clients ``rounds`` quanta; all must owe more than that."""
        for account in accounts:
            account.balance += rounds * account.quantum
            self._move(account)

    def set_weight(self, client: ClientId) -> None:
        """Take up a changed weight: debts stay as they are, credit is cut to what rounds could have given."""
        account = self.by_client.get(client)
        if account is not None:
            self._resize(account)
            self._cut(account)

    def _cut(self, account: Deficit) -> None:
        """Cut credit to what rounds lift an absent client to."""
        over = self.credit_of(account) - account.quantum * (BANK if self.light else 1)
        if over > 0:
            account.balance -= over
            if account.holders:
                self._move(account)

    def _resize(self, account: Deficit) -> None:
        """Give the account the quantum that it has now; its credit stays as it is."""
        account.balance = self.credit_of(account)
        before = account.quantum
        account.quantum = self._quantum_of(account.client)
        if account.holders or account.running:
            self._active += account.quantum - before
        if account.holders:
            account.balance -= self.rounds * account.quantum
            self._move(account)
        else:
            account.round = self.rounds

    def tick(self, now: int) -> None:
        """Forget clients that are idle and in no debt."""
        self.accounts.tick(now, lambda account: self.credit_of(account) < 0)

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
        if account.round > self.rounds and account.newly >= 0:
            self.newly -= account.newly == self.rounds
            account.newly = -1
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
        active = [a for a in self.by_client.values() if a.holders or a.running]
        assert self._active == sum(account.quantum for account in active)
        assert set(self.accounts.idle_clients()) == set(self.by_client) - {a.client for a in active}
        assert self.newly == sum(map(self.newly_active, queued))
        for account in queued:
            short = account.round - self.rounds
            credit = self.credit_of(account)
            assert credit + short * account.quantum > 0 >= credit + (short - 1) * account.quantum
            assert account.balance > account.edge
            assert credit > 0 or not self.newly_active(account)
        assert 0 <= self.lead <= self.quantum
        assert 0 <= self.pace <= ROUND
        assert self._queued == len(queued)
