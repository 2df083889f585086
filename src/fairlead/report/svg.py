"""A small plotting module: linear and logarithmic axes, lines, bands, points and direct labels, as SVG text.

Colours come from the page's CSS: class ``sN`` is the N-th series. Dashes and markers repeat what colour says.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import NamedTuple

SERIES = 7
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "5 2 1 2 1 2", "1 2")
WIDTH, HEIGHT = 400, 256
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 28, 44
LINE = 14
"""Height of a line of text."""
LETTER = 6.7
"""Width of a letter, about."""
NARROWEST = 0.05
"""Least part of its values that an axis spans: a difference of a thousandth should not look like one."""

Point = tuple[float, float]
Shown = Callable[[float], str]


class Tick(NamedTuple):
    """A mark on an axis."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its range, whether it is logarithmic, and how its numbers read."""

    low: float
    high: float
    title: str
    shown: Shown
    log: bool = False
    at: tuple[float, ...] = ()
    """Where its ticks are; empty for round values."""

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high end; clipped to the axis."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[Tick]:
        """Return round values along the axis, or the given ones where they are few enough."""
        if 0 < len(self.at) <= most + 2:
            return [Tick(value, self.shown(value)) for value in self.at]
        values = (
            _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)
        )
        texts = [self.shown(v) for v in values]
        if len(set(texts)) < len(texts):  # closer together than the short form can tell
            decimals = max(0, math.ceil(-math.log10(values[1] - values[0])))
            texts = [f"{v:,.{decimals}f}" for v in values]
        return list(map(Tick, values, texts))


def axis(values: Sequence[float], title: str, shown: Shown, *, log: bool = False, zero: bool = True) -> Axis:
    """Return an axis that holds the values; a linear one starts at 0 unless ``zero`` is off."""
    if log:
        positive = [v for v in values if v > 0]
        low, high = min(positive, default=1.0), max(positive, default=10.0)
        if high / low < 1.5:
            low, high = low / 1.5, high * 1.5
        return Axis(low * 0.95, high * 1.05, title, shown, log=True)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low = min(0.0, low)
        return Axis(low, low + ((high - low) or 1.0) * 1.05, title, shown)
    lacking = max(0.0, NARROWEST * max(abs(low), abs(high)) - (high - low)) or (high == low)
    low, high = low - lacking / 2, high + lacking / 2
    room = (high - low) * 0.05
    return Axis(low - room, high + room, title, shown)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    if high / low < 5:
        return [v for v in _linear_ticks(low, high, most) if v > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [k * 10.0**d for d in decades for k in steps if low <= k * 10.0**d <= high]
        if len(found) <= most + 1:
            break
    every = -(-len(found) // (most + 1)) if found else 1
    return found[::every] if len(found) > 1 else [low, high]


@dataclass(slots=True)
class Label:
    """Text beside the end of a line, moved apart from its neighbours before it is drawn."""

    y: float
    text: str
    series: str


@dataclass(slots=True)
class Plot:
    """One chart. Data coordinates in, SVG out."""

    name: str
    """Unique on the page."""
    title: str
    description: str
    x: Axis
    y: Axis
    right: float = RIGHT
    """Room for labels at the right."""
    width: int = WIDTH
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        """Return the drawing's coordinates of a point."""
        wide, high = self.width - LEFT - self.right, self.height - TOP - BOTTOM
        return LEFT + self.x.place(x) * wide, TOP + (1 - self.y.place(y)) * high

    def line(self, points: Sequence[Point], series: str, *, dash: str = "", label: str = "") -> None:
        """Draw a line, labelled at its right end."""
        placed = [self.at(*p) for p in points]
        if not placed:
            return
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline class="line {series}" points="{_path(placed)}"{dashed}/>')
        if label:
            self.labels.append(Label(placed[-1][1], label, series))

    def strong(self, points: Sequence[Point], where: Sequence[bool], series: str) -> None:
        """Draw the stretches of a line that end in a sample at which ``where`` holds."""
        placed = [self.at(*p) for p in points]
        for is_on, stretch in itertools.groupby(range(1, len(placed)), key=lambda i: where[i]):
            if is_on:
                places = list(stretch)
                path = _path(placed[places[0] - 1 : places[-1] + 1])
                self.parts.append(f'<polyline class="line strong {series}" points="{path}"/>')

    def band(self, lower: Sequence[Point], upper: Sequence[Point]) -> None:
        """Fill the area between two lines."""
        if lower and upper:
            placed = [self.at(*p) for p in [*upper, *reversed(lower)]]
            self.parts.append(f'<polygon class="band" points="{_path(placed)}"/>')

    def marker(self, x: float, y: float, series: str, shape: int = 0, *, hollow: bool = False) -> None:
        """Draw a marker whose shape goes with the series."""
        at = self.at(x, y)
        look = " hollow" if hollow else ""
        self.parts.append(f'<path class="mark {series}{look}" d="{marker_path(shape, *at)}"/>')
        self.taken.append((at[0] - 6, at[1] - 6, at[0] + 6, at[1] + 6))

    def note(self, x: float, y: float, text: str, series: str = "note") -> None:
        """Write text right, left, above or below a point, whichever is free first; nothing if none is."""
        across, down = self.at(x, y)
        wide = len(text) * LETTER
        spots = [(across + 9, down), (across - 9 - wide, down)]
        spots += [(across - wide / 2, down - LINE), (across - wide / 2, down + LINE)]
        spots += [(left, down + side * LINE) for side in (-1, 1) for left in (across + 9, across - 9 - wide)]
        boxes = [(left, middle - 7, left + wide, middle + 7) for left, middle in spots]
        box = next(
            (b for b in boxes if self._inside(b) and not any(_overlap(b, t) for t in self.taken)), None
        )
        if box:
            self.taken.append(box)
            self.parts.append(_text(box[0], (box[1] + box[3]) / 2 + 4, text, f"label {series}"))

    def _inside(self, box: tuple[float, float, float, float]) -> bool:
        right, bottom = self.width - self.right, self.height - BOTTOM
        return box[0] >= LEFT and box[2] <= right and box[1] >= TOP - LINE and box[3] <= bottom

    def svg(self) -> str:
        """Return the whole drawing, with a title and a description for readers who cannot see it."""
        names = f"{self.name}-t {self.name}-d"
        head = (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-labelledby="{names}">'
            f'<title id="{self.name}-t">{escape(self.title)}</title>'
            f'<desc id="{self.name}-d">{escape(self.description)}</desc>'
        )
        return head + "".join([*self._frame(), *self.parts, *self._ends()]) + "</svg>"

    def _frame(self) -> list[str]:
        """Return grid lines, ticks and axis titles."""
        right, bottom = self.width - self.right, self.height - BOTTOM
        parts = []
        for tick in self.y.ticks():
            y = self.at(self.x.low, tick.value)[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(LEFT - 6, y + 4, tick.text, "tick end"))
        room = (self.width - LEFT - self.right) / 62
        for tick in self.x.ticks(max(2, int(room))):
            x = self.at(tick.value, self.y.low)[0]
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(_text(x, bottom + 17, tick.text, "tick middle"))
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(_text((LEFT + right) / 2, self.height - 8, self.x.title, "title middle"))
        parts.append(_text(2, 10, self.y.title, "title"))
        return parts

    def _ends(self) -> list[str]:
        """Return the labels at line ends, apart by a line of text and as near their lines as that allows."""
        ordered = sorted(self.labels, key=lambda label: label.y)
        for before, label in itertools.pairwise(ordered):
            label.y = max(label.y, before.y + LINE)
        limit = float(self.height - BOTTOM)
        for label in reversed(ordered):
            label.y = min(label.y, limit)
            limit = label.y - LINE
        x = self.width - self.right + 6
        most = int((self.right - 6) / LETTER)
        return [_text(x, n.y + 4, _cut(n.text, most), f"label {n.series}") for n in ordered]


def series(number: int) -> str:
    """Return the class of the N-th series; colours repeat after seven, dashes tell those apart."""
    return f"s{number % SERIES}"


def dash(number: int) -> str:
    """Return the dashes of the N-th series."""
    return DASHES[(number + number // SERIES) % len(DASHES)]


def room_for(labels: Sequence[str], most: float = 130) -> float:
    """Return how much room at the right end labels need."""
    return min(most, 12 + LETTER * max((len(text) for text in labels), default=0))


def marker_path(shape: int, x: float, y: float, size: float = 4.5) -> str:
    """Return the outline of a marker: circle, square, triangle, diamond, then the triangle upside down."""
    corners: dict[int, list[Point]] = {
        1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        2: [(0, -1.2), (1.2, 1), (-1.2, 1)],
        3: [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
        4: [(0, 1.2), (1.2, -1), (-1.2, -1)],
    }
    if shape % 5 == 0:
        return f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0Z"
    return "M" + "L".join(f"{x + size * a:.1f} {y + size * b:.1f}" for a, b in corners[shape % 5]) + "Z"


def swatch(number: int) -> str:
    """Return a small drawing of the N-th series' line and marker, for a key."""
    dashed = f' stroke-dasharray="{dash(number)}"' if dash(number) else ""
    return (
        '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
        f'<line class="line {series(number)}" x1="1" x2="33" y1="6" y2="6"{dashed}/>'
        f'<path class="mark {series(number)}" d="{marker_path(number, 17, 6, 3.5)}"/></svg>'
    )


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: max(1, letters - 1)] + "\N{HORIZONTAL ELLIPSIS}"


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def standalone(svg: str) -> str:
    """Return a drawing as a file of its own: with a name space, its size, and the colours of the report."""
    css = resources.files("fairlead.report").joinpath("style.css").read_text(encoding="utf-8")
    screen = css[: css.index("* { box-sizing")]
    rules = [line for line in css.splitlines() if line.startswith("svg ")]
    rules = [re.sub(r"(^|[ ,}] ?)svg ", r"\1", line) for line in rules]
    font = 'text { font-family: system-ui, "Segoe UI", Roboto, Arial, sans-serif; }'
    style = "\n".join([screen.strip(), *rules, font])
    wide, high = re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" '
    opened, rest = svg.removeprefix("<svg ").split(">", 1)
    ground = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f"{head}{opened}><style>{style}</style>{ground}{rest}\n"
