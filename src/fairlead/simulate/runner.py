"""One simulation from a workload and settings to the ``Run`` that reports are made from."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fairlead.report.run import Run
from fairlead.simulate.bounds import Sizes, bound
from fairlead.simulate.capacity import LONGEST, LONGEST_GENERATED, Capacity, at_load, measure
from fairlead.simulate.settings import Settings
from fairlead.simulate.world import World
from fairlead.trace.model import Trace
from fairlead.trace.reachable import reach
from fairlead.trace.workload import Workload

REACH_LIMIT = 50_000
"""Requests that the reachable hit rate is computed on: it remembers every block."""


def prepare(
    workload: Workload,
    settings: Settings,
    load: float,
    *,
    keep: bool = True,
    progress: Callable[[str], None] | None = None,
) -> tuple[Trace, Capacity | None]:
    """Open a workload, space its arrivals for ``load`` (0: as they are), and add its attacker and loops.

    The load is the share of the measured maximum that the workload without its attacker makes up.
    """
    trace = workload.open()
    capacity = None
    if load:
        longest = LONGEST if Path(workload.source).exists() else LONGEST_GENERATED
        capacity = measure(trace, settings, longest=longest, keep=keep, progress=progress)
        trace = at_load(trace, capacity, load)
    return workload.looped(workload.attacked(trace)), capacity


def simulate(
    trace: Trace,
    settings: Settings,
    *,
    load: float = 0.0,
    capacity: Capacity | None = None,
    progress: Callable[[int, int], None] | None = None,
    reachable: float | None = None,
) -> Run:
    """Run one simulation. ``load`` and ``capacity`` are what ``trace`` was prepared for, to be recorded.

    ``reachable`` is the hit rate of an infinite cache, if known already. Raises ValueError for settings
    that cannot be.
    """
    world = World(trace, settings)
    with _no_collections():
        began = time.perf_counter()
        run = world.run(progress)
        run.elapsed_s = time.perf_counter() - began
    run.load = load
    run.settings |= {"labels": list(trace.labels), "identity": trace.identity}
    if capacity is not None:
        run.settings |= {"capacity_requests_per_s": capacity.requests_per_s}
    if reachable is None:
        found = reach(trace, REACH_LIMIT)
        reachable = found.hit_rate
        if not found.whole:
            run.labels = [*run.labels, f"reachable hit rate of the first {found.requests:,} requests"]
    run.reachable_hit_rate = reachable
    if world.clients.abandoned:
        run.labels = [
            *run.labels,
            f"{world.clients.abandoned} turns never came: the one before them had no answer",
        ]
    passes = world.clients.loops.passes
    if passes > 1:
        run.labels = [
            *run.labels,
            f"closed loops took the workload's requests up to {passes:,} times, with other keys each time",
        ]
    requests = run.requests
    sizes = Sizes(
        longest_prompt=max(requests.prompt, default=0),
        longest_output=max(requests.output, default=0),
        max_num_seqs=world.workers.max_num_seqs,
        kv_tokens=world.workers.kv_tokens,
        least_weight=min(run.weights, default=1.0),
    )
    value, text = bound(settings, sizes)
    run.fairness = replace(run.fairness, bound=value, bound_text=text)
    return run


@contextmanager
def _no_collections() -> Iterator[None]:
    """Switch the collector of reference cycles off: a simulation makes many objects and leaves no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
