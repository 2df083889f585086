"""The report as Markdown: verdict and tables, no plots."""

from collections.abc import Iterable

from fairlead.report.accuracy import compared
from fairlead.report.results import Result
from fairlead.report.study import Study, studies
from fairlead.report.tables import Cell, Table, clients, closed_loops, figures, loads
from fairlead.report.verdict import verdict

MARKUP = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def document(results: Iterable[Result], baseline: str = "") -> str:
    """Return the summary. Raises ValueError for a ``baseline`` that is not among the policies."""
    return "\n".join(_study(study) for study in studies(results, baseline))


def _study(study: Study) -> str:
    said = verdict(study)
    lines = [f"## {_escaped(study.title)}", "", f"**{_escaped(said.headline)}**", ""]
    lines += [f"- {_escaped(point)}" for point in said.points]
    if said.confidence:
        lines += ["", f"*{_escaped(said.confidence)}*"]
    tables = compared(study, study.main_load)
    if len(study.policies) == 1:
        tables.append(figures(study.at(study.main_load)[0].typical()))
    if len(study.loads) > 1:
        tables.append(loads(study))
    for group in study.at(study.main_load):
        for listed in (clients(group.typical()), closed_loops(group.typical())):
            listed.caption = f"{listed.caption}: {group.policy}"
            tables.append(listed)
    return "\n".join([*lines, *(_table(table) for table in tables if table.rows), ""])


def _table(table: Table) -> str:
    lines = [
        "",
        f"### {_escaped(table.caption)}",
        "",
        f"| {' | '.join(map(_escaped, table.heads))} |",
        f"|---|{'--:|' * (len(table.heads) - 1)}",
    ]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in table.rows]
    for note in table.notes:
        lines += ["", _escaped(note)]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    detail = f"<br>{_escaped(cell.detail)}" if cell.detail else ""
    return _escaped(cell.text) + detail


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(MARKUP)
