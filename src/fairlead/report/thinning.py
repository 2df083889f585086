"""Series cut down to what a plot can show."""

from collections.abc import Sequence
from typing import Any

from fairlead.report.run import Series

POINTS = 600
TOTAL = 60_000
"""Most points of all clients together: a thousand clients get 60 points each."""

Columns = Sequence[Sequence[float]]


def thin(series: Series, clients: Sequence[str]) -> dict[str, Any]:
    """Return every series with at most 600 points, the last sample kept, as JSON.

    ``service``, ``demand`` (service units so far) and ``queued``: a list a client, in the order of the
    result's clients, sampled at ``client_times_s``. ``running``, ``waiting``, ``kv_used`` (share) and
    ``prefilled`` (tokens so far): a list a worker, sampled at ``worker_times_s``. A series that was not
    sampled, as from an engine that does not tell, is an empty list.
    """
    by_client = _kept(series.service, len(clients))
    workers = (series.running, series.waiting, series.kv_used, series.prefilled)
    sampled = next((columns for columns in workers if columns and columns[0]), series.running)
    by_worker = _kept(sampled, len(series.running))
    second = series.interval_us / 1e6
    return {
        "interval_s": second,
        "client_times_s": [round((i + 1) * second, 3) for i in by_client],
        "service": _picked(series.service, by_client, 1),
        "demand": _picked(series.demand, by_client, 1),
        "queued": _picked(series.queued, by_client),
        "worker_times_s": [round((i + 1) * second, 3) for i in by_worker],
        "running": _picked(series.running, by_worker),
        "waiting": _picked(series.waiting, by_worker),
        "kv_used": _picked(series.kv_used, by_worker, 4),
        "prefilled": _picked(series.prefilled, by_worker),
    }


def _kept(columns: Columns, count: int) -> list[int]:
    """Return which samples to keep: evenly spaced, counted back from the last."""
    samples = len(columns[0]) if columns else 0
    points = max(2, min(POINTS, TOTAL // max(1, count)))
    step = max(1, -(-samples // points))
    return list(range((samples - 1) % step, samples, step))


def _picked(columns: Columns, places: Sequence[int], decimals: int | None = None) -> list[list[float]]:
    if not places or any(len(column) <= places[-1] for column in columns):
        return []
    return [[round(column[i], decimals) for i in places] for column in columns]
