"""Writes docs/experiments.md's results and drawings from experiments/*.json; ``--check`` only compares.

Nothing is simulated: the same figures give the same page. Texts inside the JSON are renewed as well.
"""

import re
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fairlead.simulate.experiments import EXPERIMENTS
from fairlead.simulate.experiments.document import load, markdown, retold, text

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "experiments.md"
IMAGES = ROOT / "docs" / "img" / "experiments"
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
_NAME = re.compile(r"[^a-z0-9]+")


def files(root: Path = ROOT) -> dict[Path, str]:
    """Return what the page and its drawings should hold, by path."""
    found: dict[Path, str] = {}
    sections = []
    for name, experiment in EXPERIMENTS.items():
        source = root / "experiments" / f"{name}.json"
        if not source.is_file():
            continue
        told = retold(experiment, load(source))
        found[source] = text(told)
        images = {}
        for title, svg in experiment.charts(told["cells"]).items():
            path = IMAGES / f"{name}-{_NAME.sub('-', title.lower()).strip('-')}.svg"
            found[path] = standalone(svg)
            images[title] = path.relative_to(PAGE.parent).as_posix()
        sections.append(markdown(experiment, told, images))
    page = PAGE.read_text(encoding="utf-8")
    results = summary(root) + "\n" + "\n".join(sections)
    found[PAGE] = re.sub(f"(?<={BEGIN}).*?(?={END})", lambda _: results, page, flags=re.DOTALL)
    return found


def summary(root: Path) -> str:
    """Return a table of the experiments that have results."""
    rows = ["| | experiment | cells | seeds | form |", "|---|---|--:|--:|---|"]
    for name in EXPERIMENTS:
        source = root / "experiments" / f"{name}.json"
        if source.is_file():
            told: Mapping[str, Any] = load(source)
            link = f"[{name.upper()}](#{_anchor(name, told['title'])})"
            seeds = len(told["seeds"])
            rows.append(f"| {link} | {told['title']} | {len(told['cells'])} | {seeds} | {told['form']} |")
    return "\n".join(rows) + "\n"


def _anchor(name: str, title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", f"{name}: {title}".lower()).replace(" ", "-")


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


def main() -> int:
    """Write the files, or say which are not current. Returns the exit code."""
    wanted = files()
    kept = set(IMAGES.glob("*.svg")) if IMAGES.is_dir() else set()
    stale = [path for path, new in wanted.items() if not path.is_file() or path.read_text("utf-8") != new]
    left = sorted(kept - wanted.keys())
    if "--check" in sys.argv[1:]:
        for path in [*stale, *left]:
            print(f"not current: {path.relative_to(ROOT)}; run scripts/draw_experiments.py")
        return int(bool(stale or left))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    for path in left:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
