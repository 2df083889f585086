"""The report as one HTML file: no script, no network, readable on a phone and on paper."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from fairlead import __version__
from fairlead.report import charts
from fairlead.report.accuracy import compared, pairs
from fairlead.report.numbers import digits, percent
from fairlead.report.results import Result
from fairlead.report.study import GAP, JAIN, Group, Study, studies
from fairlead.report.svg import swatch
from fairlead.report.tables import Cell, Table, clients, closed_loops, comparison, figures, loads
from fairlead.report.utilisation import RULE
from fairlead.report.verdict import verdict

MOST_TIMELINES = 6
"""Policies whose service and workers are drawn over time; the rest only in tables."""


def page(results: Iterable[Result], baseline: str = "", title: str = "fairlead report") -> str:
    """Return the report on the results. Raises ValueError for a ``baseline`` that is not among them."""
    found = studies(results, baseline)
    css = resources.files("fairlead.report").joinpath("style.css").read_text(encoding="utf-8")
    body = "".join(_study(study) for study in found)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1></header>\n<main>\n{body}</main>\n{_footer()}</body>\n</html>\n"
    )


def _study(study: Study) -> str:
    load = study.main_load
    drawn = [group for group in study.at(load) if group.typical()["num_prompts"]][:MOST_TIMELINES]
    many = len(study.policies) > 1
    parts = [
        _verdict(study),
        _section(_first(study), "".join(map(_table, compared(study, load)))),
        _section("Latency", _latency(study, load), _key(study) if many else ""),
        _section("Load", _loads(study), _key(study) if many else ""),
        _section("Fairness and throughput", _pareto(study, load), _key(study)),
        _section("Service by client", _service(drawn, study), _service_words(drawn)),
        _section("Even shares, and cache hits", _shares(study, load)),
        _section("Workers", _workers(drawn, study)),
        _section("Clients", _clients(drawn)),
        _section("At other loads", _other_loads(study)),
        _section("How it was run", _settings(drawn)),
    ]
    return f'<section class="study">{"".join(parts)}</section>\n'


def _first(study: Study) -> str:
    if len(study.policies) == 1:
        return "Figures"
    return "Simulated against measured" if pairs(study, study.main_load) else "Compared"


def _verdict(study: Study) -> str:
    said = verdict(study)
    points = "".join(f"<li>{escape(point)}</li>" for point in said.points)
    return (
        f'<p class="setting">{escape(study.title)}</p>'
        f'<p class="headline">{escape(said.headline)}</p>'
        + (f'<ul class="points">{points}</ul>' if points else "")
        + (f'<p class="soft">{escape(said.confidence)}</p>' if said.confidence else "")
    )


def _section(title: str, body: str, intro: str = "") -> str:
    """Return a section, nothing where it has nothing to show."""
    return f"<h2>{escape(title)}</h2>{intro}{body}\n" if body else ""


def _key(study: Study) -> str:
    names = "".join(f"<li>{swatch(i)}{escape(policy)}</li>" for i, policy in enumerate(study.policies))
    return f'<ul class="key">{names}</ul>'


def _other_loads(study: Study) -> str:
    tables = [comparison(study, load) for load in study.loads if load != study.main_load]
    for table in tables:
        table.notes = []  # said under the first table
    return "".join(map(_table, tables))


def _latency(study: Study, load: float) -> str:
    victims = charts.distribution(study, load, "ttft", victims=True)
    everyone = "Time to first token, from the scheduled arrival" + (", of all clients" if victims else "")
    drawings = [
        _figure(victims, "Time to first token of all who behaved"),
        _figure(charts.distribution(study, load, "ttft"), everyone),
        _figure(charts.distribution(study, load, "tpot"), "Time per output token after the first"),
    ]
    own = _table(figures(study.at(load)[0].typical())) if len(study.policies) == 1 else ""
    return _grid(drawings) + own


def _loads(study: Study) -> str:
    drawings = [
        _figure(charts.load_curve(study, "ttft"), "Hollow: saturated"),
        _figure(charts.load_curve(study, "goodput"), "Knee: the highest load before the curve breaks"),
    ]
    grid = _grid(drawings)
    return grid + _table(loads(study)) if grid else ""


def _pareto(study: Study, load: float) -> str:
    if any(group.live for group in study.at(load)):
        return ""  # a replay samples the gap: it is not the one that a dispatcher counts
    drawings = [
        _figure(charts.pareto(study, load, GAP), "Where points are joined, none is better in both"),
        _figure(charts.pareto(study, load, JAIN), "Jain's index of service over fair share"),
    ]
    return _grid(drawings)


def _service(drawn: Sequence[Group], study: Study) -> str:
    top = charts.most_service([group.typical() for group in drawn])
    found = []
    for i, group in enumerate(drawn):
        result = group.typical()
        drawing = charts.service(result, f"service-{study.number}-{i}", top)
        fairness = result["fairness"]
        said = f"Jain {fairness['jain']:.3f}"
        if len(result["clients"]) > 1:
            said += f", worst gap {digits(fairness['worst_gap'])} units"
        if fairness["bound_share"] is not None:
            said += f" ({percent(fairness['bound_share'])} of the bound)"
        found.append(_figure(drawing, said, group.policy))
    return _grid(found)


def _service_words(drawn: Sequence[Group]) -> str:
    text = (
        "Service so far (computed prompt tokens and twice the output tokens) over weight; strong while the"
        " client had requests waiting, faint while it had none."
    )
    if any(group.typical()["fairness"]["bound"] for group in drawn):
        text += (
            " Shaded: the bound, drawn below the most served client. While two lines are strong, they may"
            " drift apart by no more than its height."
        )
    return f'<p class="soft">{text}</p>'


def _shares(study: Study, load: float) -> str:
    drawings = [
        _figure(
            charts.jain_bars(study, load),
            "1: everybody got an even share, or all that was asked for",
            "Jain's index",
        ),
        _figure(
            charts.hit_bars(study, load),
            "Reachable: by an endless cache shared by all",
            "Prompt tokens cached",
        ),
    ]
    return _grid(drawings)


def _workers(drawn: Sequence[Group], study: Study) -> str:
    rows = []
    for i, group in enumerate(drawn):
        names = [f"workers-{study.number}-{i}-{k}" for k in range(3)]
        panels = [_figure(charts.workers(group.typical(), k, name), "") for k, name in enumerate(names)]
        if any(panels):
            rows.append(f"<h3>{escape(group.policy)}</h3>" + _grid(panels, "grid3"))
    return '<p class="soft">Thin: each worker. Bold: their mean.</p>' + "".join(rows) if rows else ""


def _clients(drawn: Sequence[Group]) -> str:
    parts = []
    for group in drawn:
        table = clients(group.typical())
        if table.rows:
            table.caption = group.policy
            parts.append(_table(table))
        owed = closed_loops(group.typical())
        if owed.rows:
            owed.caption = f"{owed.caption}: {group.policy}"
            parts.append(_table(owed))
    return "".join(parts)


def _settings(drawn: Sequence[Group]) -> str:
    """Return what the runs drawn have in common, then what is each one's own; what is off is left out."""
    results = [group.typical() for group in drawn]
    if not results:
        return ""
    shown = [_facts(group, result) for group, result in zip(drawn, results, strict=True)]
    common = {k: v for k, v in shown[0].items() if all(other.get(k) == v for other in shown[1:])}
    parts = [f'<div class="common">{_list(common)}</div>']
    if len(drawn) > 1:
        own = [{k: v for k, v in facts.items() if common.get(k) != v} for facts in shown]
        named = zip(drawn, own, strict=True)
        blocks = [f"<div><h3>{escape(group.policy)}</h3>{_list(facts)}</div>" for group, facts in named]
        parts.append(_grid(blocks))
    return "".join(parts)


def _facts(group: Group, result: Result) -> dict[str, str]:
    several = len(group.seeds) > 1
    facts = {
        "policy": result["policy"],
        "order": result["order"],
        "drawn above": f"seed {result['seed']}"
        + (f", the median of {len(group.seeds)} by mean TTFT" if several else ""),
        "requests": f"{result['num_prompts']:,}",
        "labels": "; ".join(result["labels"]),
        "bound": result["fairness"]["bound_text"],
        "SLOs": ", ".join(f"{k.upper()} {v:g} ms" for k, v in result["slos"].items()),
    }
    known = {*facts, "seed", "load"}
    facts |= {str(k): _plain(v) for k, v in result["settings"].items() if k not in known and v}
    return {k: v for k, v in facts.items() if v and (k, v) not in {("policy", "live"), ("order", "live")}}


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _list(facts: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _figure(drawing: str, caption: str, title: str = "") -> str:
    if not drawing:
        return ""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure>{head}{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _grid(figures: Sequence[str], kind: str = "grid2") -> str:
    inside = "".join(figures)
    return f'<div class="{kind}">{inside}</div>' if inside else ""


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    rows = []
    for first, *rest in table.rows:
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in rest)
        rows.append(f'<tr><th scope="row">{_cell(first)}</th>{cells}</tr>')
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<div class="scroll"><table><caption><span>{escape(table.caption)}</span></caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<div class="notes">{notes}</div>' if notes else "")
    )


def _cell(cell: Cell) -> str:
    if not cell.detail:
        return escape(cell.text)
    amount, bracket, within = cell.detail.partition(" (")
    second = f"<i>({escape(within)}</i>" if bracket else ""
    return f'{escape(cell.text)}<span class="detail">{escape(amount)}{second}</span>'


def _footer() -> str:
    words = (
        "TTFT and E2E count from the scheduled arrival, so that queueing counts. TPOT: (E2E - TTFT) / (output"
        " tokens - 1). Percentiles interpolate linearly. Latencies are those of completed requests; what was"
        " rejected, timed out or left unfinished misses every SLO. Jain's index: service over max-min fair"
        " share by weight, nobody's share above its demand, at the last arrival. Worst gap: largest"
        " difference in service over weight between two clients while both were backlogged."
    )
    rule = RULE[0].upper() + RULE[1:]
    return f"<footer><p>{escape(words)}</p><p>{escape(rule)}.</p><p>fairlead {__version__}</p></footer>\n"
