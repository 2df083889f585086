"""Measured tables to fit: kernels timed by LLMServingSim's profiler, or whole steps timed by yourself.

A folder of kernel tables holds, for one layer of one model on one GPU (vLLM's kernels):

- ``attention.csv``: one prefill chunk (``prefill_chunk`` tokens after ``kv_prefill``) beside ``n_decode``
  sequences of ``kv_decode`` tokens each;
- ``dense.csv``: each other kernel of the layer by ``tokens``; ``per_sequence.csv``: output head and sampling;
- ``skew.csv`` where it was measured: decoding sequences of unequal length, and equal ones of the same mean;
- ``meta.yaml``: what was measured, and whether the skew tables are fit for use (``skew_fit: enabled``).

A step takes all layers' kernels one after the other. Real batches lie between the rows, with sequences
of unequal length, so the formula is fitted to batches drawn from where engines work: the tables are
interpolated at each, and its attention is multiplied by what unequal lengths cost (the skew tables' median
at that number of sequences; 1 where ``meta.yaml`` says that they are not to be used). Dense kernels are not
interpolated where their rows are close: a GEMM computes whole tiles, so it takes as long as the next row.
"""

import csv
import gzip
import math
import random
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import TextIO

from fairlead.engine.fit import FitError, MeasuredStep
from fairlead.engine.steptime import Work

ONCE = {"embedding", "final_layernorm"}
"""Dense kernels that run once a step, not once a layer."""
TWICE = {"layernorm"}
"""Those that run twice a layer."""
DRAWN_SEQS = 128
"""Largest batch that is drawn: the tables hold hardly a mixed batch above it."""
MEDIAN_CONTEXT = 900
CONTEXT_SIGMA = 0.9
"""Mean context of a drawn batch: log-normal, so that 90% lie between 200 and 4,000 tokens."""
LEAST_CHUNK = 32
TILE = 16
"""Rows of dense kernels at most so many tokens apart are not interpolated."""

_Columns = Sequence[str]


class Line:
    """A piecewise linear function through measured points, constant beyond them.

    Between points at most ``tile`` apart, it has the value of the right one.
    """

    def __init__(self, points: Iterable[tuple[float, float]], tile: float = 0) -> None:
        self.points = sorted(points)
        self._x = [x for x, _ in self.points]
        self._tile = tile

    def __call__(self, x: float) -> float:
        """Return the value at ``x``."""
        i = bisect_left(self._x, x)
        if i == len(self._x):
            return self.points[-1][1]
        right, value = self.points[i]
        if not i or right == x:
            return value
        left, before = self.points[i - 1]
        if right - left <= self._tile:
            return value
        return before + (value - before) * (x - left) / (right - left)


def read_rows(path: Path, numbers: _Columns, names: _Columns = ()) -> Iterator[tuple[list[float], list[str]]]:
    """Yield each row of a CSV file (or .csv.gz) as its number columns and its text columns.

    Raises ``FitError`` for a missing file, column or row, and for what is no number or negative.
    """
    with _opened(path) as lines:
        rows = csv.DictReader(lines)
        found = rows.fieldnames or []
        missing = [name for name in (*numbers, *names) if name not in found]
        if missing:
            raise FitError(
                f"{path}: no column {', '.join(missing)} (found: {', '.join(found) or 'none'});"
                " columns ending in _us are microseconds"
            )
        empty = True
        for row in rows:
            empty = False
            yield [_number(row, name, path, rows.line_num) for name in numbers], [row[n] for n in names]
        if empty:
            raise FitError(f"{path}: no rows")


def _opened(path: Path) -> TextIO:
    try:
        return gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="")
    except OSError as error:
        raise FitError(f"cannot read {path}: {error.strerror}") from None


def _number(row: Mapping[str, str], name: str, path: Path, line: int) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < math.inf:
        raise FitError(f"{path} line {line}: {name} is {row[name]!r}, not a number from 0 up")
    return value


def read_steps(path: Path) -> list[MeasuredStep]:
    """Read steps timed by yourself: decode_seqs, decode_context, prefill_tokens, prefill_area, step_us."""
    columns = ("decode_seqs", "decode_context", "prefill_tokens", "prefill_area", "step_us")
    samples = [MeasuredStep(Work(*map(int, row[:4])), row[4]) for row, _ in read_rows(path, columns)]
    for number, (work, us) in enumerate(samples, 2):
        if not us:
            raise FitError(f"{path} line {number}: step_us is 0")
        if bool(work.decode_context) > bool(work.decode_seqs) or work.prefill_area < work.prefill_tokens:
            raise FitError(
                f"{path} line {number}: {work} contradicts itself: context without sequences, or an area"
                " below its tokens (it is the sum of c·(2p + c))"
            )
    return samples


def read_meta(path: Path) -> dict[str, str]:
    """Return the top-level ``key: value`` lines of a YAML file; {} if there is no such file."""
    if not path.exists():
        return {}
    lines = (re.match(r"(\w+):\s*(\S.*)", line) for line in path.read_text().splitlines())
    return {found[1]: found[2].strip("'\" ") for found in lines if found}


def skew_disabled(folder: Path) -> bool:
    """Return whether ``meta.yaml`` says that the skew tables beside it are not to be used.

    LLMServingSim's own simulator goes by ``skew_fit: enabled``, and takes a missing one for true.
    """
    path = folder / "meta.yaml"
    if not path.exists():
        return False
    return bool(re.search(r"^skew_fit:\s*\n\s+enabled:\s*false\s*$", path.read_text(), re.MULTILINE))


class KernelTables:
    """The kernel tables of one folder; ``layers`` is the model's number of layers.

    ``spread_of`` names the folder whose skew tables are used where this one has none: the same GPU's,
    with another model. Raises ``FitError`` if a table is missing or wrong, or if that folder says that its
    skew tables are not to be used. Of a model on several GPUs (``tensor_parallel``), these are one GPU's
    kernels: all-reduces are not among them.
    """

    def __init__(
        self, folder: Path, layers: int, spread_of: Path | None = None, tensor_parallel: int = 1
    ) -> None:
        self.layers = layers
        tables = _tables_of(folder, tensor_parallel)
        if any(tables.glob("moe*.csv*")):
            raise FitError(f"{tables}: a mixture of experts has costs that the formula does not know")
        self._dense = self._read_dense(_table(tables, "dense"))
        by_name = _by_name(_table(tables, "per_sequence"), "sequences")
        self._head = _sum_lines({name: (line, 1) for name, line in by_name.items()})
        self.head_us = self._head(1)
        columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
        self._attention = {
            tuple(map(int, row[:4])): row[4] for row, _ in read_rows(_table(tables, "attention"), columns)
        }
        self._axes = [_doubling({key[i] for key in self._attention}) for i in range(4)]
        self.spread = self._read_spread(folder, tables, spread_of, tensor_parallel)

    @staticmethod
    def _read_spread(
        folder: Path, tables: Path, spread_of: Path | None, tensor_parallel: int
    ) -> dict[str, Line]:
        if spread_of and skew_disabled(spread_of):
            raise FitError(
                f"{spread_of / 'meta.yaml'}: skew_fit is not enabled, so the skew tables beside it are not to"
                " be used; without --spread-of, contexts are taken as equal"
            )
        own = {} if skew_disabled(folder) else _read_spread(tables)
        return own or (_read_spread(_tables_of(spread_of, tensor_parallel)) if spread_of else {})

    def _read_dense(self, path: Path) -> Line:
        times = {
            name: 1 if name in ONCE else self.layers * (1 + (name in TWICE)) for name in self._names(path)
        }
        parts = {name: (line, times[name]) for name, line in _by_name(path, "tokens").items()}
        return _sum_lines(parts, tile=TILE)

    @staticmethod
    def _names(path: Path) -> set[str]:
        return {names[0] for _, names in read_rows(path, (), ("layer",))}

    def rows(self, kv_tokens: int, max_tokens: int) -> list[MeasuredStep]:
        """Return the steps of the attention table that fit a KV pool and a token budget."""
        return [
            self._sample(chunk, past, seqs, context, us)
            for (chunk, past, seqs, context), us in self._attention.items()
            if seqs * context + past + chunk <= kv_tokens and 0 < chunk + seqs <= max_tokens
        ]

    def draw(self, count: int, kv_tokens: int, max_tokens: int, seed: int = 0) -> list[MeasuredStep]:
        """Return ``count`` batches such as engines run: half of them decode, a quarter each prefill and mix.

        Sequences: evenly from 1 to 128, one batch in three evenly by magnitude. Prefill chunks:
        evenly by magnitude, half of them after a cached or computed prefix.
        """
        rng = random.Random(seed)
        samples: list[MeasuredStep] = []
        for attempt in range(20 * count):
            found = self._draw_one(rng, attempt % 4, kv_tokens, max_tokens)
            if found is not None:
                samples.append(found)
                if len(samples) == count:
                    return samples
        raise FitError(f"only {len(samples)} of {20 * count} drawn batches lie within the attention table")

    def _draw_one(
        self, rng: random.Random, kind: int, kv_tokens: int, max_tokens: int
    ) -> MeasuredStep | None:
        seqs = chunk = past = context = 0
        if kind != 3:
            seqs = rng.randint(1, DRAWN_SEQS) if rng.random() < 2 / 3 else _by_magnitude(rng, 1, DRAWN_SEQS)
            drawn = rng.lognormvariate(math.log(MEDIAN_CONTEXT), CONTEXT_SIGMA)
            context = max(1, int(min(drawn, kv_tokens / seqs)))
        if kind >= 2:
            chunk = _by_magnitude(rng, LEAST_CHUNK, max_tokens - seqs)
            if rng.random() < 0.5:
                past = int(rng.lognormvariate(math.log(MEDIAN_CONTEXT), CONTEXT_SIGMA))
        attention = self._interpolate(chunk, past, seqs, context)
        if attention is None:
            return None
        factor = self.spread["mixed" if chunk else "pure"](seqs) if self.spread and seqs else 1.0
        return self._sample(chunk, past, seqs, context, attention * factor)

    def _sample(self, chunk: int, past: int, seqs: int, context: int, attention_us: float) -> MeasuredStep:
        us = self.layers * attention_us + self._dense(chunk + seqs) + self._head(seqs + bool(chunk))
        return MeasuredStep(Work(seqs, seqs * context, chunk, chunk * (2 * past + chunk)), us)

    def _interpolate(self, *point: int) -> float | None:
        """Return the attention of one layer, linear between the corners around it; None outside."""
        total = 0.0
        around = [_around(axis, value) for axis, value in zip(self._axes, point, strict=True)]
        if not all(around):
            return None
        for corner in product(*around):
            weight = math.prod(share for _, share in corner)
            us = self._attention.get(tuple(value for value, _ in corner))
            if us is None:
                return None
            total += weight * us
        return total


def _tables_of(folder: Path, tensor_parallel: int) -> Path:
    """Return where the tables lie: the folder itself, or its ``tpN`` (N GPUs).

    Raises ``FitError`` if it has such folders, but not for so many GPUs.
    """
    inner = folder / f"tp{tensor_parallel}"
    if inner.is_dir():
        return inner
    others = sorted(path.name for path in folder.glob("tp[0-9]*") if path.is_dir())
    if others:
        raise FitError(f"{folder}: no tables for {tensor_parallel} GPUs, only {', '.join(others)}")
    return folder


def _table(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.csv", folder / f"{name}.csv.gz"):
        if path.exists():
            return path
    raise FitError(f"{folder}: no {name}.csv or {name}.csv.gz")


def _by_name(path: Path, axis: str) -> dict[str, Line]:
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (x, us), (name,) in read_rows(path, (axis, "time_us"), ("layer",)):
        points[name].append((x, us))
    return {name: Line(found) for name, found in points.items()}


def _sum_lines(parts: Mapping[str, tuple[Line, int]], tile: float = 0) -> Line:
    """Return one line that is the sum of several, each so many times; ``tile`` as in ``Line``."""
    grid = sorted({x for line, _ in parts.values() for x, _ in line.points})
    return Line(((x, sum(times * line(x) for line, times in parts.values())) for x in grid), tile)


def _read_spread(folder: Path) -> dict[str, Line]:
    """Return by regime how much longer attention takes over unequal contexts, by sequences; {} if unknown."""
    try:
        path = _table(folder, "skew")
    except FitError:
        return {}
    ratios: dict[str, dict[int, list[float]]] = {"pure": defaultdict(list), "mixed": defaultdict(list)}
    for (seqs, equal, unequal), (regime,) in read_rows(path, ("n", "t_mean_us", "t_skew_us"), ("regime",)):
        if regime in ratios and equal:
            ratios[regime][int(seqs)].append(unequal / equal)
    if not all(ratios.values()):
        raise FitError(f"{path}: no rows of regime pure, or none of regime mixed")
    return {
        regime: Line([(1, 1.0), *((seqs, median(found)) for seqs, found in by_seqs.items())])
        for regime, by_seqs in ratios.items()
    }


def _doubling(values: set[int]) -> list[int]:
    """Return 0 and the powers of two among ``values``: the profiler's full grid, without its extra points."""
    return sorted(value for value in values if not value & (value - 1))


def _around(axis: Sequence[int], value: int) -> list[tuple[int, float]]:
    """Return the neighbours of ``value`` on ``axis`` and their shares.

    0 stands for itself alone, as does the least of the others for what is below it; [] if ``value`` is
    beyond the last.
    """
    if not value:
        return [(0, 1.0)]
    value = max(value, next((x for x in axis if x), 0))
    if value > axis[-1]:
        return []
    i = bisect_left(axis, value)
    if axis[i] == value:
        return [(value, 1.0)]
    left, right = axis[i - 1], axis[i]
    share = (value - left) / (right - left)
    return [(left, 1 - share), (right, share)]


def _by_magnitude(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
