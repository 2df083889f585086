"""CSV traces without prefixes: Azure's 2023 inference traces and the VTC paper's arena trace."""

import csv
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from fairlead.core.model import ClientId
from fairlead.core.params import Param, Values
from fairlead.trace.faults import Faults, microseconds
from fairlead.trace.files import Sample, lines
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.store import Store

_NO_PREFIXES = "the source has no prompts: requests share no prefix"
_Row = Mapping[str, str]


def _cells(text: bytes) -> list[str]:
    return next(csv.reader([text.decode("utf-8-sig", "replace").strip("\r\n")]), [])


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str], bool]]:
    """Yield place, cells by column, and whether the line breaks off: the last one, with cells missing."""
    found: list[str] = []
    for number, text in lines(path):
        cells = _cells(text)
        if not found:
            found = cells
            missing = [column for column in columns if column not in found]
            if missing:
                raise TraceError(
                    f"{path}: line {number}: no column {missing[0]} (found: {', '.join(found)}); "
                    "the first line must name the columns"
                )
            continue
        yield (
            f"line {number}",
            dict(zip(found, cells, strict=False)),
            (not text.endswith(b"\n") and len(cells) < len(found)),
        )


def _whole(row: _Row, column: str) -> int:
    text = row.get(column)
    if text is None:
        raise ValueError(f"{column} is missing")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{column} is {text!r}, not a whole number") from None


def _timestamp(row: _Row) -> int:
    """Return microseconds since 1970. Seven digits of a second are cut to six; no zone means UTC."""
    text = row.get("TIMESTAMP", "")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"TIMESTAMP is {text!r}, not like 2023-11-16 18:17:03.9799600") from None
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    if moment.year < 1970:
        raise ValueError(f"TIMESTAMP is {text}, before 1970")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _arrival_s(row: _Row) -> int:
    text = row.get("arrival_s", "")
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"arrival_s is {text!r}, not a number") from None
    return microseconds("arrival_s", seconds, 1e6)


def _client(row: _Row) -> ClientId:
    name = row.get("client_id", "")
    if not name:
        raise ValueError("client_id is missing")
    return name


def _read(
    form: str,
    columns: tuple[str, str, str],
    arrival: Callable[[_Row], int],
    client: Callable[[_Row], ClientId] | None,
) -> Callable[[Path, Values], Trace]:
    time_column, prompt_column, output_column = columns
    needed = (time_column, prompt_column, output_column, *(("client_id",) if client else ()))

    def read(path: Path, values: Values) -> Trace:
        faults = Faults(path)
        store = Store()
        count = 0
        for where, row, cut in _rows(path, needed):
            count += 1
            try:
                at = arrival(row)
                prompt = faults.at_least_one(where, prompt_column, _whole(row, prompt_column))
                output = faults.at_least_one(where, output_column, _whole(row, output_column))
                who = client(row) if client else ONE_CLIENT
            except ValueError as error:
                if cut:
                    faults.mended("the last line breaks off: left out", f"{where}: {error}")
                else:
                    faults.broken(where, str(error))
                continue
            faults.arrival(where, at)
            store.add_session(at, who)
            store.add_turn(prompt, output)
        repairs = faults.finish(count, "mend or remove those lines")
        labels = [_NO_PREFIXES, *([] if client else [NO_CLIENTS])]
        return store.trace(
            path.name, values.integer("block_tokens"), identify(form, path, values), labels, repairs
        )

    return read


def _has(*columns: str) -> Callable[[Sample], bool]:
    def sniff(sample: Sample) -> bool:
        first = sample.head.splitlines()[:1]
        return not sample.names and bool(first) and set(columns) <= set(_cells(first[0]))

    return sniff


_BLOCK = (Param("block_tokens", 16, "tokens of a KV block; no block is shared", low=1),)

READERS = (
    Reader(
        "azure",
        "CSV TIMESTAMP,ContextTokens,GeneratedTokens",
        _has("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        _read("azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _timestamp, None),
        _BLOCK,
    ),
    Reader(
        "vtc-arena",
        "CSV req_id,client_id,arrival_s,input_tokens,output_tokens",
        _has("client_id", "arrival_s", "input_tokens", "output_tokens"),
        _read("vtc-arena", ("arrival_s", "input_tokens", "output_tokens"), _arrival_s, _client),
        _BLOCK,
    ),
)
