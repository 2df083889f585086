"""ServeGen's clients: rates, burstiness and lengths of each, from which requests are drawn.

A folder or tar archive has two files for each client of a model. ``chunk-N-trace.csv`` has rows ``start_s,
rate, cv, family, shape, scale``, one for every 10 minutes; the family is Gamma or Weibull.
``chunk-N-dataset.json`` has histograms ``input_tokens`` and ``output_tokens`` for every 6 hours.

Arrivals are a renewal process whose gaps, of mean 1, pass at the rate of the moment; so bursts cross the
borders of the windows. Input and output are drawn independently, since the source has no joint lengths.
Every client has a random stream of its own: what one does changes nothing for another.
"""

import csv
import json
import re
from array import array
from bisect import bisect, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path, PurePosixPath
from random import Random
from typing import NamedTuple

from fairlead.core.outside import amount, whole
from fairlead.core.params import Param, Values, nearest
from fairlead.trace.arrivals import Gap, gamma_gap, weibull_gap
from fairlead.trace.faults import Faults
from fairlead.trace.files import Member, Sample, members
from fairlead.trace.model import Repair, Trace, TraceError
from fairlead.trace.reader import Reader, identify
from fairlead.trace.store import Store

_FORM = "servegen"
_CHUNK = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")


class Window(NamedTuple):
    """A stretch of one client's arrivals."""

    start: float
    """Seconds."""
    rate: float
    """Requests per second."""
    gap: Gap


class Histogram:
    """Lengths with their shares, to draw from."""

    def __init__(self, shares: dict[int, float]) -> None:
        kept = sorted((length, share) for length, share in shares.items() if share > 0)
        self._lengths = array("q", (length for length, _ in kept))
        self._sums = list(accumulate(share for _, share in kept))

    def __bool__(self) -> bool:
        return bool(self._sums)

    def draw(self, rng: Random) -> int:
        """Return a length; lengths below 1 count as 1."""
        at = bisect(self._sums, rng.random() * self._sums[-1], 0, len(self._sums) - 1)
        return max(1, self._lengths[at])


class Lengths(NamedTuple):
    """A client's lengths from ``start`` on."""

    start: float
    input: Histogram
    output: Histogram


def parse_windows(content: bytes) -> list[Window]:
    """Parse a trace file. Raises ValueError naming the line and the field."""
    windows = []
    for number, row in enumerate(csv.reader(content.decode("utf-8", "replace").splitlines()), 1):
        if not row:
            continue
        try:
            start, rate, cv = float(row[0]), float(row[1]), float(row[2])
            family = row[3]
            if rate > 0 and family == "Weibull":
                gap = weibull_gap(float(row[4]))
            elif rate > 0 and family not in ("Gamma", ""):
                raise ValueError(f"family is {family!r}, not Gamma or Weibull")
            else:
                gap = gamma_gap(cv if family else 1.0)
        except (ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
            raise ValueError(f"line {number}: {error}") from None
        if not (0 <= start < 1e9 and 0 <= rate < 1e6 and 0 <= cv < 1e6):
            raise ValueError(
                f"line {number}: start {start:g}, rate {rate:g} or cv {cv:g} is negative or out of range"
            )
        windows.append(Window(start, rate, gap))
    return sorted(windows, key=lambda window: window.start)


def parse_lengths(content: bytes) -> list[Lengths]:
    """Parse a dataset file; windows without lengths are left out. Raises ValueError naming the field."""
    found = []
    try:
        for start, fields in json.loads(content).items():
            histograms = [Histogram(_shares(fields[name])) for name in ("input_tokens", "output_tokens")]
            if all(histograms):
                since = amount(float(start), 1e9)
                if since is None:
                    raise ValueError(f"a start is negative or out of range: {start[:100]}")
                found.append(Lengths(since, *histograms))
    except KeyError as error:
        raise ValueError(f"field {error} is missing") from None
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"not a table of histograms ({error})") from None
    return sorted(found, key=lambda lengths: lengths.start)


def _shares(text: str) -> dict[int, float]:
    """Parse a Python dict literal of whole numbers to shares; quicker than a general parser."""
    shares: dict[int, float] = {}
    for item in text.strip("{} \n").split(","):
        if item.strip():
            length, _, share = item.partition(":")
            tokens, part = whole(int(length)), amount(float(share), 1e18)
            if tokens is None or part is None:
                raise ValueError(f"a length or its share is negative or out of range: {item.strip()[:100]}")
            shares[tokens] = part
    return shares


def client_arrivals(
    rng: Random, windows: list[Window], begin: float, end: float, scale: float
) -> Iterator[float]:
    """Yield arrivals in seconds from ``begin`` to ``end``, at ``scale`` times the windows' rates."""
    need: float | None = None  # of the present gap, in units of its mean
    width = min((b.start - a.start for a, b in pairwise(windows)), default=600.0)
    for window, stop in zip(
        windows, [*(w.start for w in windows[1:]), windows[-1].start + width], strict=True
    ):
        now, until = max(begin, window.start), min(end, stop)
        rate = window.rate * scale
        if rate <= 0 or now >= until:
            continue
        if need is None:
            need = window.gap(rng) * rng.random()  # the first gap began before the trace
        while need <= rate * (until - now):
            now += need / rate
            yield now
            need = window.gap(rng)
        need -= rate * (until - now)


class _Client:
    """What the files say of one client."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.lengths: list[Lengths] = []


def _clients(path: Path, model: str, faults: Faults) -> dict[str, _Client]:
    """Parse all files of ``model``, by client number."""
    found: dict[str, _Client] = {}
    for member in members(path):
        chunk = _CHUNK.search(member.name)
        if not chunk or _model(member) != model:
            continue
        client = found.setdefault(chunk[1], _Client())
        try:
            if chunk[2] == "trace.csv":
                client.windows = parse_windows(member.read())
            else:
                client.lengths = parse_lengths(member.read())
        except ValueError as error:
            faults.broken(member.name, str(error))
    return found


def _model(member: Member) -> str:
    return PurePosixPath(member.name).parent.name


def _chosen(path: Path, wanted: str) -> str:
    models = sorted({_model(member) for member in members(path) if _CHUNK.search(member.name)})
    if not models:
        raise TraceError(f"{path}: no chunk-N-trace.csv in it")
    if not wanted and len(models) == 1:
        return models[0]
    if wanted in models:
        return wanted
    problem = f"no model '{wanted}'" if wanted else "several models"
    raise TraceError(
        f"{path}: {problem}: choose one with model= (there are: {', '.join(models)}){nearest(wanted, models)}"
    )


def _read(path: Path, values: Values) -> Trace:
    faults = Faults(path, "file")
    model = _chosen(path, values.word("model"))
    clients = _clients(path, model, faults)
    repairs = faults.finish(2 * len(clients), "mend or remove those files")
    usable = {number: client for number, client in clients.items() if client.windows and client.lengths}
    if not usable:
        raise TraceError(f"{path}: no client of {model} has both a trace and lengths")
    duration, scale, seed = values.number("duration_s"), values.number("scale"), values.integer("seed")
    first = min(client.windows[0].start for client in usable.values())
    begin = first + values.number("start_s")
    store = Store()
    for number in sorted(usable, key=int):
        _generate(store, f"client-{number}", usable[number], begin, begin + duration, values)
    missing = sorted(clients.keys() - usable.keys(), key=int)
    stretch = f"{duration:g} s from {values.number('start_s'):g} s, rates times {scale:g}, seed {seed}"
    labels = [
        f"requests drawn from {len(usable)} clients' rates and lengths, {stretch}",
        "input and output lengths drawn independently; requests share no prefix",
    ]
    if missing:
        lost = _expected(clients[number] for number in missing) / _expected(clients.values())
        labels.append(f"{len(missing)} clients without lengths left out: {lost:.0%} of the source's requests")
        rule = "clients with a trace or lengths only: left out"
        repairs += (Repair(rule, len(missing), f"chunk-{missing[0]} of {model}"),)
    return store.trace(
        f"{path.name}:{model}", values.integer("block_tokens"), identify(_FORM, path, values), labels, repairs
    )


def _expected(clients: Iterable[_Client]) -> float:
    """Return the sum of all rates of all windows: in proportion to requests, as windows are equally wide."""
    return sum(window.rate for client in clients for window in client.windows)


def _generate(store: Store, name: str, client: _Client, begin: float, end: float, values: Values) -> None:
    rng = Random(f"servegen/{values.integer('seed')}/{name}")
    starts = [lengths.start for lengths in client.lengths]
    for at in client_arrivals(rng, client.windows, begin, end, values.number("scale")):
        lengths = client.lengths[max(0, bisect_right(starts, at) - 1)]
        store.add_session(round((at - begin) * 1e6), name)
        store.add_turn(lengths.input.draw(rng), lengths.output.draw(rng))


def _sniff(sample: Sample) -> bool:
    return any(_CHUNK.search(name) for name in sample.names)


READERS = (
    Reader(
        _FORM,
        "a tar archive or folder of chunk-N-trace.csv and chunk-N-dataset.json",
        _sniff,
        _read,
        (
            Param("model", "", "the model whose clients to take; needed where the source has several"),
            Param("duration_s", 3600.0, "length of the trace in seconds", low=1, high=1e7),
            Param(
                "start_s", 0.0, "where to begin, in seconds from the source's first window", low=0, high=1e9
            ),
            Param("scale", 1.0, "factor on all rates", low=1e-6, high=1e6),
            Param("seed", 1, "seed of arrivals and lengths", low=0),
            Param("block_tokens", 16, "tokens of a KV block; no block is shared", low=1),
        ),
    ),
)
