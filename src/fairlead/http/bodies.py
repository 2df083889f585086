"""Request bodies that are not small: kept in the pieces they came in, and bounded in all.

Putting 64 MiB together takes 30 ms and more, in which nobody else is served. So nobody does, unless a
handler asks for the whole.
"""

COUNTED_BYTES = 16_384
"""Bodies beyond this are counted. Smaller ones are bounded by the number of connections and requests."""
PIECE_BYTES = 65_536
"""Smaller parts are put together up to this size: an object for each would cost more than it holds."""


class Bodies:
    """What the bodies of all requests take, from their first bytes until nobody needs them."""

    __slots__ = ("held", "refused", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        """Bytes that may be held."""
        self.held = 0
        self.refused = 0
        """Bodies refused because of that."""


class Body:
    """One body. It is counted for as long as this object lives, which is as long as its bytes do."""

    __slots__ = ("_bodies", "parts", "size")

    def __init__(self, bodies: Bodies, first: bytes = b"") -> None:
        self._bodies = bodies
        self.size = len(first)
        bodies.held += self.size
        self.parts: list[bytes | bytearray] = [first] if first else []

    def __del__(self) -> None:
        self._bodies.held -= self.size

    def __len__(self) -> int:
        return self.size

    def add(self, data: bytes) -> None:
        """Take in the next part."""
        parts = self.parts
        last = parts[-1] if parts else None
        if isinstance(last, bytearray) and len(last) < PIECE_BYTES:
            last += data
        else:
            parts.append(data if len(data) >= PIECE_BYTES else bytearray(data))
        self.size += len(data)
        self._bodies.held += len(data)

    def whole(self) -> bytes:
        """Return the body in one piece. Of a large one this takes long: see the module."""
        if len(self.parts) == 1 and isinstance(self.parts[0], bytes):
            return self.parts[0]
        whole = b"".join(self.parts)
        self.parts = [whole]
        return whole
