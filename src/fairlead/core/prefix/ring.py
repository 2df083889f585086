"""A ring of things in order of use: the least recently used leaves first.

Linked through the things themselves, so that joining and leaving allocate nothing. A sentinel closes the
ring: its ``newer`` is the oldest, its ``older`` the newest.
"""


class Linked:
    """What can be in a ring; without neighbours it is in none."""

    __slots__ = ("newer", "older")

    def __init__(self) -> None:
        self.newer: Linked | None = None
        self.older: Linked | None = None

    def begin_ring(self) -> None:
        """Make this the sentinel of an empty ring."""
        self.newer = self.older = self


def link_newest(sentinel: Linked, node: Linked) -> None:
    """Put ``node`` into the ring as the most recently used."""
    newest = sentinel.older
    assert newest is not None
    node.older, node.newer = newest, sentinel
    newest.newer = sentinel.older = node


def unlink(node: Linked) -> None:
    """Take ``node`` out of its ring."""
    older, newer = node.older, node.newer
    assert older is not None
    assert newer is not None
    older.newer, newer.older = newer, older
    node.older = node.newer = None
