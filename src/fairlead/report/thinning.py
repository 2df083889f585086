"""Series cut down to what a plot can show."""

from collections.abc import Sequence
from typing import Any

from fairlead.report.run import Series

POINTS = 600
TOTAL = 60_000
"""Most points of all clients together: a thousand clients get 60 points each."""


def thin(series: Series, clients: Sequence[str]) -> dict[str, Any]:
    """Return every series with at most 600 points, the last sample kept, as JSON.

    ``service``, ``demand`` (service units so far) and ``queued``: a list a client, in the order of the
    result's clients, sampled at ``client_times_s``. ``running``, ``waiting``, ``kv_used`` (share) and
    ``prefilled`` (tokens so far): a list a worker, sampled at ``worker_times_s``.
    """
    per_client = max(2, min(POINTS, TOTAL // max(1, len(clients))))
    per_worker = max(2, min(POINTS, TOTAL // max(1, len(series.running))))
    by_client = _kept(series.service, per_client)
    by_worker = _kept(series.running, per_worker)
    second = series.interval_us / 1e6
    return {
        "interval_s": second,
        "client_times_s": [round((i + 1) * second, 3) for i in by_client],
        "service": [[round(column[i], 1) for i in by_client] for column in series.service],
        "demand": [[round(column[i], 1) for i in by_client] for column in series.demand],
        "queued": [[column[i] for i in by_client] for column in series.queued],
        "worker_times_s": [round((i + 1) * second, 3) for i in by_worker],
        "running": [[column[i] for i in by_worker] for column in series.running],
        "waiting": [[column[i] for i in by_worker] for column in series.waiting],
        "kv_used": [[round(column[i], 4) for i in by_worker] for column in series.kv_used],
        "prefilled": [[column[i] for i in by_worker] for column in series.prefilled],
    }


def _kept(columns: Sequence[Sequence[float]], points: int) -> list[int]:
    """Return which samples to keep: evenly spaced, counted back from the last."""
    samples = len(columns[0]) if columns else 0
    step = max(1, -(-samples // points))
    return list(range((samples - 1) % step, samples, step))
