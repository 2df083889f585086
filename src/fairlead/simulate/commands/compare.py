"""``fairlead compare``: policies side by side on the same requests, over loads and seeds."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from fairlead.report.html import page
from fairlead.report.markdown import document
from fairlead.report.metrics import check_slos
from fairlead.report.results import save
from fairlead.report.terminal import show_comparison, show_run
from fairlead.simulate.commands.arguments import (
    GENERATOR_LOAD,
    add_fleet_arguments,
    check_has_load,
    default_load,
    settings_from,
)
from fairlead.simulate.commands.compare_arguments import (
    DEFAULT_PAIRS,
    GAPS,
    NONE,
    WINDOWS,
    loads_from,
    pairs_from,
    samples_from,
    seeds_from,
)
from fairlead.simulate.commands.watch import Watch
from fairlead.simulate.sweep.run import Cell, CellsError, results_folder, run_cells
from fairlead.trace.workload import add_workload_arguments, workload_from

Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Simulate policies x loads x seeds on the same requests and tell the differences with confidence"
        " intervals. Results are kept by content: an interrupted comparison goes on where it was."
        " docs/compare.md says what a seed means."
    )
    add = parser.add_argument
    add(
        "--pairs",
        default="",
        metavar="ORDER+POLICY,...",
        help=f"pairs to compare; the first is the baseline (default: {DEFAULT_PAIRS})",
    )
    add(
        "--policies",
        default="",
        metavar="POLICY,...",
        help="instead of --pairs, with --orders: every combination of routing policies:"
        f" {', '.join(POLICIES.names())}; with parameters as in linear:load=2,prefix=1,lmetric",
    )
    add(
        "--orders",
        default="",
        metavar="POLICY,...",
        help=f"ordering policies: {', '.join(ORDERINGS.names())}",
    )
    add("--baseline", default="", metavar="PAIR", help="compare with this pair, such as dlpm+d2lpm")
    add(
        "--loads",
        default="",
        metavar="SHARE,...",
        help="shares of the measured maximum that arrive; 0 takes arrivals as they are"
        f" (default: {GENERATOR_LOAD:g} for generators, 0 for traces)",
    )
    add("--seeds", default="5", metavar="N", help="how many (5), from-to (6-9) or which (1,4,7) (default: 5)")
    add(
        "--sample",
        choices=(GAPS, WINDOWS, NONE),
        help="what a seed draws of a trace: other gaps between arrivals, one of as many windows in time as"
        f" there are seeds, or nothing (default: {GAPS} for traces; generators make all of it from the seed)",
    )
    add("--slos", default="", metavar="NAME=MS,...", help="limits on ttft, tpot and e2el, in milliseconds")
    add("--processes", type=int, metavar="N", help="simulations at once (default: one a core)")
    add("--ray", default="", metavar="ADDRESS", help="run on this Ray cluster instead")
    add("--results", type=Path, metavar="DIR", help=f"where results are kept (default: {results_folder()})")
    add("--fresh", action="store_true", help="simulate again what is kept")
    add("--json", type=Path, metavar="DIR", help="write every result there, for `fairlead report DIR`")
    add("--html", type=Path, metavar="FILE", help="write the report as one HTML file")
    add("--markdown", type=Path, metavar="FILE", help="write verdict and tables as Markdown")
    add_workload_arguments(parser)
    add_fleet_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compare. Returns 0, 1 if a cell failed, 2 for wrong options, 130 when interrupted."""
    errors = Console(stderr=True)
    watch = Watch(errors)
    failures: Sequence[tuple[str, str]] = ()
    try:
        cells = cells_from(args)
        limits = slos_from(args.slos)
        if Path(args.workload).is_file():  # a folder or a generator says it in its results
            understood = cells[0].workload.open().understood
            errors.print(understood, style="dim", markup=False, highlight=False)
        try:
            with watch:
                found: Sequence[Result | None] = run_cells(
                    cells,
                    processes=args.processes,
                    folder=args.results,
                    ray_address=args.ray,
                    progress=watch.show,
                    slos=limits,
                    fresh=args.fresh,
                )
        except CellsError as error:
            failures, found = error.failures, error.results
        results = [result for result in found if result is not None]
        watch.sum_up()
        if results:
            _write(args, cells, found)
            _show(results, seeds_mean(cells))
    except (ValueError, OSError) as error:  # workloads, policies and flags at fault; a full disk
        print(f"fairlead compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        watch.sum_up()
        errors.print("stopped; the same command goes on from there", style="yellow", highlight=False)
        return 130
    _tell(failures)
    return 1 if failures else 0


def cells_from(args: argparse.Namespace) -> list[Cell]:
    """Return the cells that the flags ask for, seed by seed within loads. Raises ValueError."""
    pairs = pairs_from(args.pairs, args.policies, args.orders, args.baseline)
    seeds = seeds_from(args.seeds)
    workload = workload_from(args, seeds[0])
    loads = loads_from(args.loads, default_load(workload))
    for load in loads:
        check_has_load("--loads", load, workload)
    samples = samples_from(args.sample or "", args.workload, seeds)
    found = []
    for load in loads:
        for pair in pairs:
            for seed, sample in zip(seeds, samples, strict=True):
                settings = settings_from(args, policy=pair.policy, order=pair.order, seed=seed)
                workload = workload_from(args, seed)
                label = f"{pair}, load {load:g}, seed {seed}"
                found.append(Cell(workload, settings, load, label, sample))
    return found


def slos_from(told: str) -> dict[str, float] | None:
    """Return the limits by name, None for the usual ones. Raises ValueError."""
    limits = {}
    for part in filter(None, told.split(",")):
        name, _, value = part.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"--slos: '{part}' is not of the form ttft=2000, in milliseconds") from None
    return dict(check_slos(limits)) if limits else None


def seeds_mean(cells: Sequence[Cell]) -> str:
    """Say what differs between seeds, and so what the confidence intervals speak of."""
    workload, sample = cells[0].workload, cells[0].sample
    if len({cell.settings.seed for cell in cells}) == 1:
        return ""
    if sample.windows > 1:
        return (
            f"A seed is one of {sample.windows} consecutive windows of the trace, each begun with empty"
            " caches: intervals speak of other times of the same traffic."
        )
    if sample.gaps:
        return (
            "A seed keeps the trace's requests and their order and draws the gaps between arrivals anew from"
            " its own: intervals speak of the chance of arrivals, not of other traffic."
        )
    if Path(workload.source).exists():
        return (
            "A seed changes nothing in the trace but clients, attacker and the policies' own draws, as far as"
            " there are any: intervals speak of no more than that."
        )
    return "A seed makes the whole workload anew: intervals speak of other draws of the same generator."


def _tell(failures: Sequence[tuple[str, str]]) -> None:
    """Print every fault once: what is wrong with a workload is wrong in all its cells."""
    names: dict[str, list[str]] = {}
    for name, text in failures:
        names.setdefault(text, []).append(name)
    for text, where in names.items():
        more = f", and {len(where) - 1} more cells" if len(where) > 1 else ""
        print(f"fairlead compare: {where[0]}{more}: {text}", file=sys.stderr)


def _write(args: argparse.Namespace, cells: Sequence[Cell], found: Sequence[Result | None]) -> None:
    pairs = [(cell, result) for cell, result in zip(cells, found, strict=True) if result is not None]
    results = [result for _, result in pairs]
    if args.json:
        for place, (cell, result) in enumerate(pairs):
            name = re.sub(r"[^\w.=+-]+", "-", cell.label)
            save(args.json / f"{place:04}-{name}.json", result)
    if args.html:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        args.html.write_text(page(results, title=f"Policies on {cells[0].workload.source}"), encoding="utf-8")
    if args.markdown:
        text = document(results)
        if note := seeds_mean(cells):
            text += f"\n{note}\n"
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(text, encoding="utf-8")


def _show(results: Sequence[Result], note: str) -> None:
    console = Console()
    if len(results) == 1:
        show_run(results[0], console)
        return
    show_comparison(results, console)
    if note:
        console.print(note, style="dim", highlight=False)
