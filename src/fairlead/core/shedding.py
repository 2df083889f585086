"""Who loses a request when the queue is full: the client with the longest queue, as fq_codel does.

Rejecting whoever comes last would let a client that floods fill the queue and turn everybody else
away; fairness then acts on the flood alone.
"""

from fairlead.core.model import ClientId, RequestId


class QueueShares:
    """Waiting requests by client, newest last, and which client has most. Every operation is O(1)."""

    def __init__(self) -> None:
        self._of: dict[ClientId, dict[RequestId, None]] = {}
        self._by_count: dict[int, dict[ClientId, None]] = {}
        self._most = 0
        self.total = 0

    def add(self, client: ClientId, rid: RequestId) -> None:
        """Count one more waiting request."""
        mine = self._of.get(client)
        if mine is None:
            mine = self._of[client] = {}
        mine[rid] = None
        self.total += 1
        self._moved(client, len(mine) - 1, len(mine))

    def remove(self, client: ClientId, rid: RequestId) -> None:
        """Count one fewer; KeyError if it was not waiting."""
        mine = self._of[client]
        del mine[rid]
        self.total -= 1
        self._moved(client, len(mine) + 1, len(mine))
        if not mine:
            del self._of[client]

    def count(self, client: ClientId) -> int:
        """Return how many requests of the client wait."""
        return len(self._of.get(client, ()))

    def items(self) -> list[tuple[ClientId, int]]:
        """Return the queue length of every client that waits."""
        return [(client, len(mine)) for client, mine in self._of.items()]

    def victim(self) -> tuple[ClientId, RequestId] | None:
        """Return the newest request of a client with the longest queue; None if nobody waits."""
        if not self._most:
            return None
        client = next(iter(self._by_count[self._most]))
        return client, next(reversed(self._of[client]))

    def _moved(self, client: ClientId, before: int, after: int) -> None:
        if before:
            group = self._by_count[before]
            del group[client]
            if not group:
                del self._by_count[before]
        if after:
            group_after = self._by_count.get(after)
            if group_after is None:
                group_after = self._by_count[after] = {}
            group_after[client] = None
        if after > self._most or (before == self._most and before not in self._by_count):
            self._most = after
