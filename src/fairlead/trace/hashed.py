"""JSON lines with block hashes: Mooncake's traces, what others made of that form, and Qwen-Bailian's.

A line is ``{"timestamp", "input_length", "output_length", "hash_ids"}``. Mooncake counts time in
milliseconds and hashes blocks of 512 tokens, the last of which may be partial. LLMServingSim counts seconds
and hashes the full blocks of 16 tokens. A partial block can never be shared, so its id is not used.

Dynamo's replay adds ``session_id`` and, on later turns, ``delay`` or ``delay_ms`` in place of ``timestamp``:
a turn waits for the answer before it and then so long, or for the time between the two timestamps. Dynamo's
turns hold the whole prompt, AIPerf's and those of Dynamo's ``mooncake-delta`` only what is new. AIPerf and
guidellm may leave ``hash_ids`` out. Qwen-Bailian's usage traces have ``chat_id`` and ``parent_chat_id`` (-1
for the first turn), seconds, and blocks of 16 tokens.
"""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path

import msgspec

from fairlead.core.params import Param, Values
from fairlead.trace.calls import HISTORY, HISTORY_PARAM, SESSIONS, Call, Calls, closed, gaps_label
from fairlead.trace.chains import BROKEN_CHAIN, Chain
from fairlead.trace.decoding import ShapeError, decode
from fairlead.trace.faults import Faults, microseconds
from fairlead.trace.files import Sample, lines, sample
from fairlead.trace.grid import grid_us, spread_evenly
from fairlead.trace.model import Repair, Trace
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.store import Store, counted

_US = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0}
_LONG = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
_BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
_RATE = 1_000
"""Requests a second beyond which a unit of time is doubted."""
_ORPHANS = "turns whose parent is not in the file: begin a session"


class _Line(msgspec.Struct):
    timestamp: float | None = None
    created_time: float | None = None
    input_length: int | None = None
    input_tokens: int | None = None
    output_length: int | None = None
    output_tokens: int | None = None
    hash_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    session_id: str | int | None = None
    delay: float | None = None
    delay_ms: float | None = None
    chat_id: int | str | None = None
    parent_chat_id: int | str = -1
    type: object = None

    def time(self) -> float | None:
        return self.timestamp if self.timestamp is not None else self.created_time

    def prompt(self) -> int | None:
        return self.input_length if self.input_length is not None else self.input_tokens

    def output(self) -> int | None:
        return self.output_length if self.output_length is not None else self.output_tokens


def _lines(sample: Sample) -> list[_Line]:
    """Return the first lines that have this form; none if the source is something else."""
    if sample.names:
        return []
    found = []
    for text in sample.lines()[:50]:
        try:
            line = decode(text, _Line)
        except ValueError:
            continue
        if (
            line.prompt() is not None
            and line.output() is not None
            and (line.time() is not None or line.session_id is not None)
        ):
            found.append(line)
    return found


def _state_what_is_new(found: list[_Line]) -> bool:
    """Whether later turns hold only what is new: some are there, and none continues the turn before it."""
    latest: dict[str | int, _Line] = {}
    turns = 0
    for line in found:
        if line.session_id is None:
            continue
        before = latest.get(line.session_id)
        latest[line.session_id] = line
        if before is None:
            continue
        turns += 1
        ids, old = line.hash_ids, before.hash_ids
        if ids is not msgspec.UNSET and old is not msgspec.UNSET:
            # The last id may be that of a partial block, which grows.
            continues = bool(ids) and len(ids) >= len(old) and ids[: len(old) - 1] == old[:-1]
            continues = continues and (len(old) > 1 or ids[:1] == old)
        else:
            continues = (line.prompt() or 0) >= (before.prompt() or 0) + (before.output() or 0)
        if continues:
            return False
    return turns > 0


def _of_bailian(sample: Sample) -> bool:
    return any(line.chat_id is not None for line in _lines(sample))


def _of_sim(sample: Sample) -> bool:
    """Whether these are LLMServingSim's: seconds and blocks of 16 tokens, and no other block size fits."""
    found = _lines(sample)
    if not _in_seconds(found) or any(line.chat_id is not None for line in found):
        return False
    shapes = _shapes(found)
    return bool(shapes) and (16 in (fits := fitting(shapes)) or not fits)


def _of_mooncake(sample: Sample) -> bool:
    return bool(_lines(sample)) and not _of_bailian(sample) and not _of_sim(sample)


def _in_seconds(found: list[_Line]) -> bool:
    """Whether the times have fractions, as seconds do and Mooncake's milliseconds do not.

    Sessions are Dynamo's, whose milliseconds may have them.
    """
    return not any(line.session_id is not None or line.created_time is not None for line in found) and any(
        (line.time() or 0.0) % 1 for line in found
    )


def _shapes(found: list[_Line]) -> list[tuple[int, int]]:
    """Return prompt tokens and number of ids of the lines that have ids."""
    return [(line.prompt() or 0, len(line.hash_ids)) for line in found if line.hash_ids is not msgspec.UNSET]


def fitting(shapes: list[tuple[int, int]]) -> list[int]:
    """Return the block sizes that prompts with so many tokens and ids can have."""
    return [size for size in _BLOCK_SIZES if shapes and all(
        prompt // size <= ids <= ceil(prompt / size) for prompt, ids in shapes
    )]  # fmt: skip


class _Reading:
    """One file while it is read."""

    def __init__(self, path: Path, block: int, unit: str, *, closed: bool, history: bool, new: bool) -> None:
        self.faults = Faults(path)
        self.block = block
        self.per_unit = _US[unit]
        self.store = Store()
        self.calls = Calls(self.store, block, closed=closed, history=history, new=new)
        self.chain = Chain()
        self.at = array("q")  # of every request that stands alone, in the order they are stored
        self.shapes: list[tuple[int, int]] = []  # prompt tokens and number of ids, of the first lines
        self.lines = 0
        self.kinds: Counter[str] = Counter()
        self.sessions = False
        self._chats: dict[int | str, tuple[int, str]] = {}  # number of the call, and its session

    def read(self) -> None:
        for number, text in lines(self.faults.path):
            self.lines += 1
            where = f"line {number}"
            try:
                self._take(where, decode(text, _Line))
            except ValueError as error:
                if text.endswith(b"\n") or isinstance(error, ShapeError):
                    self.faults.broken(where, str(error))
                else:
                    self.faults.mended("the last line breaks off: left out", f"{where}: {error}")
        self.calls.finish()

    def _take(self, where: str, line: _Line) -> None:
        faults = self.faults
        time, delay = line.time(), line.delay_ms if line.delay_ms is not None else line.delay
        at = -1 if time is None else microseconds("timestamp", time, self.per_unit)
        pause = -1 if delay is None else microseconds("delay", delay, 1e3)
        if at < 0 and (pause < 0 or line.session_id is None):
            raise ValueError("Object missing required field `timestamp`")
        prompt = self._tokens(where, "input_length", line.prompt())
        output = self._tokens(where, "output_length", line.output())
        if at >= 0:
            faults.arrival(where, at)
        call = Call(at, prompt, output, ONE_CLIENT, delay=pause)
        if line.hash_ids is not msgspec.UNSET:
            self._keys(where, call, line.hash_ids)
        elif self.shapes:
            faults.doubtful(where, "no hash ids: the prompt shares nothing", "hash_ids is missing")
        if line.chat_id is not None:
            self._chat(where, line, call)
            return
        if line.session_id is not None:
            self.sessions = True
            call.session = f"{line.session_id}"
        else:
            self.at.append(at)
        self.calls.add(call)

    def _tokens(self, where: str, field: str, tokens: int | None) -> int:
        if tokens is None:
            raise ValueError(f"Object missing required field `{field}`")
        return self.faults.at_least_one(where, field, tokens)

    def _keys(self, where: str, call: Call, ids: list[int]) -> None:
        if len(self.shapes) < 100:
            self.shapes.append((call.prompt, len(ids)))
        fitted = self.chain.fit(self.faults, where, call.prompt, self.block, ids)
        keys, broken = self.chain.extend(self.chain.root, fitted)
        if broken:
            self.faults.mended(BROKEN_CHAIN, f"{where}: {self.chain.example}", broken)
        call.spans = (self.store.add_keys(keys),)

    def _chat(self, where: str, line: _Line, call: Call) -> None:
        """Add a request of a Bailian trace to the session of its parent."""
        self.sessions = True
        if isinstance(line.type, str):
            self.kinds[line.type] += 1
        parent = None if line.parent_chat_id in (-1, "-1", "") else self._chats.get(line.parent_chat_id)
        if parent is None and line.parent_chat_id not in (-1, "-1", ""):
            self.faults.mended(_ORPHANS, f"{where}: parent_chat_id is {line.parent_chat_id}")
        call.parent, call.session = parent or (-1, f"chat {line.chat_id}")
        number = self.calls.add(call)
        if line.chat_id is not None:
            self._chats[line.chat_id] = (number, call.session)

    def remedy(self) -> str:
        """Say what to do about a file that was refused."""
        fits = fitting(self.shapes)
        if fits and self.block not in fits:
            return (
                f"the first lines fit blocks of {fits[0]} tokens: read it with block_tokens={fits[0]}"
                f" (--option block_tokens={fits[0]})"
            )
        return "mend or remove those lines"


def _unit(path: Path, values: Values) -> str:
    """Return the unit of the times: as told, or by the first lines."""
    told = values.word("time_unit")
    if told != "auto":
        return told
    found = _lines(sample(path))
    return "s" if _in_seconds(found) or any(line.chat_id is not None for line in found) else "ms"


def _new(path: Path, values: Values) -> bool:
    """Whether later turns hold only what is new: as told, or by the first lines."""
    told = values.word("turns")
    return told == "new" or (told == "auto" and _state_what_is_new(_lines(sample(path))))


def _read(form: str) -> Callable[[Path, Values], Trace]:
    def read(path: Path, values: Values) -> Trace:
        unit = _unit(path, values)
        new = _new(path, values)
        reading = _Reading(
            path,
            values.integer("block_tokens"),
            unit,
            closed=closed(values),
            history=values.flag("history"),
            new=new,
        )
        reading.read()
        repairs: tuple[Repair, ...] = reading.faults.finish(reading.lines, reading.remedy())
        labels = [NO_CLIENTS]
        if not reading.shapes:
            labels.append("the source has no hash ids: no prefix is shared between sessions")
            if reading.sessions and values.flag("history") and not new:
                labels.append(HISTORY)
        if new:
            labels.append("turns state what is new: prompts and answers of their session come before it")
        if reading.calls.turns:
            labels.append(gaps_label(ends=False))
        grid = grid_us(reading.at) if values.word("spread") == "even" and not reading.sessions else 0
        if grid:
            reading.store.retime(spread_evenly(reading.at, grid))
            labels.append(
                f"arrival times are rounded to {grid / 1e6:g} s in the source: spread evenly inside each"
            )
        facts = [f"arrivals in {_LONG[unit]}"]
        if reading.shapes:
            facts.insert(0, f"blocks of {reading.block} tokens")
        if new:
            facts.insert(0, "turns state what is new")
        if reading.kinds:
            facts.insert(0, counted(len(reading.kinds), "type"))
        trace = reading.store.trace(
            path.name, reading.block, identify(form, path, values), labels, repairs, facts=facts
        )
        return replace(trace, labels=(*trace.labels, *_doubts(trace, unit)))

    return read


def _doubts(trace: Trace, unit: str) -> list[str]:
    """Say if the unit of the times makes a rate that hardly any source has."""
    rate = trace.requests / max(1e-6, trace.duration_us / 1e6)
    if unit == "ms" and trace.requests > 20 and rate > _RATE:
        return [f"{rate:,.0f} requests/s if times are milliseconds: if they are seconds, say time_unit=s"]
    return []


def _params(block_tokens: int) -> tuple[Param, ...]:
    return (
        Param("block_tokens", block_tokens, "tokens of a hashed block", low=1),
        Param(
            "time_unit", "auto",
            "unit of the timestamps; auto: seconds if they have fractions and no sessions, else milliseconds",
            choices=("auto", *_US),
        ),
        Param(
            "spread",
            "even",
            "spread arrivals where the source rounded their times to 1 s or more",
            choices=("even", "off"),
        ),
        Param(
            "turns", "auto",
            "whether later turns of a session state the whole prompt or what is new; auto: by the first ones",
            choices=("auto", "whole", "new"),
        ),
        SESSIONS,
        HISTORY_PARAM,
    )  # fmt: skip


READERS = (
    Reader(
        "mooncake",
        'JSON lines {"timestamp": ms, "input_length", "output_length", "hash_ids": 512-token blocks},'
        ' and Dynamo\'s with {"session_id", "delay"}',
        _of_mooncake,
        _read("mooncake"),
        _params(512),
        "Mooncake JSON lines",
    ),
    Reader(
        "llmservingsim",
        'JSON lines {"timestamp": s, "input_length", "output_length", "hash_ids": 16-token blocks}',
        _of_sim,
        _read("llmservingsim"),
        _params(16),
        "LLMServingSim JSON lines",
    ),
    Reader(
        "qwen-bailian",
        'JSON lines {"chat_id", "parent_chat_id", "timestamp": s, "input_length", "output_length", "type",'
        ' "turn", "hash_ids": 16-token blocks}',
        _of_bailian,
        _read("qwen-bailian"),
        _params(16),
        "Qwen-Bailian usage trace",
    ),
)
