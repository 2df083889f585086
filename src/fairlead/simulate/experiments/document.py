"""An experiment's results as one JSON document, and the document as Markdown and as a page."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from fairlead import __version__
from fairlead.report.tables import Table
from fairlead.simulate.experiments.base import OURS, CellFigures, Experiment, Options

SCHEMA = 1
_MARKUP = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def document(experiment: Experiment, options: Options, entries: Sequence[CellFigures]) -> dict[str, Any]:
    """Return everything that is told of one experiment, JSON-ready."""
    return {
        "experiment": experiment.name,
        "schema": SCHEMA,
        "fairlead": __version__,
        "title": experiment.title,
        "source": experiment.source,
        "form": "quick" if options.quick else "full",
        "seeds": list(options.seeds),
        "ours": OURS._asdict(),
        "missing": experiment.missing(options),
        "paper": experiment.paper,
        "seen": experiment.seen(entries),
        "why": experiment.why,
        "cells": list(entries),
    }


def retold(experiment: Experiment, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with its texts as they are told now; its figures stay."""
    texts = {
        "title": experiment.title,
        "source": experiment.source,
        "paper": experiment.paper,
        "seen": experiment.seen(told["cells"]),
        "why": experiment.why,
    }
    return {**told, **texts}


def text(told: Mapping[str, Any]) -> str:
    """Return the document as JSON, a line a cell."""
    lines = [f"{json.dumps(k)}: {_json(v)}" for k, v in told.items() if k != "cells"]
    cells = ",\n".join(map(_json, told["cells"]))
    return "{\n" + ",\n".join([*lines, f'"cells": [\n{cells}\n]']) + "\n}\n"


def save(path: Path, told: Mapping[str, Any]) -> None:
    """Write the document, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text(told), encoding="utf-8")
    unfinished.replace(path)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def load(path: Path) -> dict[str, Any]:
    """Read a document. Raises ValueError for what is not one."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "experiment" not in found or found.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not an experiment's results of schema {SCHEMA}: run it again")
    return found


def markdown(experiment: Experiment, told: Mapping[str, Any], images: Mapping[str, str] | None = None) -> str:
    """Return the document as Markdown; ``images``: paths of the drawings by name."""
    form = f"{told['form']} form, {len(told['cells'])} cells, seeds {', '.join(map(str, told['seeds']))}"
    lines = [f"## {told['experiment'].upper()}: {told['title']}", "", f"*{told['source']}; {form}.*", ""]
    lines += [f"**The paper reports.** {told['paper']}", "", "**We see.**", ""]
    lines += [f"- {said}" for said in told["seen"]]
    lines += [f"- Left out. {said}" for said in told["missing"]]
    lines += ["", f"**Why.** {told['why']}"]
    for name, path in (images or {}).items():
        lines += ["", f"![{name}]({path})"]
    for table in experiment.tables(told["cells"]):
        lines += ["", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = [f"### {_escaped(table.caption)}", "", f"| {' | '.join(map(_escaped, table.heads))} |"]
    lines.append(f"|---|{'--:|' * (len(table.heads) - 1)}")
    for row in table.rows:
        cells = [_escaped(c.text) + (f"<br>{_escaped(c.detail)}" if c.detail else "") for c in row]
        lines.append(f"| {' | '.join(cells)} |")
    for note in table.notes:
        lines += ["", _escaped(note)]
    return lines


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_MARKUP)


def page(told: Sequence[tuple[Experiment, Mapping[str, Any]]]) -> str:
    """Return documents as one HTML file: no script, no network."""
    css = resources.files("fairlead.report").joinpath("style.css").read_text(encoding="utf-8")
    body = "".join(_section(experiment, one) for experiment, one in told)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>fairlead experiments</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"<header><h1>fairlead experiments</h1></header>\n<main>\n{body}</main>\n"
        f"<footer><p>fairlead {__version__}</p></footer>\n</body>\n</html>\n"
    )


def _section(experiment: Experiment, told: Mapping[str, Any]) -> str:
    seen = "".join(f"<li>{escape(said)}</li>" for said in (*told["seen"], *told["missing"]))
    why = "</p><p>".join(map(escape, told["why"].split("\n\n")))
    drawings = experiment.charts(told["cells"])
    figures = "".join(
        f"<figure>{svg}<figcaption>{escape(n)}</figcaption></figure>" for n, svg in drawings.items()
    )
    tables = "".join(map(_html_table, experiment.tables(told["cells"])))
    return (
        f'<section class="study"><p class="setting">{escape(told["experiment"].upper())} · '
        f"{escape(told['source'])} · {escape(told['form'])} form</p>"
        f'<p class="headline">{escape(told["title"])}</p>'
        f"<p><b>The paper reports.</b> {escape(told['paper'])}</p><p><b>We see.</b></p>"
        f'<ul class="points">{seen}</ul><p><b>Why.</b> {why}</p>'
        f'<div class="grid2">{figures}</div>{tables}</section>\n'
    )


def _html_table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    rows = []
    for first, *rest in table.rows:
        cells = "".join(
            f"<td>{escape(c.text)}"
            + (f'<span class="detail">{escape(c.detail)}</span>' if c.detail else "")
            + "</td>"
            for c in rest
        )
        rows.append(f'<tr><th scope="row">{escape(first.text)}</th>{cells}</tr>')
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<div class="scroll"><table><caption><span>{escape(table.caption)}</span></caption>'
        f"<thead><tr>{heads}</tr>"
        f'</thead><tbody>{"".join(rows)}</tbody></table></div><div class="notes">{notes}</div>'
    )
