"""Writes a decision log: off the caller's thread, rotated, bounded.

``FILE`` is the one being written, ``FILE.1`` the one before it, and so on. The files of one run number
themselves in their headers, so that they are known as one log whatever else lies beside them.
"""

import contextlib
import fcntl
import os
import platform
import queue
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from fairlead import __version__
from fairlead.core import events as ev
from fairlead.core.commands import Command
from fairlead.trace.decisions import (
    VERSION,
    Header,
    LogError,
    Outcome,
    Record,
    Setup,
    decode_header,
    encode,
    encode_header,
    refusal,
)

MAX_BYTES = 256 * 2**20
FILES = 4
_BATCH = 64
"""Records that are encoded at a time: by the piece costs a quarter more, and many at once a pause."""
_CHUNK = 2**17
"""Bytes that are handed to the disk at a time."""
_MOST_BEHIND = 64 * 2**20
"""Bytes that may wait for the disk; then the log ends rather than take all memory."""

Step = Callable[[ev.Event], list[Command]]


class DecisionLog:
    """Records what a dispatcher takes in and decides.

    ``add`` costs a few microseconds. The disk is waited for by a thread of the log's own, or in the
    caller's turn if ``background`` is off (a simulation outruns any disk). What waits is written when
    ``flush`` is called and at ``close``.

    A log that cannot be written ends, since one with a hole proves nothing: ``on_failure`` is then told
    why, once and perhaps from the log's thread, and the caller goes on without it. Raises OSError if the
    first file cannot be made, or belongs to somebody else.
    """

    def __init__(
        self,
        path: Path,
        setup: Setup,
        *,
        began: tuple[int, int] = (0, 0),
        max_bytes: int = MAX_BYTES,
        files: int = FILES,
        background: bool = True,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        header = Header(
            fairlead_decision_log=VERSION,
            software=__version__,
            python=platform.python_version(),
            run=secrets.token_hex(8),
            part=0,
            first=0,
            began_unix_us=began[0],
            began_clock_us=began[1],
            setup=setup,
        )
        self._files = _Files(path, header, max_bytes, files)
        self._on_failure = on_failure
        self._failed = False
        """Nothing more is taken."""
        self._stuck = False
        """Nothing more is written. Set by whoever writes."""
        self._pending: list[Record] = []
        self._chunk = bytearray()
        self._records = 0
        """In the chunk."""
        self._handed = 0
        self._written = 0
        self._chunks: queue.SimpleQueue[tuple[bytearray, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._write_all, name="decision-log", daemon=True)
            self._thread.start()

    def add(self, event: ev.Event, outcome: Outcome) -> None:
        """Record what ``event`` led to. Both are encoded later and must not be changed any more."""
        pending = self._pending
        pending.append((event, outcome))
        if len(pending) >= _BATCH:
            self._encode()
            if len(self._chunk) >= _CHUNK:
                self._hand_over()

    def flush(self) -> None:
        """See to it that what was added is written soon."""
        self._encode()
        if self._chunk:
            self._hand_over()

    def close(self) -> None:
        """Write all that was added, and end."""
        self.flush()
        if self._thread is not None:
            self._chunks.put(None)
            self._thread.join()
            self._thread = None
        self._files.close()

    def _encode(self) -> None:
        batch, self._pending = self._pending, []
        if self._failed:
            return
        try:
            self._chunk += encode(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on without the log
            self._fail(f"a record cannot be encoded: {error}")
        else:
            self._records += len(batch)

    def _hand_over(self) -> None:
        chunk, self._chunk = self._chunk, bytearray()
        records, self._records = self._records, 0
        self._handed += len(chunk)
        if self._thread is None:
            self._write(chunk, records)
        elif self._handed - self._written > _MOST_BEHIND:
            self._fail(f"{_MOST_BEHIND} bytes wait for the disk, which does not keep up")
        else:
            self._chunks.put((chunk, records))

    def _write_all(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._write(*chunk)

    def _write(self, chunk: bytearray, records: int) -> None:
        if self._stuck:
            return
        try:
            self._files.write(chunk, records)
        except Exception as error:  # noqa: BLE001 - as above
            self._stuck = True
            self._fail(str(error))
        self._written += len(chunk)

    def _fail(self, reason: str) -> None:
        """Take nothing more; what was taken before is still written."""
        if not self._failed:
            self._failed = True
            self._on_failure(reason)


def recording(step: Step, log: DecisionLog) -> Step:
    """Return a dispatcher's ``step`` that records what it is given and returns, or raises."""
    add = log.add

    def recorded(event: ev.Event) -> list[Command]:
        try:
            commands = step(event)
        except Exception as error:
            add(event, refusal(error))
            raise
        add(event, commands)
        return commands

    return recorded


class _Files:
    """Writes lines to a set of files of bounded size."""

    def __init__(self, path: Path, header: Header, max_bytes: int, files: int) -> None:
        self._path, self._max_bytes, self._count = path, max_bytes, files
        self._header = header
        names = [path, *(_with_number(path, number) for number in range(1, files))]
        for name in names:
            if name.exists() and not name.is_file():
                raise OSError(f"the decision log needs a file: {name} is something else")
            if name.exists() and name.stat().st_size:
                _take_over(name)
        if path.exists():
            self._shift()
        self._records = 0
        """In the current file."""
        self._size = 0
        self._open()

    def write(self, lines: bytearray, records: int) -> None:
        """Write whole lines, one a record."""
        if self._size + len(lines) <= self._max_bytes:
            self._put(lines, records)
            return
        for line in lines.splitlines(keepends=True):
            if self._records and self._size + len(line) > self._max_bytes:
                self._rotate()
            self._put(line, 1)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take was told when it was written
            self._file.close()

    def _put(self, lines: bytearray, records: int) -> None:
        self._file.write(lines)
        self._file.flush()
        self._size += len(lines)
        self._records += records

    def _rotate(self) -> None:
        self._file.close()
        self._shift()
        header = self._header
        self._header = msgspec.structs.replace(
            header, part=header.part + 1, first=header.first + self._records
        )
        self._records = 0
        self._open()

    def _open(self) -> None:
        # Only its owner may read who asked for what and when.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        head = encode_header(self._header)
        self._file.write(head)
        self._file.flush()
        self._size = len(head)

    def _shift(self) -> None:
        """Number every older file one up and drop those that are too many."""
        for number, path in sorted(numbered(self._path).items(), reverse=True):
            if number >= self._count - 1:
                path.unlink()
            else:
                path.rename(_with_number(self._path, number + 1))
        if self._count > 1:
            self._path.rename(_with_number(self._path, 1))


def _take_over(path: Path) -> None:
    """Raise OSError if the file is no decision log, or somebody writes it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"the decision log {path} is being written by another process") from None
        try:
            decode_header(file.readline())
        except LogError as error:
            raise OSError(f"{path} is in the way of the decision log, move it: {error}") from None


def _with_number(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def numbered(path: Path) -> dict[int, Path]:
    """Return the rotated files of ``path`` by number; files of that name that are no logs are left alone."""
    found = {}
    for other in path.parent.glob(f"{_escaped(path.name)}.*"):
        digits = other.name[len(path.name) + 1 :]
        if re.fullmatch(r"[1-9]\d{0,5}", digits) and header_of(other) is not None:
            found[int(digits)] = other
    return found


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def header_of(path: Path) -> Header | None:
    """Return the header of a log's file, None for any other file."""
    try:
        with path.open("rb") as file:
            return decode_header(file.readline())
    except (OSError, LogError):
        return None
