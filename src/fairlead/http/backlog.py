"""Answers that clients have not taken yet: they wait in memory, bounded for each client and in all.

A transport takes bytes without limit. So a connection whose transport is full puts what follows into
its ``Backlog``, which hands it on piece by piece. ``Backlogs`` adds them up and finds the connections
that have to be cut.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairlead.http.connection import ServerConnection

PIECE_BYTES = 65_536
"""Smaller parts are put together up to this size: an object for every token would cost more than it holds."""

BEHIND, TOTAL, STALLED = "behind", "total", "stalled"
"""Why a reader was cut: too far behind, the furthest behind when all together are too much, no progress."""


class Backlog:
    """What one connection still has to send. All of it is counted, the transport's part too."""

    __slots__ = ("_all", "_connection", "_pieces", "_waiting", "held_back", "in_transport", "size")

    def __init__(self, connection: "ServerConnection", backlogs: "Backlogs") -> None:
        self._connection = connection
        self._all = backlogs
        self._pieces: deque[bytes | bytearray] = deque()
        self._waiting = 0
        self.in_transport = 0
        """Bytes in the transport when it was last looked at, while it takes no more."""
        self.size = 0
        """Bytes in all. 0 while the transport takes what comes."""
        self.held_back = False
        """Whether the answer's source was told to pause and did."""

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, data: bytes) -> None:
        """Keep ``data`` until the transport takes more."""
        pieces = self._pieces
        last = pieces[-1] if pieces else None
        if isinstance(last, bytearray) and len(last) < PIECE_BYTES:
            last += data
        else:
            pieces.append(data if len(data) >= PIECE_BYTES else bytearray(data))
        self._waiting += len(data)
        self._count()

    def block(self, in_transport: int) -> None:
        """The transport, which holds so many bytes, takes no more for now."""
        self.in_transport = in_transport
        self._count()

    def move(self, write: Callable[[bytes], None]) -> None:
        """Hand pieces to ``write``, the transport's, until that blocks again or none is left."""
        self.in_transport = 0
        while self._pieces and not self.in_transport:
            piece = self._pieces.popleft()
            self._waiting -= len(piece)
            write(piece)  # type: ignore[arg-type] # transports take any buffer
        self._count()

    def clear(self) -> None:
        """Drop everything."""
        self._pieces.clear()
        self._waiting = self.in_transport = 0
        self._count()

    def _count(self) -> None:
        size = self._waiting + self.in_transport
        self._all.changed(self._connection, size - self.size, size)
        self.size = size


class Backlogs:
    """The backlogs of all connections of a server."""

    def __init__(self, each: int, total: int) -> None:
        self.each = each
        """Bytes that may wait for one connection."""
        self.total = total
        """Bytes that may wait for all of them."""
        self.waiting = 0
        self.cut = {BEHIND: 0, TOTAL: 0, STALLED: 0}
        """Connections cut so far, by reason."""
        self._behind: set[ServerConnection] = set()
        self._check_due = False

    def changed(self, connection: "ServerConnection", by: int, size: int) -> None:
        """A connection's backlog grew or shrank to ``size``."""
        self.waiting += by
        if size == 0:
            self._behind.discard(connection)
            return
        self._behind.add(connection)
        if by > 0 and not self._check_due and (size > self.each or self.waiting > self.total):
            # Not from here: whoever sends must not lose its exchange in the middle of that.
            self._check_due = True
            asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        self._check_due = False
        for connection in [c for c in self._behind if c.backlog_size > self.each]:
            connection.fell_behind()
        self.check_total()

    def check_total(self) -> None:
        """While all together are too much, cut who is furthest behind."""
        while self.waiting > self.total and self._behind:
            max(self._behind, key=lambda c: c.backlog_size).cut(TOTAL)
