"""Reads a decision log: finds all files of a run and yields its records in order."""

import re
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fairlead.core import events as ev
from fairlead.trace.decision_files import header_of, numbered
from fairlead.trace.decisions import LogError, decode, decode_header


class LogRecord(NamedTuple):
    """One record as it was read."""

    number: int
    """Within the run, from 0."""
    event: ev.Event
    outcome: bytes
    """As ``decisions.encode_outcome`` gives it."""
    path: Path
    line: int
    """From 1; the header is line 1."""


class LogReader:
    """The log of one run, in all its files.

    ``path`` may be any of the files. Raises OSError or ``LogError`` if it is no decision log.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            try:
                header = decode_header(file.readline())
            except LogError as error:
                raise LogError(f"{path}: {error}") from None
        self.header = header
        """Of the oldest file that is left."""
        self.paths = [path]
        """Oldest first."""
        self.truncated = ""
        """After reading: which record was cut off by a crash, if one was."""
        self.bytes_read = 0
        self._find(path, header.run)

    @property
    def missing(self) -> int:
        """Records at the beginning that were rotated away."""
        return self.header.first

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(path.stat().st_size for path in self.paths)

    def __iter__(self) -> Iterator[LogRecord]:
        """Read all records from the oldest. Raises ``LogError`` where that is impossible."""
        return self.records()

    def records(self, *kinds: type[ev.Event]) -> Iterator[LogRecord]:
        """Read the records of these kinds of events, or all if none is named; the others cost little.

        Raises ``LogError`` for a damaged log.
        """
        wanted = tuple(b'["%b",' % kind.__name__.encode() for kind in kinds)
        self.truncated = ""
        self.bytes_read = 0
        number = self.header.first
        for path in self.paths:
            with path.open("rb") as file:
                head = decode_header(file.readline())
                if head.first != number:
                    raise LogError(
                        f"{path} begins at record {head.first}, the file before it ends at {number}"
                    )
                self.bytes_read += file.tell()
                number = yield from self._of_file(file, path, number, wanted)

    def _of_file(
        self, file: BinaryIO, path: Path, number: int, wanted: tuple[bytes, ...]
    ) -> Generator[LogRecord, None, int]:
        """Yield a file's records; return the number of the one that would follow."""
        for at, line in enumerate(file, 2):
            self.bytes_read += len(line)
            if not line.endswith(b"\n"):
                if path != self.paths[-1]:
                    raise LogError(f"{path} line {at}: the record is cut off, and more files follow")
                self.truncated = f"{path} line {at}"
                break
            if not wanted or line.startswith(wanted):
                try:
                    event, outcome = decode(line)
                except ValueError as error:
                    raise LogError(f"{path} line {at} is no record: {error}") from None
                yield LogRecord(number, event, outcome, path, at)
            number += 1
        return number

    def _find(self, path: Path, run: str) -> None:
        base = path.with_name(re.sub(r"\.[1-9]\d{0,5}$", "", path.name))
        around = {path, base, *numbered(base).values()}
        parts = {}
        for other in around:
            header = header_of(other)
            if header is not None and header.run == run:
                parts[header.part] = (other, header)
        numbers = sorted(parts)
        for before, after in pairwise(numbers):
            if after != before + 1:
                raise LogError(f"{path}: file {before + 1} of the run is missing, while later ones exist")
        self.paths = [parts[number][0] for number in numbers]
        self.header = parts[numbers[0]][1]
