"""Round robin over clients: one request each in turn, the oldest first."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

import fairlead


class ClientTurns:
    """One worker's queue. ``turns`` has the clients that wait, next first."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self._waiting: dict[str, dict[int, fairlead.QueuedRequest]] = {}

    def push(self, item: fairlead.QueuedRequest, matched: int) -> None:
        """Add a request; a client that had none waiting goes to the end of the turn."""
        item.matched = matched
        self._waiting.setdefault(item.client, {})[item.seq] = item

    def discard(self, item: fairlead.QueuedRequest) -> None:
        """Take a request out; its client's turn has passed."""
        mine = self._waiting.pop(item.client)
        del mine[item.seq]
        if mine:
            self._waiting[item.client] = mine

    def head(self, fits: fairlead.Fits | None = None) -> fairlead.QueuedRequest | None:
        """Return the oldest request of the first client; with ``skip``, the first that fits."""
        for item in self:
            if fits is None or fits(item):
                return item
            if not self._skip:
                return None
        return None

    def cache_stored(self, keys: Iterable[int]) -> None:
        """Ignore: the order does not depend on caches."""

    def cache_evicted(self, keys: Iterable[int]) -> None:
        """Ignore: the order does not depend on caches."""

    def check(self) -> None:
        """Raise AssertionError if a client is listed without a request."""
        assert all(self._waiting.values())

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[fairlead.QueuedRequest]:
        """Walk in the order of service: each client's oldest in turn, then each client's next."""
        lines = [[mine[seq] for seq in sorted(mine)] for mine in self._waiting.values()]
        for place in range(max(map(len, lines), default=0)):
            for line in lines:
                if place < len(line):
                    yield line[place]


class RoundRobinClients(fairlead.OrderingBase[ClientTurns]):
    """Counts requests, not tokens: who sends long prompts gets more. ``dlpm`` and ``vtc`` do better."""

    name: ClassVar[str] = "round_robin_clients"
    source: ClassVar[str] = "an example"
    summary: ClassVar[str] = "One request of each client in turn, its oldest first."
    params: ClassVar[tuple[fairlead.Param, ...]] = (fairlead.ON_NO_FIT,)
    uses_match: ClassVar[bool] = False
    in_turns: ClassVar[bool] = True

    def __init__(self, context: fairlead.OrderingContext, on_no_fit: str = "stop") -> None:
        super().__init__(context)
        self.skips = on_no_fit == "skip"

    def _new_queue(self, number: int, matched: fairlead.Matched) -> ClientTurns:
        return ClientTurns(self.skips)
