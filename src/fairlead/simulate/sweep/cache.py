"""Results by content: the same cell, run by the same code, is not run twice.

A result's name is a hash of everything that it follows from: the workload's options and its source's
bytes, the sample, the load and the maximum that it is a share of, all settings with the policies'
parameters spelled out, the engine's profile, the SLOs, and the source of every module that took part: of
fairlead, and of packages whose policies it names.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fairlead.core.ordering import ORDERINGS
from fairlead.core.registry import Registry, parse_spec
from fairlead.core.routing import POLICIES
from fairlead.report.results import ResultError, load, save
from fairlead.simulate.capacity import Capacity
from fairlead.simulate.code import hash_of, hash_of_package
from fairlead.simulate.settings import Settings
from fairlead.simulate.sweep import cell as sweep_cell
from fairlead.simulate.sweep.cell import Cell, Maximum
from fairlead.trace.files import content_hash
from fairlead.trace.workload import Workload

_NOT_OF_THE_FLEET = (
    "policy", "order", "seed", "faults", "topology", "queue_timeout_us", "cancel_share", "client_timeout_us",
    "interval_us", "until_us", "max_queued", "stale_us", "exact_cache", "round_trip_us",
)  # fmt: skip
"""Settings that do not change the maximum load. If one is missing here, the maximum is measured once more."""


def code_hash() -> str:
    """Return a hash of all that running a cell imports."""
    return hash_of(sweep_cell.__name__)


class Keys:
    """Names of results. One object hashes a source once."""

    def __init__(self, slos: Mapping[str, float] | None) -> None:
        self._slos = slos
        self._sources: dict[str, str] = {}

    def of(self, cell: Cell, capacity: Capacity | None) -> str:
        """Return the name of a cell's result. Raises ``PolicyError`` or ValueError for settings at fault."""
        cell.settings.check()
        cell.sample.check()
        return _hashed({
            "code": code_hash(),
            "packages": _packages(cell.settings),
            "workload": self._workload(cell.workload),
            "sample": asdict(cell.sample),
            "load": cell.load,
            "capacity": capacity,
            "settings": cell.settings.as_dict(),
            "profile": repr(cell.settings.profile()),
            "slos": self._slos,
        })  # fmt: skip

    def of_maximum(self, work: Maximum) -> str:
        """Return the name of a maximum: of workload and fleet, without what is not looked at.

        Policies are not: the maximum is measured with fairlead's own (``capacity.REFERENCE``).
        """
        plain = Settings()
        fleet = replace(work.settings, **{name: getattr(plain, name) for name in _NOT_OF_THE_FLEET})
        return _hashed({
            "code": code_hash(),
            "workload": self._workload(work.workload),
            "fleet": asdict(fleet),
            "profile": repr(fleet.profile()),
        })  # fmt: skip

    def _workload(self, workload: Workload) -> dict[str, Any]:
        found = asdict(workload)
        path = Path(workload.source)
        if path.exists():  # what is in it counts, and its name, which results show; not where it lies
            if workload.source not in self._sources:
                self._sources[workload.source] = content_hash(path)
            found |= {"source": path.name, "content": self._sources[workload.source]}
        return found


def _packages(settings: Settings) -> dict[str, str]:
    """Return a hash of the code of each policy that another package offers: ``code_hash`` has ours only."""
    found = {}
    specs: tuple[tuple[Registry[Any], str], ...] = ((POLICIES, settings.policy), (ORDERINGS, settings.order))
    for registry, spec in specs:
        name, _ = parse_spec(spec)
        if registry.package(name):
            found[f"{registry.kind} {name}"] = hash_of_package(registry.get(name).__module__)
    return found


def _hashed(told: Mapping[str, Any]) -> str:
    text = json.dumps(told, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Store:
    """A folder of results by name, each complete or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return where the result called ``key`` is or would be."""
        return self.folder / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """Return a result; None if it is not there, or was written by another version."""
        if not self.path(key).is_file():
            return None
        try:
            return load(self.path(key))
        except ResultError:
            return None

    def put(self, key: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a result and return it as ``get`` will."""
        # Two sweeps may run the same cell: each writes its own file, and one of them wins.
        unfinished = self.folder / f".{key}.{os.getpid()}"
        save(unfinished, result)
        unfinished.replace(self.path(key))
        return load(self.path(key))

    def maximum(self, key: str) -> Capacity | None:
        """Return a maximum that was measured before."""
        try:
            return Capacity(**json.loads(self._maximum(key).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def put_maximum(self, key: str, capacity: Capacity) -> None:
        """Keep a maximum."""
        path = self._maximum(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{key}.{os.getpid()}")
        unfinished.write_text(json.dumps(capacity._asdict()))
        unfinished.replace(path)

    def _maximum(self, key: str) -> Path:
        return self.folder / "maximum" / f"{key}.json"
