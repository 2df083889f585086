"""Reads the rows of a parquet file as JSON lines, with pyarrow: ``pip install 'fairlead[parquet]'``."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from fairlead.trace.model import TraceError
from fairlead.trace.pieces import Pieces

MAGIC = b"PAR1"
"""What a parquet file begins with."""

_ROWS = 1_000
"""Rows that are in memory at a time."""


def json_lines(path: Path) -> BinaryIO:
    """Return a stream with a JSON object a row; dates are ISO 8601, NaN and missing values null.

    Raises ``TraceError`` if pyarrow is not installed, and OSError, here or while it is read, if the file is
    damaged.
    """
    try:
        from pyarrow import ArrowException  # noqa: PLC0415 # an extra
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415
    except ImportError:
        raise TraceError(
            f"{path} is a parquet file, which needs pyarrow: pip install 'fairlead[parquet]'"
        ) from None
    try:
        return io.BufferedReader(_Lines(ParquetFile(path), ArrowException), 1 << 20)
    except (ArrowException, ValueError) as error:
        raise OSError(str(error)) from None


class _Lines(Pieces):
    """The rows of a parquet file, encoded a batch at a time."""

    def __init__(self, file: Any, damage: type[Exception]) -> None:
        super().__init__()
        self._batches: Iterator[Any] = file.iter_batches(batch_size=_ROWS)
        self._damage = damage

    def _more(self) -> bool:
        """Encode the next batch of rows."""
        try:
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._ready = b"".join(_ENCODER.encode(row) + b"\n" for row in batch.to_pylist())
        except (self._damage, ValueError) as error:
            raise OSError(str(error)) from None
        self._at = 0
        return True


_ENCODER = msgspec.json.Encoder(enc_hook=str, decimal_format="number")
