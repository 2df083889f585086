"""``fairlead report``: results as an HTML page, a Markdown summary, or in the terminal."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from fairlead.report.html import page
from fairlead.report.markdown import document
from fairlead.report.results import ResultError, load_all
from fairlead.report.terminal import show_comparison, show_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Turns results of simulate, compare and replay into one self-contained HTML page, a Markdown summary,"
        " or, with neither, tables in the terminal."
    )
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULT", help="JSON files, or folders of them")
    add("--html", type=Path, metavar="FILE", help="write the report as one HTML file")
    add("--markdown", type=Path, metavar="FILE", help="write verdict and tables as Markdown")
    add("--baseline", default="", metavar="POLICY", help="compare with this policy (default: the first)")
    add("--title", default="fairlead report", help="title of the HTML page (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write or print the report. Returns 0, or 2 for results or options that cannot be used."""
    try:
        results = load_all(args.results)
        if args.html:
            _write(args.html, page(results, args.baseline, args.title))
        if args.markdown:
            _write(args.markdown, document(results, args.baseline))
        if not args.html and not args.markdown:
            console = Console()
            if len(results) == 1:
                show_run(results[0], console)
            else:
                show_comparison(results, console, args.baseline)
    except (ResultError, ValueError, OSError) as error:
        print(f"fairlead report: {error}", file=sys.stderr)
        return 2
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
