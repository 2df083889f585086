"""``fairlead verify``: replays a decision log and says whether the decisions are the same."""

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fairlead import __version__
from fairlead.core.params import PolicyError
from fairlead.simulate.verify import Difference, Verdict, verify
from fairlead.trace.decision_reader import LogReader
from fairlead.trace.decisions import Header, LogError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Replay a decision log (fairlead serve --decision-log FILE) through the same core and compare every"
        " decision and its reasons. Exit code 0: identical; 1: different; 2: the log cannot be replayed."
    )
    parser.add_argument("log", type=Path, metavar="LOG", help="any file of the log; rotated ones are found")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Verify. Returns 0 if identical, 1 if not, 2 if the log cannot be replayed."""
    try:
        log = LogReader(args.log)
        verdict, seconds = _replayed(log)
    except OSError as error:
        print(f"fairlead verify: cannot read {args.log}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (LogError, PolicyError) as error:
        print(f"fairlead verify: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(_facts(log, verdict, seconds), indent=2))
    else:
        print(_text(log, verdict, seconds))
    return 0 if verdict.identical else 1


def _replayed(log: LogReader) -> tuple[Verdict, float]:
    """Replay with a progress bar, if somebody is there to see it; return the seconds it took too."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.completed:,} of {task.total:,} bytes"),
        BarColumn(),
        TextColumn("{task.fields[rate]:,.0f} events/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=log.size, rate=0.0)
        began = perf_counter()

        def progress(records: int) -> None:
            bar.update(task, completed=log.bytes_read, rate=records / (perf_counter() - began))

        return verify(log, progress), perf_counter() - began


def _facts(log: LogReader, verdict: Verdict, seconds: float) -> dict[str, object]:
    records = sum(verdict.events.values())
    return {
        "identical": verdict.identical,
        "run": log.header.run,
        "files": [str(path) for path in log.paths],
        "records": records,
        "events": dict(verdict.events),
        "commands": dict(verdict.commands),
        "seconds": seconds,
        "events_per_s": records / seconds if seconds else 0.0,
        "truncated": verdict.truncated,
        "difference": asdict(verdict.difference) if verdict.difference else None,
    }


def _text(log: LogReader, verdict: Verdict, seconds: float) -> str:
    header = log.header
    setup, records = header.setup, sum(verdict.events.values())
    policies = f"order {setup.ordering.name}, policy {setup.routing.name}, seed {setup.seed}"
    rate = records / seconds if seconds else 0.0
    lines = [
        f"run {header.run} of fairlead {header.software} in {len(log.paths)} files: {policies}",
        f"{records:,} events in {seconds:.1f} s ({rate:,.0f} a second): {_counts(verdict.events)}",
        f"{verdict.commands.total():,} commands: {_counts(verdict.commands)}",
    ]
    if verdict.truncated:
        lines.append(f"{verdict.truncated}: the last record was cut off, as by a crash, and is left out")
    if verdict.difference is None:
        lines.append("identical: every command and every reason")
    else:
        lines += _explained(verdict.difference, header)
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def _explained(difference: Difference, header: Header) -> list[str]:
    lines = [
        f"DIFFERENT at record {difference.record} ({difference.where}):",
        f"  event:    {difference.event}",
        f"  expected: {difference.expected}",
        f"  got:      {difference.got}",
        *[f"  differs:  {line}" for line in difference.fields],
    ]
    for what, then, now in (
        ("fairlead", header.software, __version__),
        ("Python", header.python, platform.python_version()),
    ):
        if then != now:
            lines.append(f"The log was written by {what} {then}; this is {now}.")
    return lines
