"""Rows of tables, whatever they are stored in: CSV, JSON lines, a JSON list, or parquet.

``read_rows`` does what all formats of one request a row do alike: it numbers the rows, hands each one on, and
counts what is wrong with it. ``whole``, ``fraction``, ``moment`` and ``word`` read a cell; they raise a
ValueError that names the field, and a row with one is left out.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from fairlead.trace.decoding import ShapeError, decode
from fairlead.trace.faults import MAX_TIME_US, Faults, microseconds
from fairlead.trace.files import delimiter, lines, opened, whole_text
from fairlead.trace.model import TraceError

Cells = Mapping[str, object]
"""A row's values by field: text in CSV, whatever JSON has in the others."""

US_PER = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
"""Microseconds of each unit of time."""

_LONGEST_CELL = 1 << 28
"""Characters of a CSV cell: exports hold whole prompts."""
_HOLDERS = {"data", "items", "logs", "results", "rows"}
"""Fields of a document in one line that hold its list of requests."""
_LONGEST_ROW = 10_000
"""Columns of a row that are looked at; more are no table of requests."""


class Row(NamedTuple):
    """A row, or what is wrong with it."""

    where: str
    cells: Cells
    problem: str = ""
    cut: bool = False
    """The source ends within this row."""


def read_rows(
    path: Path, faults: Faults, take: Callable[[str, Cells], None], needed: Sequence[str] = ()
) -> int:
    """Give every row to ``take``; count in ``faults`` those that are broken or make it raise ValueError.

    Return the number of rows. Raises ``TraceError`` if a table's head lacks a column of ``needed``.
    """
    count = 0
    for row in rows(path, needed):
        count += 1
        problem = row.problem
        if not problem:
            try:
                take(row.where, row.cells)
            except ValueError as error:
                problem = str(error)
            except RecursionError:
                problem = "nested too deeply"
        if problem and row.cut:
            faults.mended("the last line breaks off: left out", f"{row.where}: {problem}")
        elif problem:
            faults.broken(row.where, problem)
    return count


def rows(path: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of ``path``. Raises ``TraceError`` if a table's head lacks a column of ``needed``."""
    with opened(path) as stream:
        head = stream.read(1 << 16).lstrip()
    if head.startswith(b"["):
        yield from _items(path, whole_text(path))
    elif not head.startswith(b"{"):
        yield from _table(path, head.splitlines()[0] if head else b"", needed)
    elif _is_lines(head):
        yield from _json_lines(path)
    else:
        yield from _document(path)


def _is_lines(head: bytes) -> bool:
    """Whether ``head`` begins JSON lines, and no document of its own with a list in it."""
    first, _, rest = head.partition(b"\n")
    try:
        found = decode(first, dict[str, msgspec.Raw])
    except ValueError:  # a document over several lines, or in one very long line
        return bool(rest.strip()) and first.rstrip().endswith(b"}")
    held = (bytes(value).lstrip(b"[ ") for name, value in found.items() if name in _HOLDERS)
    return bool(rest.strip()) or not any(value.startswith(b"{") for value in held)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, text in lines(path):
        where = f"line {number}"
        try:
            yield Row(where, decode(text, dict[str, object]))
        except ValueError as error:
            cut = not text.endswith(b"\n") and not isinstance(error, ShapeError)
            yield Row(where, {}, str(error), cut)


def _items(path: Path, text: bytes) -> Iterator[Row]:
    try:
        items = decode(text, list[msgspec.Raw])
    except ValueError as error:
        raise TraceError(f"{path}: not a JSON list: {error}; is the file complete?") from None
    for number, item in enumerate(items):
        where = f"item {number}"
        try:
            yield Row(where, decode(bytes(item), dict[str, object]))
        except ValueError as error:
            yield Row(where, {}, str(error))


def _document(path: Path) -> Iterator[Row]:
    """Yield the objects of the one list that a JSON document holds."""
    try:
        found = decode(whole_text(path), dict[str, msgspec.Raw])
    except ValueError as error:
        raise TraceError(f"{path}: not a JSON document: {error}; is the file complete?") from None
    lists = {name: bytes(value) for name, value in found.items() if bytes(value).startswith(b"[")}
    if len(lists) != 1:
        names = ", ".join(list(found)[:12])
        raise TraceError(
            f"{path}: one list of requests is expected in the document, not {len(lists)} ({names})"
        )
    yield from _items(path, next(iter(lists.values())))


class _LineEnds:
    """The lines of a text stream; remembers whether the last one was ended."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream
        self.ended = True

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            self.ended = line.endswith("\n")
            yield line


def _table(path: Path, head: bytes, needed: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    with opened(path) as stream:
        text = _LineEnds(io.TextIOWrapper(stream, "utf-8", "replace", newline=""))
        reader = csv.reader(iter(text), delimiter=delimiter(head))
        columns: list[str] = []
        while True:
            try:
                start = reader.line_num + 1
                cells = next(reader, None)
            except csv.Error as error:
                yield Row(f"line {reader.line_num}", {}, str(error))
                continue
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells[:_LONGEST_ROW]]
                _check(path, start, columns, needed)
                continue
            cut = not text.ended and len(cells) < len(columns)
            if reader.line_num > start and len(cells) != len(columns):
                # A quote that nothing closes takes in all rows behind it: they are lost, and count.
                for line in range(start, reader.line_num + 1):
                    yield Row(f"line {line}", {}, f"a quote runs on to line {reader.line_num}")
                continue
            yield Row(f"line {start}", dict(zip(columns, cells, strict=False)), cut=cut)


def _check(path: Path, line: int, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [column for column in needed if column not in columns]
    if missing:
        raise TraceError(
            f"{path}: line {line}: no column {missing[0]} (found: {', '.join(columns)[:500]}); "
            "the first line must name the columns"
        )


def value(cells: Cells, field: str) -> object:
    """Return what ``field`` holds, None for nothing. ``a.b`` is field ``b`` of the object in field ``a``."""
    found = cells.get(field)
    if found is None and "." in field and field not in cells:
        inner: object = cells
        for part in field.split("."):
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        found = inner
    return None if found == "" else found


def whole(cells: Cells, field: str) -> int:
    """Return a whole number; texts like ``12`` and ``12.0`` count as one."""
    found = value(cells, field)
    if found is None:
        raise ValueError(f"{field} is missing")
    if isinstance(found, str):
        try:
            return int(found)
        except ValueError:
            found = _number(found)
    if isinstance(found, float) and found.is_integer():
        return int(found)
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    raise ValueError(f"{field} is {value(cells, field)!r}, not a whole number")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def fraction(cells: Cells, field: str) -> float:
    """Return a number that may have a fraction; it may be infinite or NaN where the source says so."""
    found = value(cells, field)
    if found is None:
        raise ValueError(f"{field} is missing")
    number = _number(found) if isinstance(found, str) else found
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{field} is {found!r}, not a number")
    try:
        return float(number)
    except OverflowError:
        raise ValueError(f"{field} is out of range") from None


def since(cells: Cells, field: str, per_unit: float) -> int:
    """Return a number of units of ``per_unit`` microseconds in microseconds."""
    return microseconds(field, fraction(cells, field), per_unit)


def moment(cells: Cells, field: str, per_unit: float, example: str = "2023-11-16 18:17:03.9799600") -> int:
    """Return a time in microseconds: a number of units of ``per_unit`` microseconds, or a date with a time.

    Dates count from 1970. Seven digits of a second are cut to six; no zone means UTC.
    """
    found = value(cells, field)
    if isinstance(found, str) and _number(found) is None:
        return _date(field, found, example)
    return since(cells, field, per_unit)


def date(cells: Cells, field: str, example: str = "2023-11-16 18:17:03.9799600") -> int:
    """Return a date with a time in microseconds since 1970, as ``moment`` does."""
    found = value(cells, field)
    if found is None:
        raise ValueError(f"{field} is missing")
    return _date(field, str(found), example)


def _date(field: str, text: str, example: str) -> int:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{field} is {text!r}, not like {example}") from None
    found = found.replace(tzinfo=found.tzinfo or UTC)
    delta = found - datetime(1970, 1, 1, tzinfo=UTC)
    at = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    if not 0 <= at <= MAX_TIME_US:
        raise ValueError(f"{field} is {text}, before 1970")
    return at


def word(cells: Cells, field: str) -> str:
    """Return a name; empty if there is none. Raises ValueError for a list or an object."""
    found = value(cells, field)
    if found is None:
        return ""
    if isinstance(found, str | int | float):
        return str(found)
    raise ValueError(f"{field} is a list or an object, not a name")
