"""The experiments' charts: lines with direct labels, and points of fairness against throughput."""

from collections.abc import Mapping, Sequence

from fairlead.report.numbers import short, short_time
from fairlead.report.svg import Plot, Point, Shown, axis, dash, room_for, series
from fairlead.simulate.experiments.base import CellFigures
from fairlead.simulate.experiments.figures import Measure, mean, names, select

WIDTH, HEIGHT = 560, 320


def curves(
    entries: Sequence[CellFigures],
    part: str,
    measure: Measure,
    workload: str,
    x_title: str,
    *,
    log_x: bool = False,
) -> str:
    """Return a figure against ``x``, a line a contender; nothing where fewer than two x were run."""
    chosen = select(entries, part=part, workload=workload)
    lines: dict[str, list[Point]] = {}
    for label in names(chosen, "contender"):
        mine = select(chosen, contender=label)
        found = [(x, mean(select(mine, x=x), measure)) for x in names(mine, "x")]
        lines[label] = sorted((x, y) for x, y in found if y is not None)
    if len({x for points in lines.values() for x, _ in points}) < 2:
        return ""
    log = measure.unit == "ms"
    title = f"{workload}: {measure.name} by {x_title}"
    y_title = measure.name + (", logarithmic" if log else "")
    y = (y_title, short_time if log else short, log)
    return draw_lines(f"{part}-{measure.key}-{workload}", title, lines, (x_title, short, log_x), y)


Scale = tuple[str, Shown, bool]
"""Title, how numbers read, and whether it is logarithmic."""


def draw_lines(name: str, title: str, lines: Mapping[str, Sequence[Point]], x: Scale, y: Scale) -> str:
    """Return lines with markers, labelled at their ends."""
    xs = [p[0] for points in lines.values() for p in points]
    ys = [p[1] for points in lines.values() for p in points]
    plot = Plot(
        _id(name),
        title,
        f"{title}: " + "; ".join(f"{label} ends at {y[1](points[-1][1])}" for label, points in lines.items()),
        axis(xs, x[0], x[1], log=x[2], zero=False),
        axis(ys, y[0], y[1], log=y[2]),
        right=room_for(list(lines), 150),
        width=WIDTH,
        height=HEIGHT,
    )
    for number, (label, points) in enumerate(lines.items()):
        plot.line(points, series(number), dash=dash(number), label=label)
        for point in points:
            plot.marker(*point, series(number), number)
    return plot.svg()


def scatter(
    name: str, title: str, groups: Mapping[str, Sequence[tuple[float, float, str]]], x: Scale, y: Scale
) -> str:
    """Return points with their names, a colour and a marker a group; points of one group are joined."""
    every = [point for points in groups.values() for point in points]
    if len(every) < 2:
        return ""
    plot = Plot(
        _id(name),
        title,
        f"{title}: " + "; ".join(f"{text}: {x[1](a)}, {y[1](b)}" for a, b, text in every),
        axis([a for a, _, _ in every], x[0], x[1], log=x[2], zero=False),
        axis([b for _, b, _ in every], y[0], y[1], log=y[2]),
        width=WIDTH,
        height=HEIGHT,
    )
    for number, points in enumerate(groups.values()):
        plot.line([(a, b) for a, b, _ in points], series(number), dash="3 3")
        for a, b, _ in points:
            plot.marker(a, b, series(number), number)
    for number, points in enumerate(groups.values()):
        for a, b, text in points:
            plot.note(a, b, text, series(number))
    return plot.svg()


def _id(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
