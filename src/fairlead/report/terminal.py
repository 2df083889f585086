"""Results in the terminal: the verdict and its tables."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Drawn
from rich.text import Text

from fairlead.report.results import Result
from fairlead.report.study import Study, studies
from fairlead.report.tables import Cell, Table, clients, comparison, figures, loads
from fairlead.report.verdict import verdict


def show_run(result: Result, console: Console) -> None:
    """Print one run: verdict, latencies, clients."""
    study = studies([result])[0]
    _show_verdict(study, console)
    console.print(_table(figures(result)))
    listed = clients(result)
    if listed.rows:
        console.print(_table(listed))
    speed = result["simulated_requests_per_s"]
    if speed:
        console.print(f"simulated in {result['elapsed_s']:,.2f} s, {speed:,.0f} requests/s", style="dim")


def show_comparison(results: Iterable[Result], console: Console, baseline: str = "") -> None:
    """Print policies side by side with differences and their intervals, for each setting and load."""
    for study in studies(results, baseline):
        _show_verdict(study, console)
        for load in study.loads:
            console.print(_table(comparison(study, load)))
        if len(study.loads) > 1:
            console.print(_table(loads(study)))


def _show_verdict(study: Study, console: Console) -> None:
    said = verdict(study)
    console.print(Text(study.title, style="dim"))
    console.print(Text(said.headline, style="bold"))
    for point in said.points:
        console.print(Padding(Text(point), (0, 0, 0, 2)))
    if said.confidence:
        console.print(Text(said.confidence, style="dim"))
    console.print()


def _table(table: Table) -> Drawn:
    drawn = Drawn(
        box=SIMPLE_HEAD,
        title=Text(table.caption, style="bold"),
        title_justify="left",
        caption=Text("\n".join(table.notes)) if table.notes else None,
        caption_justify="left",
    )
    for i, head in enumerate(table.heads):
        drawn.add_column(Text(head), justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(_cell, row))
    return drawn


def _cell(cell: Cell) -> Text:
    text = Text(cell.text)
    if cell.detail:
        text.append("\n" + cell.detail, style="dim")
    return text
