"""JSON lines with block hashes: Mooncake's traces, and files of the same form with other block sizes.

A line is ``{"timestamp", "input_length", "output_length", "hash_ids"}``. Mooncake counts time in
milliseconds and hashes blocks of 512 tokens, the last of which may be partial. LLMServingSim counts seconds
and hashes the full blocks of 16 tokens. A partial block can never be shared, so its id is not used.
"""

from array import array
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median

import msgspec

from fairlead.core.params import Param, Values
from fairlead.trace.chains import BROKEN_CHAIN, Chain
from fairlead.trace.faults import Faults, microseconds
from fairlead.trace.files import Sample, lines
from fairlead.trace.model import Repair, Trace
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.store import Store

_US = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0}
_BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
_JITTER_US = 5_000
"""Quantised times differ from their grid by up to 3 ms in Mooncake's files."""


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def _fields(sample: Sample) -> list[_Line]:
    """Return the first lines that have this form; none if the source is something else."""
    if sample.names:
        return []
    found = []
    for text in sample.lines()[:50]:
        try:
            found.append(msgspec.json.decode(text, type=_Line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found


def _looks_hashed(sample: Sample) -> bool:
    return not sample.names and all(
        f'"{field}"'.encode() in sample.head for field in ("input_length", "hash_ids", "timestamp")
    )


def _in_seconds(sample: Sample) -> bool:
    """Return whether the times have fractions, as seconds do and Mooncake's milliseconds do not."""
    return any(line.timestamp % 1 for line in _fields(sample))


class _Reading:
    """One file while it is read."""

    def __init__(self, path: Path, values: Values) -> None:
        self.faults = Faults(path)
        self.block = values.integer("block_tokens")
        self.per_unit = _US[values.word("time_unit")]
        self.store = Store()
        self.chain = Chain()
        self.at = array("q")
        self.shapes: list[tuple[int, int]] = []  # prompt tokens and number of ids, of the first lines
        self.lines = 0

    def read(self) -> None:
        for number, text in lines(self.faults.path):
            self.lines += 1
            where = f"line {number}"
            try:
                self._take(where, msgspec.json.decode(text, type=_Line))
            except (msgspec.DecodeError, ValueError) as error:
                if text.endswith(b"\n") or isinstance(error, msgspec.ValidationError):
                    self.faults.broken(where, str(error))
                else:
                    self.faults.mended("the last line breaks off: left out", f"{where}: {error}")

    def _take(self, where: str, line: _Line) -> None:
        faults = self.faults
        at = microseconds("timestamp", line.timestamp, self.per_unit)
        prompt = faults.at_least_one(where, "input_length", line.input_length)
        output = faults.at_least_one(where, "output_length", line.output_length)
        faults.arrival(where, at)
        if len(self.shapes) < 100:
            self.shapes.append((prompt, len(line.hash_ids)))
        keys, broken = self.chain.extend(
            self.chain.root, self.chain.fit(faults, where, prompt, self.block, line.hash_ids)
        )
        if broken:
            faults.mended(BROKEN_CHAIN, f"{where}: {self.chain.example}", broken)
        span = self.store.add_keys(keys)
        self.at.append(at)
        self.store.add_session(at, ONE_CLIENT)
        self.store.add_turn(prompt, output, (span,))

    def remedy(self) -> str:
        """Say what to do about a file that was refused."""
        fitting = [size for size in _BLOCK_SIZES if self.shapes and all(
            prompt // size <= ids <= ceil(prompt / size) for prompt, ids in self.shapes
        )]  # fmt: skip
        if fitting and self.block not in fitting:
            return (
                f"the first lines fit blocks of {fitting[0]} tokens: read it with block_tokens={fitting[0]}"
            )
        return "mend or remove those lines"


def grid_us(at: "array[int]") -> int:
    """Return the grid that arrival times were rounded to, at least 1 s wide; 0 if there is none."""
    seen = sorted(set(at))
    steps = [later for before, later in pairwise(seen) if later - before > 2 * _JITTER_US]
    if len(steps) < 10:
        return 0
    points = [seen[0], *steps]
    gap = median(b - a for a, b in pairwise(points))
    grid = round(gap / 10_000) * 10_000
    if grid < 1_000_000:
        return 0
    off = sum(1 for time in at if abs(time - round(time / grid) * grid) > _JITTER_US)
    return grid if off <= 0.01 * len(at) else 0


def spread_evenly(at: "array[int]", grid: int) -> "array[int]":
    """Return ``at`` with the arrivals of each point of the grid spread evenly up to the next one."""
    points = [round(time / grid) for time in at]
    crowd: dict[int, int] = {}
    for point in points:
        crowd[point] = crowd.get(point, 0) + 1
    taken: dict[int, int] = {}
    spread = array("q", bytes(8 * len(at)))
    for index in sorted(range(len(at)), key=at.__getitem__):
        point = points[index]
        rank = taken.get(point, 0)
        taken[point] = rank + 1
        spread[index] = point * grid + rank * grid // crowd[point]
    return spread


def _read(form: str) -> Callable[[Path, Values], Trace]:
    def read(path: Path, values: Values) -> Trace:
        reading = _Reading(path, values)
        reading.read()
        repairs: tuple[Repair, ...] = reading.faults.finish(reading.lines, reading.remedy())
        labels = [NO_CLIENTS]
        grid = grid_us(reading.at) if values.word("spread") == "even" else 0
        if grid:
            reading.store.retime(spread_evenly(reading.at, grid))
            labels.append(
                f"arrival times are rounded to {grid / 1e6:g} s in the source: spread evenly inside each"
            )
        return reading.store.trace(path.name, reading.block, identify(form, path, values), labels, repairs)

    return read


def _params(block_tokens: int, time_unit: str) -> tuple[Param, ...]:
    return (
        Param("block_tokens", block_tokens, "tokens of a hashed block", low=1),
        Param("time_unit", time_unit, "unit of the timestamps", choices=tuple(_US)),
        Param(
            "spread",
            "even",
            "spread arrivals where the source rounded their times to 1 s or more",
            choices=("even", "off"),
        ),
    )


READERS = (
    Reader(
        "mooncake",
        'JSON lines {"timestamp": ms, "input_length", "output_length", "hash_ids": 512-token blocks}',
        lambda sample: _looks_hashed(sample) and not _in_seconds(sample),
        _read("mooncake"),
        _params(512, "ms"),
    ),
    Reader(
        "llmservingsim",
        'JSON lines {"timestamp": s, "input_length", "output_length", "hash_ids": 16-token blocks}',
        lambda sample: _looks_hashed(sample) and _in_seconds(sample),
        _read("llmservingsim"),
        _params(16, "s"),
    ),
)
