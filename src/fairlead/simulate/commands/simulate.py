"""``fairlead simulate``: what a policy would do to a workload."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fairlead.core.ordering import ORDERINGS
from fairlead.core.params import PolicyError
from fairlead.core.routing import POLICIES
from fairlead.native import compiled
from fairlead.report.metrics import summarise
from fairlead.report.results import save
from fairlead.report.terminal import show_run
from fairlead.simulate.commands.arguments import (
    GENERATOR_LOAD,
    add_fleet_arguments,
    check_has_load,
    default_load,
    settings_from,
)
from fairlead.simulate.runner import prepare, simulate
from fairlead.simulate.settings import Settings
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.workload import Workload, add_workload_arguments, workload_from

LONG = 20_000
"""From this many requests on, the command says that there is a faster, compiled form."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    default = Settings()
    parser.description = (
        "Serve a workload with simulated engines: the gateway's own dispatcher in virtual time."
        " docs/simulator.md says how far to trust it."
    )
    add = parser.add_argument
    add(
        "--policy",
        default=default.policy,
        metavar="POLICY",
        help=f"routing policy: {', '.join(POLICIES.names())} (default: %(default)s)",
    )
    add(
        "--order",
        default=default.order,
        metavar="POLICY",
        help=f"ordering policy: {', '.join(ORDERINGS.names())} (default: %(default)s)",
    )
    add(
        "--load",
        type=float,
        default=None,
        help="space arrivals so that this share of the measured maximum arrives; 0 takes them as they are"
        f" (default: {GENERATOR_LOAD:g} for generators, 0 for traces)",
    )
    add("--seed", type=int, default=1, help="seed of everything random (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result, for `fairlead report`")
    add("--no-cache", action="store_true", help="measure the maximum load again, instead of reading it")
    add_workload_arguments(parser)
    add_fleet_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate. Returns 0, 2 for wrong options or a workload that cannot be used."""
    errors = Console(stderr=True)
    try:
        settings = settings_from(args, policy=args.policy, order=args.order, seed=args.seed)
        workload = workload_from(args, args.seed)
        load = _load(args.load, workload)
        with _status(errors, load) as say:
            trace, capacity = prepare(workload, settings, load, keep=not args.no_cache, progress=say)
        if trace.understood:
            errors.print(trace.understood, style="dim", markup=False, highlight=False)
        for repair in trace.repairs:
            errors.print(
                f"{repair.rule}: {repair.count:,} ({repair.example})", style="yellow", highlight=False
            )
        with _bar(errors, trace) as progress:
            found = simulate(trace, settings, load=load, capacity=capacity, progress=progress)
    except (TraceError, PolicyError, ValueError) as error:
        print(f"fairlead simulate: {error}", file=sys.stderr)
        return 2
    result = summarise(found, costs=settings.costs)
    if args.json:
        save(args.json, result)
    show_run(result, Console())
    if args.json:
        print(f"wrote {args.json}; draw it with: fairlead report {args.json} --html report.html")
    if trace.requests >= LONG and not compiled():
        errors.print("That was pure Python; compiled it takes a third of that: docs/compiled.md", style="dim")
    return 0


def _load(given: float | None, workload: Workload) -> float:
    if given is None:
        return default_load(workload)
    if not 0 <= given <= 100:
        raise ValueError(f"--load is a share of the maximum, such as 0.7, not {given:g}")
    check_has_load("--load", given, workload)
    return given


@contextmanager
def _status(console: Console, load: float) -> Iterator[Callable[[str], None]]:
    """Show what the search for the maximum load is at, on a terminal."""
    if not load:
        yield lambda _: None
        return
    with console.status("measuring the maximum load ...") as status:
        yield lambda text: status.update(f"measuring the maximum load ... {text}")


@contextmanager
def _bar(console: Console, trace: Trace) -> Iterator[Callable[[int, int], None]]:
    """Show how many requests have ended, at what rate, and how long it will take, on a terminal."""
    columns = (
        TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=trace.requests, rate="")

        def show(ended: int, now_us: int) -> None:
            speed = progress.tasks[0].speed
            rate = f"{speed:,.0f} requests/s" if speed else ""
            progress.update(task, completed=ended, rate=f"{rate}, at {now_us / 1e6:,.0f} s")

        yield show
