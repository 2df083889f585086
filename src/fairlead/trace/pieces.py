"""A stream whose bytes come in pieces that somebody makes one by one."""

import io
from typing import Any


class Pieces(io.RawIOBase):
    """Hands out ``_ready`` from ``_at`` on, and asks ``_more`` for the next piece when that is used up."""

    def __init__(self) -> None:
        self._ready = b""
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with what there is of a piece; return how many bytes, 0 at the end."""
        view = memoryview(buffer)
        while self._at == len(self._ready):
            if not self._more():
                return 0
        part = self._ready[self._at : self._at + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _more(self) -> bool:
        """Make the next piece; return whether there was one. Raises OSError if the source is damaged."""
        raise NotImplementedError
