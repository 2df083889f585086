"""Reads zstd files."""

import io
from collections.abc import Callable
from typing import BinaryIO, Protocol

import zstandard

from fairlead.trace.pieces import Pieces

_WINDOW = 1 << 27
"""Largest zstd window that is accepted: what ``zstd --long=27`` writes."""
_PIECE = 1 << 14
"""Compressed bytes taken at a time; few, since they may become a thousand times as many."""


def zstd_reader(raw: BinaryIO) -> BinaryIO:
    """Return a stream of what ``raw`` holds compressed. Reading it raises OSError if the data is damaged."""
    frames = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    return io.BufferedReader(_Frames(raw, frames.decompressobj, zstandard.ZstdError), 1 << 20)


class _Frame(Protocol):
    """What decompresses one zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes) -> bytes: ...


class _Frames(Pieces):
    """Decompresses zstd frames; unlike the package's own reader it notices an end that comes too early."""

    def __init__(self, raw: BinaryIO, begin: Callable[[], _Frame], damage: type[Exception]) -> None:
        super().__init__()
        self._raw = raw
        self._begin = begin
        self._damage = damage
        self._frame: _Frame | None = None

    def _more(self) -> bool:
        """Decompress the next piece; return whether there was one. Raises OSError if the data is damaged."""
        data = b""
        if self._frame is not None and self._frame.eof:
            data, self._frame = self._frame.unused_data, None
        data = data or self._raw.read(_PIECE)
        if not data:
            if self._frame is not None:
                raise OSError("the compressed data ends too early")
            return False
        self._frame = self._frame or self._begin()
        try:
            self._ready, self._at = self._frame.decompress(data), 0
        except self._damage as error:
            raise OSError(str(error)) from None
        return True
