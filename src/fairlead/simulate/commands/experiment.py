"""``fairlead experiment``: E1 to E7, the papers' claims and ours, each with one command."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairlead.report.terminal import show_table
from fairlead.simulate.capacity import cache_folder
from fairlead.simulate.commands.watch import Watch
from fairlead.simulate.experiments import EXPERIMENTS
from fairlead.simulate.experiments.base import Experiment, Options
from fairlead.simulate.experiments.document import document, markdown, page, save
from fairlead.simulate.experiments.figures import entry
from fairlead.simulate.sweep.run import CellsError, run_cells

SEEDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Run an experiment of docs/experiments.md: what a paper reports, what the simulator gives, and why"
        " they differ. Cells are kept by content: an interrupted experiment goes on where it was."
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="EXPERIMENT", help=f"{', '.join(EXPERIMENTS)} (default: all)")
    add(
        "--quick", action="store_true", help="a small form, seconds each: fewer workloads, requests and seeds"
    )
    add("--seeds", type=int, metavar="N", help=f"seeds 1 to N (default: {SEEDS}; 1 with --quick)")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        default=None,
        help="folder with traces/ (default: FAIRLEAD_DATA); without it recorded traces are left out",
    )
    add("--out", type=Path, metavar="DIR", help="write the results there, as e1.json and so on")
    add("--html", type=Path, metavar="FILE", help="write tables and charts as one HTML file")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    add("--list", action="store_true", help="say what would be simulated, and stop")
    add("--processes", type=int, metavar="N", help="simulations at once (default: one a core)")
    add("--ray", default="", metavar="ADDRESS", help="run on this Ray cluster instead")
    add("--results", type=Path, metavar="DIR", help="where cells are kept (default: fairlead's cache)")
    add("--fresh", action="store_true", help="simulate again what is kept")


def run(args: argparse.Namespace) -> int:
    """Run the experiments. Returns 0, 1 if a cell failed, 2 for wrong options, 130 when interrupted."""
    console = Console()
    try:
        options = _options(args)
        chosen = [_named(name) for name in args.names or EXPERIMENTS]
        if args.list:
            for experiment in chosen:
                _list(experiment, options, console)
            return 0
        told = []
        for experiment in chosen:
            told.append((experiment, _run(experiment, options, args)))
            _show(*told[-1], console)
            _write(told, args)
    except CellsError as error:
        print(f"fairlead experiment: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"fairlead experiment: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _named(name: str) -> Experiment:
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment '{name}' (there are: {', '.join(EXPERIMENTS)})")
    return EXPERIMENTS[name]


def _options(args: argparse.Namespace) -> Options:
    seeds = args.seeds if args.seeds is not None else 1 if args.quick else SEEDS
    if seeds < 1:
        raise ValueError(f"--seeds: at least 1, not {seeds}")
    data = args.data or (Path(os.environ["FAIRLEAD_DATA"]) if os.environ.get("FAIRLEAD_DATA") else None)
    if args.data and not args.data.is_dir():
        raise ValueError(f"--data: there is no folder {args.data}")
    return Options(args.quick, tuple(range(1, seeds + 1)), data, cache_folder() / "experiments")


def _list(experiment: Experiment, options: Options, console: Console) -> None:
    """Say how many cells there are, by part; a later stage may choose others of the same number."""
    counts: dict[str, int] = {}
    for stage in experiment.stages:
        for planned in stage(options, ()):
            counts[planned.part] = counts.get(planned.part, 0) + 1
    console.print(f"{experiment.name}  {experiment.title} ({experiment.source})", highlight=False)
    for part, count in counts.items():
        console.print(f"  {count:5} cells  {part}", highlight=False)
    for said in experiment.missing(options):
        console.print(f"  {said}", style="yellow", highlight=False)


def _run(experiment: Experiment, options: Options, args: argparse.Namespace) -> dict[str, Any]:
    """Run an experiment's stages, one after the other."""
    entries: list[dict[str, Any]] = []
    errors = Console(stderr=True)
    for number, stage in enumerate(experiment.stages, start=1):
        cells = stage(options, entries)
        if not cells:
            continue
        told = f"{experiment.name}, stage {number} of {len(experiment.stages)}"
        with Watch(errors, told) as bar:
            results = run_cells(
                [planned.cell for planned in cells],
                processes=args.processes,
                folder=args.results,
                ray_address=args.ray,
                progress=bar.show,
                fresh=args.fresh,
            )
        entries += [entry(p, r, experiment.own(r)) for p, r in zip(cells, results, strict=True)]
    return document(experiment, options, entries)


def _write(told: Sequence[tuple[Experiment, Mapping[str, Any]]], args: argparse.Namespace) -> None:
    """Write what there is so far: experiments take minutes, and one may be interrupted."""
    if args.out:
        experiment, one = told[-1]
        save(args.out / f"{experiment.name}.json", one)
    if args.markdown:
        _text(args.markdown, "\n".join(markdown(experiment, one) for experiment, one in told))
    if args.html:
        _text(args.html, page(told))


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _show(experiment: Experiment, told: Mapping[str, Any], console: Console) -> None:
    console.print(f"\n{experiment.name}: {experiment.title}", style="bold", highlight=False)
    console.print(f"The paper reports: {experiment.paper}\n", highlight=False)
    for table in experiment.tables(told["cells"]):
        show_table(table, console)
    for said in told["seen"]:
        console.print(f"- {said}", highlight=False)
    for said in told["missing"]:
        console.print(f"- {said}", style="yellow", highlight=False)
    if experiment.why:
        console.print(f"Why: {experiment.why}", highlight=False)
