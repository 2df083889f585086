"""Results in the terminal: the verdict and its tables."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Drawn
from rich.text import Text

from fairlead.report.accuracy import compared
from fairlead.report.results import Result
from fairlead.report.study import Study, studies
from fairlead.report.tables import Cell, Table, clients, closed_loops, figures, loads
from fairlead.report.verdict import verdict


def show_run(result: Result, console: Console) -> None:
    """Print one run: verdict, latencies, clients."""
    study = studies([result])[0]
    _show_verdict(study, console)
    show_table(figures(result), console)
    listed = clients(result)
    if listed.rows:
        show_table(listed, console)
    owed = closed_loops(result)
    if owed.rows:
        show_table(owed, console)
    speed = result["simulated_requests_per_s"]
    if speed:
        console.print(f"simulated in {result['elapsed_s']:,.2f} s, {speed:,.0f} requests/s", style="dim")


def show_comparison(results: Iterable[Result], console: Console, baseline: str = "") -> None:
    """Print policies side by side with differences and their intervals, for each setting and load."""
    for study in studies(results, baseline):
        _show_verdict(study, console)
        for load in study.loads:
            for table in compared(study, load):
                show_table(table, console)
        if len(study.loads) > 1:
            show_table(loads(study), console)


def _show_verdict(study: Study, console: Console) -> None:
    said = verdict(study)
    console.print(_text(study.title, style="dim"))
    console.print(_text(said.headline, style="bold"))
    for point in said.points:
        console.print(Padding(_text(point), (0, 0, 0, 2)))
    if said.confidence:
        console.print(_text(said.confidence, style="dim"))
    console.print()


def show_table(table: Table, console: Console) -> None:
    """Print the table; where the terminal is too narrow for whole words, without its least columns."""
    columns, widths = _fitted(table, console.width)
    console.print(_text(table.caption, style="bold"))
    drawn = Drawn(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, width in zip(columns, widths, strict=True):
        drawn.add_column(_text(table.heads[i]), justify="right" if i else "left", width=width)
    for row in table.rows:
        drawn.add_row(*(_cell(row[i], width) for i, width in zip(columns, widths, strict=True)))
    console.print(drawn)
    for note in table.notes:
        console.print(_text(note))
    left_out = [head for i, head in enumerate(table.heads) if i not in columns]
    if left_out:
        console.print(Text(f"too narrow for: {', '.join(left_out)}", style="dim"))
    console.print()


def _fitted(table: Table, room: int) -> tuple[list[int], list[int]]:
    """Return which columns are shown and how wide each is: no number and no word is broken.

    Columns go in the table's own order of importance, then from the last; two always stay.
    """
    longest = max(_NAME, room // 3)
    least = [_least(table, column, longest) for column in range(len(table.heads))]
    columns = list(range(len(least)))
    going = [table.heads.index(head) for head in table.spare if head in table.heads]
    going += [column for column in reversed(columns) if column not in going]
    while len(columns) > 2 and sum(least[c] + _BETWEEN for c in columns) > room:
        columns.remove(going.pop(0))
    widths = [least[column] for column in columns]
    left = room - sum(width + _BETWEEN for width in widths)
    for most in (_whole_first_lines, _whole_second_lines):
        for i, column in enumerate(columns):
            more = max(0, min(most(table, column) - widths[i], left))
            widths[i] += more
            left -= more
    return columns, widths


_BETWEEN = 2
"""Letters between two columns."""
_NAME = 16
"""Letters of a word of a name that are always shown."""


def _least(table: Table, column: int, longest: int) -> int:
    """Return the width that a column needs: its numbers whole, everything else broken between words."""
    cells = [row[column] for row in table.rows]
    whole = [*table.heads[column].split(), *(unit for cell in cells for unit in _units(cell.detail))]
    if column:
        return max(map(len, [*whole, *(cell.text for cell in cells)]), default=1)
    names = [word for cell in cells for word in cell.text.split()]
    return min(max(map(len, [*whole, *names]), default=1), longest)


def _whole_first_lines(table: Table, column: int) -> int:
    return max(map(len, [table.heads[column], *(row[column].text for row in table.rows)]))


def _whole_second_lines(table: Table, column: int) -> int:
    """Return the width that amounts and intervals need, each on a line of its own."""
    details = [row[column].detail.replace(" (", "\n(") for row in table.rows]
    return max((len(line) for detail in details for line in detail.splitlines()), default=1)


def _text(text: str, style: str = "") -> Text:
    """Return a text without what a terminal would obey: names of clients come from strangers."""
    return Text("".join(c if c.isprintable() or c == "\n" else "?" for c in text), style=style)


def _cell(cell: Cell, width: int) -> Text:
    text = _text(" ".join(_cut(word, width) for word in cell.text.split()))
    line = ""
    for unit in _units(cell.detail):
        longer = f"{line} {unit}" if line else unit
        if line and (len(longer) > width or unit.startswith("(")):
            text.append("\n" + line, style="dim")
            longer = unit
        line = longer
    if line:
        text.append("\n" + line, style="dim")
    return text


def _units(detail: str) -> list[str]:
    """Return a second line's words; those of an interval break after its "to" alone, as in (-14 to, +9%)."""
    return [unit.replace("\0", " ") for unit in detail.replace(" to ", "\0to ").split()]


def _cut(word: str, width: int) -> str:
    """Return a word, its middle left out where it is too long: names often differ at the end."""
    if len(word) <= width:
        return word
    end = (width - 1) // 2
    return word[: width - 1 - end] + "\N{HORIZONTAL ELLIPSIS}" + word[len(word) - end :]
