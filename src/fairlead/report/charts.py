"""The report's charts: which figures of a study go into which plot."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

from fairlead.report.numbers import digits, duration, percent, short, short_time
from fairlead.report.results import Result
from fairlead.report.study import GAP, HIT_RATE, JAIN, THROUGHPUT, Measure, Study
from fairlead.report.svg import RIGHT, Plot, Point, axis, dash, room_for, series

MOST_LINES = 40
"""Most clients that are drawn, those with most service; more lines could not be told apart."""
LABELLED = (4, 2)
"""Clients named in a plot: those with most and with least service, besides the misbehaving ones."""
MOST_ENDS = 6
"""Policies named at the ends of their lines; more of them are told apart by the key alone."""


def distribution(study: Study, load: float, metric: str, *, victims: bool = False) -> str:
    """Return the cumulative distribution of ``ttft`` or ``tpot``, a line a policy, time logarithmic.

    ``victims``: of all clients that behaved; nothing where nobody misbehaved.
    """
    curves = []
    for number, policy in enumerate(study.policies):
        group = study.groups.get((policy, load))
        of = group.typical() if group else None
        if of and victims:
            of = of["victims"]
        values = of["quantiles"][f"{metric}_ms"] if of else []
        if values:
            step = 1 / (len(values) - 1)
            curves.append((number, policy, [(max(v, 1e-3), k * step) for k, v in enumerate(values)]))
    if not curves:
        return ""
    name, whose = metric.upper(), " of all who behaved" if victims else ""
    xs = [x for _, _, points in curves for x, _ in points[2:]]  # the fastest percent would stretch the axis
    medians = "; ".join(f"{p}: median {duration(points[len(points) // 2][0])}" for _, p, points in curves)
    plot = Plot(
        f"{metric}-cdf-{'victims-' if victims else ''}{_id(study, load)}",
        f"Distribution of {name}",
        f"Cumulative share of completed requests by {name}{whose}. {medians}.",
        axis(xs, f"{name}, logarithmic", short_time, log=True),
        axis([0.0, 1.0 / 1.05], f"share of requests with at most this {name}", percent),
    )
    for number, _, points in curves:
        plot.line(points, series(number), dash=dash(number))
    return plot.svg()


def load_curve(study: Study, what: str) -> str:
    """Return ``ttft`` (mean, logarithmic) or ``goodput`` against load, a line a policy, the knee marked."""
    curves = {policy: study.curve(policy) for policy in study.policies}
    points = [p for curve in curves.values() for p in curve]
    if len({p.load for p in points}) < 2:
        return ""
    ttft = what == "ttft"
    values = [p.ttft_ms if ttft else p.goodput for p in points]
    named = len(study.policies) <= MOST_ENDS
    title = "Mean TTFT by load" if ttft else "Goodput by load"
    plot = Plot(
        f"load-{what}-{_id(study)}",
        title,
        f"{title} for {', '.join(study.policies)}; each curve's knee is marked, saturated points are hollow.",
        replace(
            axis([p.load for p in points], "load, share of the measured maximum", percent, zero=False),
            at=tuple(study.loads),
        ),
        axis(values, "mean TTFT, logarithmic", short_time, log=True)
        if ttft
        else axis(values, "goodput, requests/s that met their SLOs", short),
        right=room_for(study.policies) if named else RIGHT,
    )
    for number, policy in enumerate(study.policies):
        curve = curves[policy]
        at = {p.load: p.ttft_ms if ttft else p.goodput for p in curve}
        plot.line(list(at.items()), series(number), dash=dash(number), label=policy if named else "")
        for point in curve:
            plot.marker(point.load, at[point.load], series(number), number, hollow=point.saturated)
    _mark_knees(
        plot, study, {p: {k.load: k.ttft_ms if ttft else k.goodput for k in c} for p, c in curves.items()}
    )
    return plot.svg()


def _mark_knees(plot: Plot, study: Study, values: Mapping[str, Mapping[float, float]]) -> None:
    """Write "knee" at each curve's, and once where several have it at the same load."""
    knees: dict[float, list[str]] = {}
    for policy in study.policies:
        knee = study.knee(policy)
        if knee:
            knees.setdefault(knee.load, []).append(policy)
    for load, policies in knees.items():
        top = max(values[policy][load] for policy in policies)
        one = len(policies) == 1
        text = "knee" if one else "knees"
        plot.note(load, top, text, series(study.policies.index(policies[0])) if one else "note")


def pareto(study: Study, load: float, measure: Measure) -> str:
    """Return fairness (worst gap or Jain's index) against throughput, a point a policy, the front joined."""
    found = []
    for group in study.at(load):
        tokens, fair = group.mean(THROUGHPUT), group.mean(measure)
        if tokens is not None and fair is not None:
            found.append((study.policies.index(group.policy), group, tokens, fair))
    if len(found) < 2:
        return ""
    low = measure.better == "low"
    better = "lower is fairer" if low else "higher is fairer"
    name = "worst service gap, units" if measure is GAP else "Jain's index"
    plot = Plot(
        f"pareto-{measure.unit}-{_id(study, load)}",
        f"Fairness against throughput: {name}",
        "; ".join(f"{g.policy}: {digits(t)} tokens/s, {f:.4g}" for _, g, t, f in found),
        axis([t for *_, t, _ in found], "prompt and output tokens/s, more is better", short, zero=False),
        axis([f for *_, f in found] + ([] if low else [0.95, 1.0]), f"{name}, {better}", short, zero=low),
    )
    plot.line(_front([(t, f) for *_, t, f in found], low), "front", dash="3 3")
    for number, group, tokens, fair in found:
        plot.marker(tokens, fair, series(number), number, hollow=bool(group.saturated))
    for number, group, tokens, fair in found:
        plot.note(tokens, fair, group.policy, series(number))
    return plot.svg()


def _front(points: list[Point], low: bool) -> list[Point]:
    """Return the points that no other beats both ways, by falling throughput."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p[0], p[1] if low else -p[1])):
        if not front or (point[1] < front[-1][1] if low else point[1] > front[-1][1]):
            front.append(point)
    return front


def service(result: Result, name: str, top: float) -> str:
    """Return service over weight by client over time, and the band that the bound allows below the most.

    ``top``: the highest value to show, so that charts of several policies share an axis.
    """
    times, columns = result["series"]["client_times_s"], result["series"]["service"]
    if not times or not columns:
        return ""
    clients = result["clients"]
    lines = [
        [(t, v / client["weight"]) for t, v in zip(times, column, strict=True)]
        for client, column in zip(clients, columns, strict=True)
    ]
    order = sorted(range(len(lines)), key=lambda i: -lines[i][-1][1])
    drawn = [i for k, i in enumerate(order) if k < MOST_LINES or clients[i]["misbehaving"]]
    named = {i for k, i in enumerate(drawn) if k < LABELLED[0] or k >= len(drawn) - LABELLED[1]}
    named |= {i for i in drawn if clients[i]["misbehaving"]}
    ends = "; ".join(f"{clients[i]['name']} {digits(lines[i][-1][1])}" for i in drawn)
    plot = Plot(
        name,
        f"Service by client over time, {result['policy']} + {result['order']}",
        f"Service so far over weight. At the end: {ends}.",
        axis([0.0, times[-1] / 1.05], "seconds", short),
        axis([0.0, top], "service so far over weight, units", short),
        right=room_for([clients[i]["name"] for i in named], 100),
    )
    queued, bound = result["series"]["queued"], result["fairness"]["bound"]
    if bound:
        most = [(t, max(line[k][1] for line in lines)) for k, t in enumerate(times)]
        plot.band([(t, max(0.0, v - bound)) for t, v in most], most)
    for i in reversed(drawn):
        kind = "bad" if clients[i]["misbehaving"] else "client"
        plot.line(lines[i], kind, label=clients[i]["name"] if i in named else "")
        if queued:
            plot.strong(lines[i], [count > 0 for count in queued[i]], kind)
    return plot.svg()


WORKER_SERIES = (
    ("running", "requests in the batch", short),
    ("waiting", "requests waiting", short),
    ("kv_used", "KV blocks held by requests", percent),
)


def workers(result: Result, which: int, name: str) -> str:
    """Return one of running, waiting and KV use over time: each worker thin, their mean bold."""
    key, title, shown = WORKER_SERIES[which]
    times, columns = result["series"]["worker_times_s"], result["series"][key]
    if not times or not columns:
        return ""
    mean = [sum(row) / len(row) for row in zip(*columns, strict=True)]
    most = max(max(column) for column in columns)
    plot = Plot(
        name,
        f"{title} by worker",
        f"{len(columns)} workers; mean {digits(sum(mean) / len(mean))}, most {digits(most)}.",
        axis([0.0, times[-1] / 1.05], "seconds", short),
        axis([0.0, 1 / 1.05 if key == "kv_used" else max(most, 1)], title, shown),
        width=300,
        height=190,
    )
    for column in columns:
        plot.line(list(zip(times, column, strict=True)), "thin")
    plot.line(list(zip(times, mean, strict=True)), "bold")
    return plot.svg()


def hit_bars(study: Study, load: float) -> str:
    """Return bars of the hit rate achieved, with a mark at what an endless cache would have reached."""
    rows = []
    for group in study.at(load):
        got = group.mean(HIT_RATE)
        if got is not None:
            reach = group.typical()["reachable_hit_rate"]
            rows.append((study.policies.index(group.policy), group.policy, got, percent(got), reach))
    mark = "the mark is what an endless cache shared by all would have had"
    return _bars(
        rows, f"hits-{_id(study, load)}", "Hit rate by policy", f"Share of prompt tokens cached; {mark}."
    )


def jain_bars(study: Study, load: float) -> str:
    """Return bars of Jain's index."""
    rows = []
    for group in study.at(load):
        value = group.mean(JAIN)
        if value is not None:
            rows.append((study.policies.index(group.policy), group.policy, value, f"{value:.3f}", None))
    return _bars(rows, f"jain-{_id(study, load)}", "Jain's index by policy", "1 is an even split.")


def _bars(
    rows: Sequence[tuple[int, str, float, str, float | None]], name: str, title: str, description: str
) -> str:
    """Return horizontal bars from 0 to 1, named above, the number beside; a mark where one is given."""
    if not rows:
        return ""
    wide, high, step = 400, 36 * len(rows) + 6, 36
    full = wide - 60
    head = f'<svg viewBox="0 0 {wide} {high}" role="img" aria-labelledby="{name}-t {name}-d">'
    words = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    parts = [head, words]
    for i, (number, policy, value, text, mark) in enumerate(rows):
        y = i * step
        parts.append(f'<text class="label" x="0" y="{y + 12}">{escape(policy)}</text>')
        parts.append(f'<rect class="track" x="0" y="{y + 18}" width="{full}" height="10"/>')
        length = full * min(max(value, 0.0), 1.0)
        parts.append(
            f'<rect class="bar {series(number)}" x="0" y="{y + 18}" width="{length:.1f}" height="10"/>'
        )
        parts.append(f'<text class="label" x="{full + 8}" y="{y + 27}">{escape(text)}</text>')
        if mark is not None:
            x = full * min(max(mark, 0.0), 1.0)
            parts.append(
                f'<line class="reach" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 15}" y2="{y + 31}"/>'
                f'<text class="tick end" x="{full}" y="{y + 12}">reachable {percent(mark)}</text>'
            )
    return "".join([*parts, "</svg>"])


def most_service(results: Sequence[Result]) -> float:
    """Return the most service over weight that any client got in any of the runs."""
    return max(
        (
            column[-1] / client["weight"]
            for result in results
            if result["series"]["service"]  # a live run may have no samples
            for client, column in zip(result["clients"], result["series"]["service"], strict=True)
        ),
        default=1.0,
    )


def _id(study: Study, load: float | None = None) -> str:
    """Return what makes a drawing's name unique on the page."""
    return f"{study.number}" if load is None else f"{study.number}-{load:g}".replace(".", "_")
