"""Records a replay: a row for each request as it ends, and afterwards series of service over time."""

from __future__ import annotations  # array[int] is not known at run time before Python 3.12

from array import array
from collections.abc import Sequence
from itertools import accumulate

from fairlead.core.model import Costs
from fairlead.report.itl import InterTokenTimes
from fairlead.report.run import UNFINISHED, Fairness, Requests, Series

SHORT_US = 120_000_000
"""Runs up to here are sampled ten times a second, longer ones once."""
MOST_PAIRED = 32
"""Clients up to which all pairs are compared."""


class Record:
    """Rows in order of arrival."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.planned = array("i")
        """Output tokens that each request should have, by the workload."""
        self.itl = InterTokenTimes()

    def new(self, client: int, arrived: int, prompt: int, output: int) -> int:
        """Begin a row and return its number. Until it is filled in, it is unfinished."""
        r = self.requests
        row = len(r)
        r.client.append(client)
        r.arrived.append(arrived)
        r.prompt.append(prompt)
        for column in (r.sent, r.first, r.ended, r.cached, r.worker):
            column.append(-1)
        r.output.append(0)
        r.outcome.append(UNFINISHED)
        self.planned.append(output)
        return row

    def duration_us(self) -> int:
        """Return the time from the first arrival, or the start, to the last end."""
        r = self.requests
        return max(0, max(r.ended, default=0), max(r.arrived, default=0))


def series(record: Record, clients: int, costs: Costs) -> Series:
    """Return each client's service, demand and queue over time, as its requests' rows tell them.

    A prompt's service (what was not cached) counts when the first token came, an answer's evenly from then
    to the end. Demand counts in full at arrival. Queued: arrived, no first token, not ended. No worker is
    known.
    """
    duration = record.duration_us()
    interval = 1_000_000 if duration > SHORT_US else 100_000
    samples = duration // interval
    size = samples + 2
    service = [[0.0] * size for _ in range(clients)]
    demand = [[0.0] * size for _ in range(clients)]
    queued = [[0] * size for _ in range(clients)]
    r = record.requests
    rows = zip(
        r.client, r.arrived, r.first, r.ended, r.prompt, r.cached, r.output, record.planned, strict=True
    )
    for client, arrived, first, ended, prompt, cached, output, planned in rows:
        at = arrived // interval
        demand[client][at] += costs.extend * prompt + costs.output * planned
        queued[client][at] += 1
        until = first if first >= 0 else ended
        if until < 0:
            continue
        queued[client][until // interval] -= 1
        if first >= 0:
            service[client][first // interval] += costs.extend * (prompt - max(0, cached))
            _spread(service[client], costs.output * output, first, max(first, ended), interval)
    return Series(
        interval,
        [array("d", list(accumulate(column))[:samples]) for column in service],
        [array("d", list(accumulate(column))[:samples]) for column in demand],
        [array("i", list(accumulate(column))[:samples]) for column in queued],
        [], [], [], [],
    )  # fmt: skip


def _spread(column: list[float], amount: float, start: int, end: int, interval: int) -> None:
    """Add ``amount`` to the intervals between two moments, to each by its share of the time."""
    first, last = start // interval, end // interval
    if first == last:
        column[first] += amount
        return
    each = amount / (end - start)
    column[first] += each * ((first + 1) * interval - start)
    for i in range(first + 1, last):
        column[i] += each * interval
    column[last] += each * (end - last * interval)


def fairness(found: Series, clients: Sequence[str], weights: Sequence[float]) -> Fairness:
    """Return the worst gap between two clients that both had requests waiting at every sample between."""
    seconds = found.interval_us / 1e6
    told = f"none is known for a live endpoint; the gap is sampled every {seconds:g} s from the client's side"
    if len(clients) > MOST_PAIRED:
        return Fairness(bound_text=f"{told}, for up to {MOST_PAIRED} clients: there are {len(clients)}")
    worst = Fairness(bound_text=told)
    open_pairs: dict[tuple[int, int], tuple[float, float]] = {}
    for at in range(len(found.service[0]) if found.service else 0):
        waiting = [i for i, column in enumerate(found.queued) if column[at] > 0]
        served = {i: found.service[i][at] / weights[i] for i in waiting}
        now: dict[tuple[int, int], tuple[float, float]] = {}
        for place, one in enumerate(waiting):
            for other in waiting[place + 1 :]:
                difference = served[one] - served[other]
                low, high = open_pairs.get((one, other), (difference, difference))
                low, high = now[one, other] = min(low, difference), max(high, difference)
                if high - low > worst.worst_gap:
                    worst.worst_gap, worst.pair = high - low, (clients[one], clients[other])
        open_pairs = now
    return worst
