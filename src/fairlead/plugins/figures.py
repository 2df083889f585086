"""Figures of every client, live, in a file that others can read.

An engine's scheduler runs in a process of its own, whose Prometheus registry nobody scrapes; hence a file.
It is rewritten as a whole and renamed into place, so that a reader never sees half of it.
"""

import json
import logging
import os
import threading
import time
from math import isfinite
from pathlib import Path

from fairlead.core.model import ClientId, Costs
from fairlead.core.ordering.base import Ordering
from fairlead.plugins.settings import MOST_CLIENTS, PluginSettings, SettingsError

KEPT_CLIENTS = MOST_CLIENTS
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
        self.ignored = 0
        """Figures of the engine that could not be true, and were not used."""
        self._scan_at = limit
        """How many clients there are when idle ones are looked for next."""

    def of(self, client: ClientId) -> ClientFigures:
        """Return the client's figures, all 0 on first sight."""
        found = self.clients.get(client)
        if found is None:
            if len(self.clients) >= self._scan_at:
                self._forget()
            found = self.clients[client] = ClientFigures()
        return found

    def _forget(self) -> None:
        """Add up clients without a request here; half of all at most, so that it is done rarely.

        Where most clients have requests, the next look is at half as many clients again: a look at every
        new client would let many names slow an engine down.
        """
        idle = [
            client
            for client, figures in self.clients.items()
            if not (figures.waiting or figures.running or figures.preempted)
        ]
        for client in idle[: max(1, len(self.clients) // 2)]:
            self.others.add(self.clients.pop(client))
        self._scan_at = max(self._limit, len(self.clients) * 3 // 2)

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
            credit = ordering.credit(0, client)
            rows[client] = figures.as_dict() | {
                "service": self.service(figures),
                "credit": credit if isfinite(credit) else 0.0,  # JSON has no infinity
                "weight": settings.weights.get(client, 1.0),
            }
        for _, figures in served[settings.metrics_clients :]:
            others.add(figures)
        return {
            "time": time.time(),
            "order": ordering.name,
            "clients": rows,
            "others": others.as_dict(),
            "ignored": self.ignored,
        }


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
        except (OSError, ValueError) as error:  # better now than every second
            reason = error.strerror if isinstance(error, OSError) else error
            raise SettingsError(
                f"setting 'metrics_file': cannot write {path!r}: {reason}. Name a file in a folder that"
                " exists and that the engine may write to."
            ) from None
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
        try:
            self.write()
        except OSError as error:  # an engine's end must not fail for it
            _log.warning("fairlead: cannot write %s: %s", self._path, error)
