"""Deficits of clients on workers, as D2LPM keeps them ([DLPM] Algorithm 2)."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from fairlead.core.model import ClientId

MAX_CLIENTS = 65_536
"""Beyond this many, the client that was idle longest is forgotten, whatever it owes."""

_NONE: frozenset[int] = frozenset()
_SWEEP = 256


class ClientDeficits:
    """One client: what is left of its quantum on each worker.

    A slot that is absent has all of it: by the algorithm an unused worker holds exactly one quantum
    from the first refill on, and so does one that joins later.
    """

    __slots__ = ("left", "quantum", "seen", "spent")

    def __init__(self, quantum: int, seen: int) -> None:
        self.quantum = quantum
        self.left: dict[int, int] = {}
        self.spent: set[int] = set()
        """Slots where nothing is left: ``left[slot] <= 0``."""
        self.seen = seen

    def charge(self, slot: int, units: int) -> None:
        """Take ``units`` (negative gives back) from the slot; never more than a quantum is left."""
        left = self.left.get(slot, self.quantum) - units
        if left >= self.quantum:
            self.left.pop(slot, None)
            self.spent.discard(slot)
            return
        self.left[slot] = left
        if left <= 0:
            self.spent.add(slot)
        else:
            self.spent.discard(slot)

    def refill(self, slots: Sequence[int]) -> None:
        """Add the fewest whole quanta to each of ``slots``, all spent, that leave one with credit."""
        left, quantum = self.left, self.quantum
        add = (-max([left[s] for s in slots]) // quantum + 1) * quantum
        for s in slots:
            now_left = left[s] + add
            if now_left == quantum:
                del left[s]
            else:
                left[s] = now_left
            if now_left > 0:
                self.spent.discard(s)

    def forget(self, slot: int) -> None:
        """Treat the slot as one that was never used."""
        self.left.pop(slot, None)
        self.spent.discard(slot)


class WorkerDeficits:
    """Every client's account. Integer arithmetic; quantum = Qw * weight, rounded, at least 1.

    Only workers that may be chosen are looked at and refilled: the others hold what they held, so
    that nothing piles up on a worker that is full or down. A client that nobody has assigned for
    ``idle_us`` is forgotten unless it owes on some worker.
    """

    def __init__(self, quantum: int, idle_us: int) -> None:
        self.quantum = quantum
        self.idle_us = idle_us
        self.accounts: dict[ClientId, ClientDeficits] = {}
        """In order of the last assignment, oldest first."""
        self._weights: dict[ClientId, float] = {}
        self._now = 0

    def spent(self, client: ClientId, slots: Sequence[int]) -> AbstractSet[int]:
        """Return the slots without credit, after a refill if none of ``slots`` had any."""
        account = self.accounts.get(client)
        if account is None or not account.spent:
            return _NONE
        spent = account.spent
        if len(spent) >= len(slots) and all(s in spent for s in slots):
            account.refill(slots)
        return spent

    def assigned(self, client: ClientId, slot: int, units: int, now: int) -> None:
        """Charge a request that was given to ``slot``, and note that its client is not idle."""
        self._now = now
        account = self.accounts.pop(client, None) or ClientDeficits(self._quantum(client), now)
        account.seen = now
        account.charge(slot, units)
        self.accounts[client] = account
        if len(self.accounts) > MAX_CLIENTS:
            del self.accounts[next(iter(self.accounts))]

    def charge(self, client: ClientId, slot: int, units: int) -> None:
        """Charge ``units`` more, or fewer if negative. A client that was forgotten owes nothing."""
        account = self.accounts.get(client)
        if account is not None:
            account.charge(slot, units)

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set a client's share (> 0) of the quantum."""
        if weight <= 0:
            raise ValueError(f"the weight of '{client}' must be above 0, not {weight}")
        if weight == 1:
            self._weights.pop(client, None)
        else:
            self._weights[client] = weight
        account = self.accounts.get(client)
        if account is not None:
            account.quantum = self._quantum(client)

    def slot_reset(self, slot: int) -> None:
        """Forget what every client used of ``slot``."""
        for account in self.accounts.values():
            account.forget(slot)

    def tick(self, now: int) -> None:
        """Forget some of the clients that have been idle long enough; the rest of them next time."""
        for _ in range(min(_SWEEP, len(self.accounts))):
            client, account = next(iter(self.accounts.items()))
            if account.seen > now - self.idle_us:
                return
            del self.accounts[client]
            if account.spent and min(account.left.values()) < 0:
                account.seen = now
                self.accounts[client] = account

    def left(self, client: ClientId, slot: int) -> int:
        """Return what the client may still use on ``slot`` before a refill; negative is debt."""
        account = self.accounts.get(client)
        return self._quantum(client) if account is None else account.left.get(slot, account.quantum)

    def check(self) -> None:
        """Raise AssertionError unless every account is consistent and within its bounds."""
        assert len(self.accounts) <= MAX_CLIENTS
        for client, account in self.accounts.items():
            assert account.quantum == self._quantum(client), client
            assert account.spent == {s for s, left in account.left.items() if left <= 0}, client

    def _quantum(self, client: ClientId) -> int:
        return max(1, round(self.quantum * self._weights.get(client, 1)))
