"""Closed loops: what each client got, beside its max-min share of the fleet's slots.

A client of a closed loop wants as many slots as it has sessions open, and cannot use more. What it is owed
follows from what everybody wants (max-min fairness; Bertsekas and Gallager, Data Networks, section
6.5.2), with service per weight as what is made equal: the least served client is served as well as can
be, then the next, and nobody is given more than it wants.

All of it speaks of a window: from a tenth of the time until the last arrival to the last arrival. Before
it all loops begin at once, after it the queue drains.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.core.model import Costs
from fairlead.report.distribution import percentile
from fairlead.report.run import DONE, Run

WARM_UP = 0.1
"""Share of the time until the last arrival that is left out at the start."""


@dataclass(slots=True)
class _Wants:
    """What one client's requests did in the window. Times in microseconds."""

    open_us: float = 0.0
    """Request-time between arrival and end, waiting included."""
    held_us: float = 0.0
    """Slot-time of the completed requests that arrived in the window."""
    units: float = 0.0
    """Service units of the same."""
    arrived: int = 0
    completed: int = 0

    @property
    def rate(self) -> float | None:
        """Service units that a slot gives this client's requests in a microsecond; None if none ended."""
        return self.units / self.held_us if self.held_us > 0 else None


def max_min_slots(
    wanted: Sequence[float], weights: Sequence[float], rates: Sequence[float], slots: float
) -> list[float]:
    """Share ``slots`` out so that service per weight is max-min fair, and return each client's slots.

    ``wanted``: slots that each client would fill; ``rates``: service that a slot gives each client's
    requests, in any unit, above 0. With equal rates and weights that is water-filling: everybody gets what
    it wants up to a common level.
    """
    found = [0.0] * len(wanted)
    left = slots
    price = sum(w / r for w, r in zip(weights, rates, strict=True))
    """Slots that one more unit of service for every unit of weight costs."""
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i] * rates[i] / weights[i]):
        mine = weights[i] / rates[i]
        found[i] = min(wanted[i], left * mine / price) if price > 0 else 0.0
        left -= found[i]
        price -= mine
    return found


def closed_loops(run: Run, costs: Costs) -> dict[str, Any] | None:
    """Return shares against entitlement and the waiting of each client; None if no client is a closed loop.

    Shares are None where the run is too short for two samples of its series before the last arrival.
    """
    loops = run.loops
    if loops is None or not len(run.requests):
        return None
    until = run.requests.arrived[-1]
    start = int(WARM_UP * until)
    wants, ttfts = _look(run, costs, start, until)
    wanted = [_wanted(w, count, until - start) for w, count in zip(wants, loops.open, strict=True)]
    known = [w.rate for w in wants if w.rate is not None]
    typical = statistics.fmean(known) if known else 1.0
    rates = [w.rate or typical for w in wants]
    owed = max_min_slots(wanted, run.weights, rates, loops.slots)
    entitled = _shares([slots * rate for slots, rate in zip(owed, rates, strict=True)])
    got = _service(run, start, until)
    shares = _shares(got) if got else [None] * len(wants)
    ratios = [s / e if s is not None and e else None for s, e in zip(shares, entitled, strict=True)]
    clients = [
        {
            "name": name,
            "open": loops.open[i] or None,
            "pause_s": loops.pause_us[i] / 1e6 if loops.open[i] else None,
            "wanted_slots": round(wanted[i], 4),
            "owed_slots": round(owed[i], 4),
            "entitled_share": _rounded(entitled[i]),
            "service_share": _rounded(shares[i]),
            "ratio": _rounded(ratios[i]),
            **_waiting(sorted(ttfts[i])),
        }
        for i, name in enumerate(run.clients)
    ]
    measured = [ratio for ratio in ratios if ratio is not None]
    return {
        "slots": loops.slots,
        "from_s": start / 1e6,
        "until_s": until / 1e6,
        "clients": clients,
        "most_over_least": _rounded(max(measured) / min(measured))
        if measured and min(measured) > 0
        else None,
    }


def _look(run: Run, costs: Costs, start: int, until: int) -> tuple[list[_Wants], list[list[int]]]:
    """Return what each client's requests did, and the TTFTs of those that arrived in the window.

    A slot is held from the dispatch on where the gateway holds the queue. An engine that orders its own queue
    does not say when a request entered the batch: there it is counted from the first token, without prefill.
    """
    r = run.requests
    wants = [_Wants() for _ in run.clients]
    ttfts: list[list[int]] = [[] for _ in run.clients]
    entered = r.sent if run.topology == "gateway" else r.first
    rows = zip(
        r.client, r.arrived, entered, r.first, r.ended, r.prompt, r.cached, r.output, r.outcome, strict=True
    )
    for client, arrived, began, first, ended, prompt, cached, output, outcome in rows:
        mine = wants[client]
        end = ended if ended >= 0 else until
        mine.open_us += max(0, min(end, until) - max(arrived, start))
        if arrived < start:
            continue
        mine.arrived += 1
        if first >= 0:
            ttfts[client].append(first - arrived)
        if outcome == DONE and began >= 0:
            mine.completed += 1
            mine.held_us += ended - began
            mine.units += costs.extend * (prompt - max(0, cached)) + costs.output * output
    return wants, ttfts


def _wanted(wants: _Wants, count: int, window_us: int) -> float:
    """Return the slots that a client would fill if none of its requests waited.

    A closed loop of ``count`` sessions: all of them, but for the share of the time that it pauses between
    requests. Its pauses are what its sessions' time has besides open requests. A client that sends by the
    clock (``count`` 0): by Little's law, its rate of arrivals times the time that a request holds a slot.
    """
    if window_us <= 0:
        return float(count)
    if not count:
        held = wants.held_us / wants.completed if wants.completed else 0.0
        return wants.arrived * held / window_us
    if not wants.completed:
        return float(count)
    paused = max(0.0, count * window_us - wants.open_us)
    return count * wants.held_us / (wants.held_us + paused)


def _service(run: Run, start: int, until: int) -> list[float] | None:
    """Return the service of each client between the samples next to the window's ends."""
    interval = max(1, run.series.interval_us)
    first, last = max(0, start // interval - 1), until // interval - 1
    if last <= first or any(len(column) <= last for column in run.series.service):
        return None
    return [column[last] - column[first] for column in run.series.service]


def _shares(amounts: Sequence[float]) -> list[float | None]:
    whole = sum(amounts)
    return [amount / whole if whole > 0 else None for amount in amounts]


def _waiting(ordered_us: Sequence[int]) -> dict[str, float | None]:
    if not ordered_us:
        return dict.fromkeys(("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms"))
    found = (statistics.fmean(ordered_us), percentile(ordered_us, 50), percentile(ordered_us, 99))
    names = ("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms")
    return {name: round(value / 1000, 4) for name, value in zip(names, found, strict=True)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
