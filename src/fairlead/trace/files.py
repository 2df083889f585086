"""Opens what traces are stored in: plain, gzip or zstd files, tar archives of files, and folders.

The kind is found by content, never by the name's ending. Everything is streamed.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from fairlead.trace.model import TraceError
from fairlead.trace.zstd import zstd_reader

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_HEAD = 1 << 16
_CHUNK = 1 << 20
_NAMES = 64


class Member(NamedTuple):
    """One file of an archive or a folder."""

    name: str
    """Path inside it, with forward slashes."""
    read: Callable[[], bytes]
    """Valid until the next member is asked for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The start of a source: what a reader's ``sniff`` decides by."""

    head: bytes
    """First bytes, decompressed. Of an archive or a folder: of its first file that ends in .json or .csv."""
    names: tuple[str, ...] = ()
    """First names in an archive or a folder; empty for a single file."""

    def lines(self) -> list[bytes]:
        """Return the complete lines of the head; the last one too if the whole source is in it."""
        lines = self.head.splitlines()
        if len(self.head) >= _HEAD and len(lines) > 1:
            lines.pop()
        return [line for line in lines if line.strip()]


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for reading, decompressed.

    Raises ``TraceError`` if it cannot be read, if it is damaged (here or while it is read), or if
    the package for its compression is missing.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            magic = raw.read(4)
            raw.seek(0)
            if magic.startswith(_GZIP):
                stream: BinaryIO = cast("BinaryIO", stack.enter_context(gzip.open(raw)))
            elif magic == _ZSTD:
                stream = zstd_reader(raw)
            else:
                stream = raw
            yield stream
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise TraceError(f"{path}: cannot be read: {error}; is the file complete?") from None


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers from 1; the line end, if any, stays on."""
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.isspace():
                yield number, line


def whole(path: Path) -> bytes:
    """Return the whole decompressed content."""
    with opened(path) as stream:
        return stream.read()


def members(path: Path) -> Iterator[Member]:
    """Yield the files of a folder (sorted by name) or of a tar archive (in its order).

    macOS's ``._`` side files and hidden files are skipped. Raises ``TraceError`` if ``path`` is neither.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).as_posix()):
            name = file.relative_to(path).as_posix()
            if file.is_file() and not _hidden(name):
                yield Member(name, lambda file=file: whole(file))  # type: ignore[misc]
        return
    with opened(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            if info.isfile() and not _hidden(info.name):
                content = archive.extractfile(info)
                if content is not None:
                    yield Member(info.name, content.read)


def sample(path: Path) -> Sample:
    """Return the start of ``path``. Raises ``TraceError`` if it does not exist or is empty."""
    if not path.exists():
        raise TraceError(f"{path} does not exist")
    if path.is_dir() or is_tar(path):
        names: list[str] = []
        head = b""
        for member in members(path):
            names.append(member.name)
            if not head and member.name.endswith((".json", ".csv")):
                head = member.read()[:_HEAD]
            if len(names) >= _NAMES and head:
                break
        if not names:
            raise TraceError(f"{path} holds no files")
        return Sample(head, tuple(names))
    with opened(path) as stream:
        head = stream.read(_HEAD)
    if not head.strip():
        raise TraceError(f"{path} is empty: there is no request in it")
    return Sample(head)


def content_hash(path: Path) -> str:
    """Return a hash of the bytes of a file, or of all names and bytes in a folder."""
    state = hashlib.blake2b(digest_size=16)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            state.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()


def is_tar(path: Path) -> bool:
    """Return whether ``path`` is a tar archive, compressed or not."""
    with opened(path) as stream:
        return stream.read(512)[257:262] == b"ustar"


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))
