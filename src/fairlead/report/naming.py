"""What runs are called in a report: by what tells them apart, and by whether they were measured."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from fairlead.report.results import Result

LIVE = "live endpoint"
TOPOLOGIES = {"gateway": "the gateway holds the queue", "engine": "engines order their own queues"}
_ASKED = ("url", "model", "prompt_form", "exact_lengths", "speed", "timeout_s", "max_concurrency")
"""Settings of a replay that shape it; the others say how it went."""


def live(result: Result) -> bool:
    """Return whether the result was measured at a live endpoint."""
    return bool(result["kind"] == "replay")


def setup(result: Result) -> tuple[str, int, str]:
    """Return what served: engine, how many, and who holds the queue."""
    return result["engine"], result["workers"], result["topology"]


def where(topology: str) -> str:
    """Return in words who holds the queue."""
    return TOPOLOGIES.get(topology, topology)


def policy_names(runs: Sequence[Result]) -> list[str]:
    """Name each run by what tells policies apart: routing, ordering, or both; then settings that differ.

    Simulations are called so where they stand beside something measured.
    """
    measured = [i for i, run in enumerate(runs) if live(run)]
    simulated = [i for i, run in enumerate(runs) if not live(run)]
    names = [""] * len(runs)
    for i, name in zip(simulated, _simulated([runs[i] for i in simulated]), strict=True):
        names[i] = f"{name}, simulated" if measured else name
    for i, name in zip(measured, _measured([runs[i] for i in measured]), strict=True):
        names[i] = name
    return names


def _simulated(runs: Sequence[Result]) -> list[str]:
    routes, orders = {r["policy"] for r in runs}, {r["order"] for r in runs}
    names = [
        r["policy"] if len(orders) == 1 and len(routes) > 1
        else r["order"] if len(routes) == 1 and len(orders) > 1
        else f"{r['policy']} + {r['order']}"
        for r in runs
    ]  # fmt: skip
    setups = [(f"{count} workers", engine, where(held)) for engine, count, held in map(setup, runs)]
    differ = [len(set(column)) > 1 for column in zip(*setups, strict=True)]
    for i, words in enumerate(setups):
        names[i] = ", ".join([names[i], *itertools.compress(words, differ)])
    return _told_apart(names, runs, lambda run: run["settings"])


def _measured(runs: Sequence[Result]) -> list[str]:
    """Name replays by the policies that they were told serve there; repeated ones are numbered."""
    names = []
    for run in runs:
        told = [name for name in (run["policy"], run["order"]) if name != "live"]
        names.append(f"{' + '.join(told)}, measured" if told else LIVE)
    names = _told_apart(names, runs, lambda run: {k: run["settings"].get(k) for k in _ASKED})
    seen: dict[tuple[Any, ...], int] = defaultdict(int)
    for i, run in enumerate(runs):
        key = names[i], run["load"], run["seed"]
        seen[key] += 1
        if seen[key] > 1:
            names[i] += f", run {seen[key]}"
    return names


def _told_apart(
    names: Sequence[str], runs: Sequence[Result], settings: Callable[[Result], Result]
) -> list[str]:
    """Return names with the settings that differ between runs of the same name, load and seed."""
    same: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, (name, run) in enumerate(zip(names, runs, strict=True)):
        same[name, run["load"], run["seed"]].append(i)
    telling = {key for places in same.values() for key in _differing([settings(runs[i]) for i in places])}
    named = []
    for name, run in zip(names, runs, strict=True):
        own = settings(run)
        named.append(", ".join([name, *(f"{key}={own[key]}" for key in sorted(telling) if key in own)]))
    return named


def _differing(settings: Sequence[Result]) -> set[str]:
    keys = {key for one in settings for key in one}
    return {key for key in keys if len({repr(one.get(key)) for one in settings}) > 1}
