"""Figures of every client, live, in a file that others can read.

An engine's scheduler runs in a process of its own, whose Prometheus registry nobody scrapes; hence a file.
It is rewritten as a whole and renamed into place, so that a reader never sees half of it.
"""

import json
import logging
import os
import threading
import time
from pathlib import Path

from fairlead.core.model import ClientId, Costs
from fairlead.core.ordering.base import Ordering
from fairlead.plugins.settings import PluginSettings, SettingsError

KEPT_CLIENTS = 10_000
"""Clients with figures in memory; beyond it those without a request in the engine are added up."""

_COUNTS = (
    *("waiting", "running", "preempted"),  # now
    *("admitted", "ended", "preemptions"),  # requests so far
    *("prompt_tokens", "cached_tokens", "extend_tokens", "output_tokens"),  # tokens so far
)
_log = logging.getLogger(__name__)


class ClientFigures:
    """Of one client: requests in the engine now, requests so far, tokens so far."""

    __slots__ = _COUNTS

    def __init__(self) -> None:
        self.waiting = 0
        """Requests that never ran."""
        self.running = 0
        self.preempted = 0
        """Requests that ran, lost their KV, and wait to be resumed."""
        self.admitted = 0
        self.ended = 0
        self.preemptions = 0
        self.prompt_tokens = 0
        """Of admitted requests."""
        self.cached_tokens = 0
        """Prompt tokens that were cached when the request was admitted."""
        self.extend_tokens = 0
        """Prompt tokens computed, some of them again after a preemption."""
        self.output_tokens = 0

    def add(self, other: "ClientFigures") -> None:
        """Add the figures of another client."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return {name: getattr(self, name) for name in _COUNTS}


class Figures:
    """The figures of all clients of one engine. ``costs`` price their service."""

    def __init__(self, costs: Costs | None = None, limit: int = KEPT_CLIENTS) -> None:
        self._costs = costs or Costs()
        self._limit = limit
        self.clients: dict[ClientId, ClientFigures] = {}
        self.others = ClientFigures()
        """Of clients that are not kept any more."""

    def of(self, client: ClientId) -> ClientFigures:
        """Return the client's figures, all 0 on first sight."""
        found = self.clients.get(client)
        if found is None:
            if len(self.clients) >= self._limit:
                self._forget()
            found = self.clients[client] = ClientFigures()
        return found

    def _forget(self) -> None:
        """Add up the clients without a request here; half of the limit at most, so that it is done rarely."""
        idle = [
            client
            for client, figures in self.clients.items()
            if not (figures.waiting or figures.running or figures.preempted)
        ]
        for client in idle[: max(1, self._limit // 2)]:
            self.others.add(self.clients.pop(client))

    def service(self, figures: ClientFigures) -> int:
        """Return the service units that were delivered: prompt tokens computed, and output tokens."""
        return self._costs.extend * figures.extend_tokens + self._costs.output * figures.output_tokens

    def snapshot(self, ordering: Ordering, settings: PluginSettings) -> dict[str, object]:
        """Return everything in the form of the file.

        May be called by another thread than the one that counts: figures can then be a step apart.
        """
        rows: dict[ClientId, dict[str, float]] = {}
        others = ClientFigures()
        others.add(self.others)
        served = sorted(self.clients.copy().items(), key=lambda pair: -self.service(pair[1]))
        for client, figures in served[: settings.metrics_clients]:
            rows[client] = figures.as_dict() | {
                "service": self.service(figures),
                "credit": ordering.credit(0, client),
                "weight": settings.weights.get(client, 1.0),
            }
        for _, figures in served[settings.metrics_clients :]:
            others.add(figures)
        return {"time": time.time(), "order": ordering.name, "clients": rows, "others": others.as_dict()}


class FiguresFile:
    """A thread that writes the figures now and then, until ``close``.

    Raises ``SettingsError`` if the file cannot be written to begin with.
    """

    def __init__(self, path: str, figures: Figures, ordering: Ordering, settings: PluginSettings) -> None:
        self._path = Path(path)
        self._figures = figures
        self._ordering = ordering
        self._settings = settings
        self._closed = threading.Event()
        try:
            self.write()
        except OSError as error:  # better now than every second
            raise SettingsError(f"setting 'metrics_file': cannot write {path}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="fairlead-figures", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failed = False
        while not self._closed.wait(self._settings.metrics_interval_secs):
            try:
                self.write()
                failed = False
            except OSError as error:
                if not failed:
                    _log.warning("fairlead: cannot write %s: %s", self._path, error)
                failed = True

    def write(self) -> None:
        """Write the figures as they are now. Raises OSError."""
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        part.write_text(json.dumps(self._figures.snapshot(self._ordering, self._settings), indent=1))
        part.replace(self._path)

    def close(self) -> None:
        """Write once more and stop."""
        self._closed.set()
        self._thread.join()
        self.write()
