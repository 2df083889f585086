"""What a real engine did in each step, as a CSV file: what ``fairlead profile fit`` reads, and more.

``StepNotes`` is told of each step by a scheduler (``vllm_steps`` has vLLM's) and writes one row a step:

- the figures of ``steptime.Work``, and ``step_us``: until the end of the step, from its start or from the
  end of the one before if the engine had work all the time. Host code between steps is therefore in it;
- ``begin_us`` on the engine's monotonic clock;
- request ids, each list in the order of events: ``arrived`` since the step before, with the moment behind a
  colon (in microseconds, as ``begin_us``); ``admitted``, with the cached tokens; ``preempted``; ``finished``.

With those lists the same requests can be put through the model step for step, and every decision compared;
and what the engine itself took can be told from what the server around it added.
"""

import csv
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from io import TextIOBase
from pathlib import Path
from typing import NamedTuple, Protocol

from fairlead.engine.steptime import Work

COLUMNS = (*Work._fields, "step_us", "begin_us", "arrived", "admitted", "preempted", "finished")
_FLUSH_ROWS = 256


class Scheduled(Protocol):
    """What is read of an engine's request, right after a step was scheduled."""

    num_computed_tokens: int
    """Tokens in KV when the step will have ended."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output so far."""


class LoggedStep(NamedTuple):
    """One row. ``arrived``: request id and moment in microseconds; ``admitted``: id and cached tokens."""

    work: Work
    step_us: float
    begin_us: float
    arrived: list[tuple[str, int]]
    admitted: list[tuple[str, int]]
    preempted: list[str]
    finished: list[str]


class StepNotes:
    """Gathers steps and writes them to ``file``; ``clock`` returns seconds.

    Steps end in the order in which they were scheduled; one may be scheduled before the last has ended.
    """

    def __init__(self, file: TextIOBase, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._writer = csv.writer(file)
        self._writer.writerow(COLUMNS)
        self._clock = clock
        self._decoding: set[str] = set()
        """Requests whose prompt is computed, as far as it is scheduled."""
        self._batch: set[str] = set()
        self._arrived: list[tuple[str, int]] = []
        self._preempted: list[str] = []
        self._under_way: deque[LoggedStep] = deque()
        self._busy_since = 0.0
        """When the last step ended, if there was work left then; else 0."""
        self._unflushed = 0

    def arrived(self, rid: str) -> None:
        """Note that a request came into the engine's queue."""
        self._arrived.append((rid, round(self._clock() * 1e6)))

    def preempted(self, rid: str) -> None:
        """Note that a request lost its KV."""
        self._preempted.append(rid)
        self._decoding.discard(rid)
        self._batch.discard(rid)

    def scheduled(self, tokens: Mapping[str, int], requests: Mapping[str, Scheduled], began: float) -> None:
        """Note a step: how many ``tokens`` each request computes in it. It ``began`` then, on the clock."""
        seqs = context = prefilled = area = 0
        admitted: list[tuple[str, int]] = []
        for rid, count in tokens.items():
            request = requests[rid]
            before = request.num_computed_tokens - count
            if rid in self._decoding:
                seqs += 1
                context += before
                continue
            prefilled += count
            area += count * (2 * before + count)
            if rid not in self._batch:
                self._batch.add(rid)
                admitted.append((rid, before))
            if request.num_computed_tokens >= request.num_tokens:
                self._decoding.add(rid)
        if tokens:
            work = Work(seqs, context, prefilled, area)
            step = LoggedStep(work, 0.0, began * 1e6, self._arrived, admitted, self._preempted, [])
            self._under_way.append(step)
            self._arrived, self._preempted = [], []

    def ended(self, tokens: Mapping[str, int], requests: Mapping[str, Scheduled]) -> None:
        """Note that the step of these ``tokens`` has ended; who finished is not in ``requests`` any more."""
        now = self._clock()
        if tokens:
            step = self._under_way.popleft()
            finished = [rid for rid in tokens if rid not in requests]
            self._decoding.difference_update(finished)
            self._batch.difference_update(finished)
            begin_us = self._busy_since * 1e6 or step.begin_us
            self._write(step._replace(step_us=now * 1e6 - begin_us, begin_us=begin_us, finished=finished))
        self._busy_since = now if requests else 0.0
        if self._unflushed >= _FLUSH_ROWS or not requests:
            self._file.flush()
            self._unflushed = 0

    def _write(self, step: LoggedStep) -> None:
        lists: list[Iterable[str]] = [
            *([f"{rid}:{value}" for rid, value in pairs] for pairs in (step.arrived, step.admitted)),
            step.preempted,
            step.finished,
        ]
        times = (f"{step.step_us:.1f}", f"{step.begin_us:.1f}")
        self._writer.writerow((*step.work, *times, *map(" ".join, lists)))
        self._unflushed += 1


def read_step_log(path: Path) -> list[LoggedStep]:
    """Read what ``StepNotes`` wrote. Raises OSError, and ValueError for a row that cannot be."""
    with path.open(newline="") as file:
        rows = csv.reader(file)
        if tuple(next(rows, ())) != COLUMNS:
            raise ValueError(f"{path}: not a step log, which begins with {','.join(COLUMNS)}")
        return [_read(row) for row in rows]


def _read(row: list[str]) -> LoggedStep:
    size = len(Work._fields)
    arrived, admitted, preempted, finished = map(str.split, row[size + 2 :])
    return LoggedStep(
        Work(*map(int, row[:size])),
        float(row[size]),
        float(row[size + 1]),
        _pairs(arrived),
        _pairs(admitted),
        preempted,
        finished,
    )


def _pairs(entries: list[str]) -> list[tuple[str, int]]:
    return [(rid, int(value)) for rid, _, value in (entry.rpartition(":") for entry in entries)]
