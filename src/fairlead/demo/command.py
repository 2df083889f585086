"""``fairlead demo``: the same traffic under three schedulers, side by side."""

import argparse
import asyncio
import io
import json
import re
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import uvloop
from rich.console import Console

from fairlead.config import Config
from fairlead.core.ordering import ORDERINGS
from fairlead.core.registry import parse_spec
from fairlead.core.routing import POLICIES
from fairlead.demo import processes
from fairlead.demo.clients import Traffic
from fairlead.demo.figures import Phase
from fairlead.demo.live import View
from fairlead.demo.summary import summary, verdict
from fairlead.demo.workload import Planned, plan


class Scheduler(NamedTuple):
    """One phase's policies."""

    title: str
    order: str
    policy: str


DEFAULTS = Config()
SCHEDULERS = (
    Scheduler("arrival order", "fcfs", "least_requests"),
    Scheduler("DLPM and D2LPM", "dlpm:scope=worker", "d2lpm"),
    Scheduler("fairlead's default", DEFAULTS.order, DEFAULTS.policy),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--seconds",
        type=float,
        default=16.0,
        help="seconds of traffic in each of the three phases (default %(default)g)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the traffic (default %(default)s)")
    parser.add_argument(
        "--order",
        metavar="POLICY",
        help=f"compare fcfs + least_requests with this ordering only (default: {DEFAULTS.order})",
    )
    parser.add_argument(
        "--policy", metavar="POLICY", help=f"and with this routing policy (default: {DEFAULTS.policy})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the summary to FILE as a picture")
    parser.add_argument(
        "--plain", action="store_true", help="no live table, as when the output is no terminal"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo. Returns 0 when all phases ran, 1 when a part did not start, 130 on Ctrl-C."""
    if not 1 <= args.seconds <= 600:
        print("fairlead demo: --seconds takes 1 to 600", file=sys.stderr)
        return 2
    schedulers = _schedulers(args.order, args.policy)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    try:
        phases = uvloop.run(_demo(args, schedulers, console))
    except processes.DemoError as error:
        print(f"fairlead demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; engines and gateway are stopped", file=sys.stderr)
        return 130
    console.print(summary(phases))
    console.print(verdict(phases))
    if args.svg is not None:
        _draw(phases, args.svg)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"phases": [phase.as_json() for phase in phases]}, indent=2) + "\n")
    return 0


def _draw(phases: list[Phase], path: Path) -> None:
    """Write the summary as an SVG picture."""
    paper = Console(record=True, width=114, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    paper.print(summary(phases))
    paper.print(verdict(phases))
    path.parent.mkdir(parents=True, exist_ok=True)
    svg = paper.export_svg(title="fairlead demo")
    # rich has its font fetched from the network; any monospaced font at hand will do
    path.write_text(re.sub(r"@font-face\s*{[^}]*}\s*", "", svg).replace("Fira Code", "DejaVu Sans Mono"))


def _schedulers(order: str | None, policy: str | None) -> tuple[Scheduler, ...]:
    """Return the phases: the three, or the first and what was asked for. PolicyError on unknown names."""
    if order is None and policy is None:
        return SCHEDULERS
    chosen = Scheduler("as asked for", order or DEFAULTS.order, policy or DEFAULTS.policy)
    ORDERINGS.resolve(*parse_spec(chosen.order))
    POLICIES.resolve(*parse_spec(chosen.policy))
    return (SCHEDULERS[0], chosen)


async def _demo(args: argparse.Namespace, schedulers: tuple[Scheduler, ...], console: Console) -> list[Phase]:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, task.cancel)
    planned = plan(args.seconds, args.seed)
    phases: list[Phase] = []
    with processes.workspace() as folder:
        for number, scheduler in enumerate(schedulers, 1):
            policies = f"{scheduler.order} + {scheduler.policy}"
            place = f"{number}/{len(schedulers)}"
            live = View(console, place, scheduler.title, policies, args.plain)
            phases.append(await _phase(scheduler, planned, args.seed, args.seconds, Path(folder), live))
    return phases


async def _phase(
    scheduler: Scheduler, planned: list[Planned], seed: int, seconds: float, folder: Path, live: View
) -> Phase:
    policies = ["--order", scheduler.order, "--policy", scheduler.policy]
    async with (
        processes.engines(folder) as workers,
        processes.gateway(folder, workers, policies, processes.keys()) as url,
    ):
        traffic = Traffic(url, planned, processes.keys(), seed)
        async with live.watch(url, traffic, seconds):
            elapsed = await traffic.run(seconds)
    return Phase(scheduler.title, scheduler.order, scheduler.policy, traffic.seen, elapsed)
