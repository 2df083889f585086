"""What clients were served, in service units: reserved at admission, settled by what really happened.

For each client, at every moment: charged = delivered + outstanding (invariant 2). ``outstanding`` is
prompt work that was admitted and whose real size is not known yet. Output tokens are charged as they
come, so they are never outstanding.
"""

from fairlead.core.model import ClientId, Costs


class Account:
    """One client's books, in service units but for ``weight`` and ``requests``."""

    __slots__ = ("charged", "delivered", "last_us", "outstanding", "requests", "running", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.charged = 0
        self.delivered = 0
        self.outstanding = 0
        self.running = 0
        """Requests that were admitted and have not ended: such an account is never forgotten."""
        self.requests = 0
        """Requests that ended with an answer."""
        self.last_us = 0
        """When the account was last touched by an admission."""

    def __repr__(self) -> str:
        return (
            f"<Account w={self.weight:g} charged={self.charged} "
            f"delivered={self.delivered} outstanding={self.outstanding}>"
        )


class Ledger:
    """Accounts by client. Amounts come in tokens and are priced here, once."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.accounts: dict[ClientId, Account] = {}
        self.forgotten = 0
        """Service delivered to accounts that were since forgotten; keeps the totals honest."""

    def account(self, client: ClientId) -> Account:
        """Return the client's account, opened with weight 1 if it is new."""
        found = self.accounts.get(client)
        if found is None:
            found = self.accounts[client] = Account(1.0)
        return found

    def reserve(self, client: ClientId, extend_tokens: int, now: int) -> Account:
        """Charge prompt work at admission, before it is done. Returns the account, to settle it by."""
        account = self.accounts.get(client) or self.account(client)
        units = self.costs.extend * extend_tokens
        account.charged += units
        account.outstanding += units
        account.running += 1
        account.last_us = now
        return account

    def settle(self, account: Account, reserved_tokens: int, actual_tokens: int) -> None:
        """Replace a reservation by the prompt work that was really done."""
        price = self.costs.extend
        actual = price * actual_tokens
        account.charged += actual - price * reserved_tokens
        account.outstanding -= price * reserved_tokens
        account.delivered += actual
        account.running -= 1

    def refund(self, account: Account, reserved_tokens: int) -> None:
        """Take back a reservation whose work was never done."""
        self.settle(account, reserved_tokens, 0)

    def decoded(self, account: Account, tokens: int) -> None:
        """Charge output tokens that were delivered; negative corrects an earlier over-count."""
        units = self.costs.output * tokens
        account.charged += units
        account.delivered += units

    def forget_idle(self, before_us: int, cap: int) -> None:
        """Drop settled accounts untouched since ``before_us``; over ``cap``, the oldest ones too.

        Takes time in proportion to the number of accounts; meant for a tick every minute or so.
        """
        settled = [(a.last_us, c) for c, a in self.accounts.items() if not a.running]
        excess = len(self.accounts) - cap
        settled.sort()
        for rank, (last_us, client) in enumerate(settled):
            if last_us < before_us or rank < excess:
                self.forgotten += self.accounts.pop(client).delivered

    @property
    def delivered(self) -> int:
        """Service delivered to all clients since the start."""
        return self.forgotten + sum(a.delivered for a in self.accounts.values())

    def check(self) -> None:
        """Raise AssertionError unless every account balances."""
        for client, a in self.accounts.items():
            assert a.charged == a.delivered + a.outstanding, f"ledger of {client} does not balance: {a!r}"
            assert a.running or not a.outstanding, f"ledger of {client} reserves for nothing: {a!r}"
            assert a.outstanding >= 0, f"ledger of {client} owes work: {a!r}"
