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
    _show(figures(result), console)
    listed = clients(result)
    if listed.rows:
        _show(listed, console)
    speed = result["simulated_requests_per_s"]
    if speed:
        console.print(f"simulated in {result['elapsed_s']:,.2f} s, {speed:,.0f} requests/s", style="dim")


def show_comparison(results: Iterable[Result], console: Console, baseline: str = "") -> None:
    """Print policies side by side with differences and their intervals, for each setting and load."""
    for study in studies(results, baseline):
        _show_verdict(study, console)
        for load in study.loads:
            _show(comparison(study, load), console)
        if len(study.loads) > 1:
            _show(loads(study), console)


def _show_verdict(study: Study, console: Console) -> None:
    said = verdict(study)
    console.print(Text(study.title, style="dim"))
    console.print(Text(said.headline, style="bold"))
    for point in said.points:
        console.print(Padding(Text(point), (0, 0, 0, 2)))
    if said.confidence:
        console.print(Text(said.confidence, style="dim"))
    console.print()


def _show(table: Table, console: Console) -> None:
    """Print the table, without its last columns where the terminal is too narrow for whole words."""
    widths = [_least(table, column) for column in range(len(table.heads))]
    columns = len(widths)
    while columns > 2 and sum(widths[:columns]) + 3 * columns + 1 > console.width:
        columns -= 1
    drawn = Drawn(
        box=SIMPLE_HEAD,
        title=Text(table.caption, style="bold"),
        title_justify="left",
        caption=Text("\n".join(table.notes)) if table.notes else None,
        caption_justify="left",
    )
    for i, head in enumerate(table.heads[:columns]):
        drawn.add_column(Text(head), justify="right" if i else "left", min_width=widths[i])
    for row in table.rows:
        drawn.add_row(*map(_cell, row[:columns]))
    console.print(drawn)
    if columns < len(widths):
        console.print(Text(f"too narrow for: {', '.join(table.heads[columns:])}", style="dim"))


def _least(table: Table, column: int) -> int:
    """Return the width that a column needs: its numbers whole, everything else broken between words."""
    cells = [row[column] for row in table.rows]
    words = [table.heads[column], *(cell.detail for cell in cells)]
    texts = [cell.text for cell in cells]
    whole = texts if column else [word for text in texts for word in text.split()]
    return max(map(len, [*whole, *(word for text in words for word in text.split())]), default=1)


def _cell(cell: Cell) -> Text:
    text = Text(cell.text)
    if cell.detail:
        text.append("\n" + cell.detail, style="dim")
    return text
