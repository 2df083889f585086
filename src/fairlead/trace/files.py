"""Opens what traces are stored in: plain, gzip, zstd or parquet files, tar archives of files, and folders.

The kind is found by content, never by the name's ending. Everything is streamed. A byte-order mark of UTF-8
is skipped. The rows of a parquet file are read as JSON lines.
"""

import codecs
import csv
import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from fairlead.trace.decoding import decode
from fairlead.trace.model import TraceError
from fairlead.trace.parquet import MAGIC as _PARQUET
from fairlead.trace.parquet import json_lines
from fairlead.trace.zstd import zstd_reader

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_HEAD = 1 << 16
_PEEKED = 64
"""Bytes by which an encoding is told."""
_CHUNK = 1 << 20
_NAMES = 64
_LOOKED_AT = 50
_FIELD = re.compile(rb'"([^"\\]{1,100})"\s*:')
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
"""Byte-order marks of encodings that are not read; the longer ones first, since one begins with another."""


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

    def objects(self) -> list[dict[str, object]]:
        """Return the first lines that are JSON objects; none of an archive or a folder."""
        found = []
        for line in [] if self.names else self.lines()[:_LOOKED_AT]:
            try:
                found.append(decode(line, dict[str, object]))
            except ValueError:
                continue
        return found

    def keys(self) -> set[str]:
        """Return the fields of the first lines that are JSON objects."""
        return {key for found in self.objects() for key in found}

    def columns(self) -> list[str]:
        """Return the cells of the first line if it can be the head of a CSV table."""
        first = self.head.lstrip(b"\r\n").splitlines()[:1]
        if self.names or not first or first[0].lstrip()[:1] in (b"{", b"["):
            return []
        found = header(first[0])
        return found if len(found) > 1 else []

    def array_keys(self) -> list[str]:
        """Return all names of fields in the head of a JSON document, at any depth; of other text none."""
        if self.names or self.head.lstrip()[:1] not in (b"{", b"["):
            return []
        return list(dict.fromkeys(name.decode("utf-8", "replace") for name in _FIELD.findall(self.head)))

    def fields(self) -> list[str]:
        """Return the names that a user may know the source by: its columns or its fields."""
        columns = self.columns()
        return columns if len(columns) > 2 else sorted(self.keys()) or self.array_keys()


def header(line: bytes) -> list[str]:
    """Return the names of columns in the first line of a CSV file."""
    try:
        text = line.decode("utf-8-sig", "replace").strip("\r\n")
        return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter(line)), [])]
    except csv.Error:
        return []


def delimiter(line: bytes) -> str:
    """Return what separates the columns in the first line of a CSV file: a comma, a semicolon or a tab."""
    return max(",;\t", key=lambda mark: line.count(mark.encode()))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for reading, decompressed.

    Raises ``TraceError`` if it cannot be read, if it is damaged (here or while it is read), if it is text of
    another encoding than UTF-8, or if the package that reads it is missing.
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
            elif magic == _PARQUET:
                stream = json_lines(path)
            else:
                stream = raw
            yield _unmarked(path, stream)
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise TraceError(f"{path}: cannot be read: {error}; is the file complete?") from None


def _unmarked(path: Path, stream: BinaryIO) -> BinaryIO:
    """Skip a byte-order mark of UTF-8. Raises ``TraceError`` for text of another encoding."""
    head = cast("io.BufferedReader", stream).peek(_PEEKED)[:_PEEKED]
    wide = wide_encoding(head)
    if wide:
        raise TraceError(
            f"{path} is {wide} text, and traces are UTF-8: convert it, such as with"
            f" `iconv -f {wide} -t UTF-8 {path.name}`"
        )
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    return stream


def unmarked(text: bytes) -> bytes:
    """Return ``text`` without a byte-order mark of UTF-8."""
    return text.removeprefix(codecs.BOM_UTF8)


def wide_encoding(head: bytes) -> str:
    """Return "UTF-16" or "UTF-32" if text that begins with ``head`` is that, with or without a mark."""
    for mark, name in _WIDE.items():
        if head.startswith(mark):
            return name
    halves = head[0:_PEEKED:2], head[1:_PEEKED:2]
    for zeros, letters in (halves, halves[::-1]):
        if len(zeros) >= 8 and not any(zeros) and all(letters):
            return "UTF-16"
    return ""


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers from 1; the line end, if any, stays on."""
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.isspace():
                yield number, line


def whole_text(path: Path) -> bytes:
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
                yield Member(name, lambda file=file: whole_text(file))  # type: ignore[misc]
        return
    with opened(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            if info.isfile() and not _hidden(info.name):
                content = archive.extractfile(info)
                if content is not None:
                    yield Member(info.name, lambda content=content: unmarked(content.read()))  # type: ignore[misc]


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
