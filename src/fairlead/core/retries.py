"""How many requests may be tried again: a share of those that arrive, so that an outage is not amplified.

What was saved up is for everybody. A client may have spent at most a given share of it: its requests that
fail wherever they go leave the others enough to survive the death of a worker.
"""

from fairlead.core.model import ClientId


class RetryBudget:
    """Retries that are left, and who spent those that are not earned back yet.

    Each arrival earns ``ratio`` retries, up to ``burst`` in all. ``share`` of what is there, spent or not, is
    the most that one client may have spent; the first one is always granted. 1 is no limit.
    """

    __slots__ = ("_burst", "_most_clients", "_ratio", "_share", "_spent", "left")

    def __init__(self, ratio: float, burst: int, share: float, most_clients: int) -> None:
        self._ratio = ratio
        self._burst = burst
        self._share = share
        self._most_clients = most_clients
        self._spent: dict[ClientId, float] = {}
        self.left = float(burst)

    def earn(self, client: ClientId) -> None:
        """A request of the client arrived."""
        if self.left >= self._burst:
            return
        self.left += self._ratio
        if self.left >= self._burst:
            self._spent.clear()
        elif client in self._spent:
            self._spent[client] -= self._ratio
            if self._spent[client] <= 0:
                del self._spent[client]

    def take(self, client: ClientId) -> bool:
        """Spend a retry on a request of the client; False, and nothing is spent, if it may have none."""
        if self.left < 1:
            return False
        if self._share < 1:
            spent = self._spent.pop(client, 0.0)
            granted = spent + 1 <= max(1.0, self._share * (spent + self.left))
            self._spent[client] = spent + 1 if granted else spent
            if len(self._spent) > self._most_clients:
                del self._spent[next(iter(self._spent))]
            if not granted:
                return False
        self.left -= 1
        return True
