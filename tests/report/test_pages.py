"""The report in HTML, Markdown and the terminal: sound, self-contained, and never in the way of odd runs."""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from fairlead.report import command
from fairlead.report.html import page
from fairlead.report.markdown import document
from fairlead.report.metrics import summarise
from fairlead.report.results import save
from fairlead.report.run import REJECTED, Requests, Run
from fairlead.report.terminal import show_comparison, show_run
from tests.report.runs import add, empty_series, make_run, queue_run

SVG = "svg"
HOSTILE = "<script>alert('x')</script>&\"|*"


def parsed(html: str) -> ET.Element:
    """Return the page as a tree; it is written as well-formed XML but for its first line."""
    head, _, rest = html.partition("\n")
    assert head == "<!DOCTYPE html>"
    return ET.fromstring(rest)


def rejected() -> Run:
    rows = Requests()
    for i in range(5):
        add(rows, i % 2, i * 10**6, ended=i * 10**6, outcome=REJECTED, worker=-1)
    return make_run(("ann", "ben"), rows)


def single() -> Run:
    rows = Requests()
    add(rows, 0, 0, 1000, 1000, output=1)
    return make_run(("ann",), rows)


def unsampled() -> Run:
    run = queue_run(requests=20)
    run.series = empty_series(4, 0)
    return run


ODD: dict[str, Callable[[], Run]] = {
    "empty": make_run,
    "clients but no requests": lambda: make_run(("ann", "ben")),
    "one request": single,
    "everything rejected": rejected,
    "one client": lambda: queue_run(clients=("ann",), requests=30),
    "without samples": unsampled,
    "no time": lambda: make_run(("ann",), single().requests, duration_us=0),
}


@pytest.fixture(scope="module")
def sweep() -> list[dict[str, Any]]:
    policies = (("marginal", "dlpm", 1.4), ("lmetric", "fcfs", 1.0))
    return [
        summarise(queue_run(seed, load, policy, order, speed, requests=80))
        for policy, order, speed in policies
        for load in (0.5, 0.9, 1.4)
        for seed in (1, 2, 3)
    ]


def told(results: list[dict[str, Any]]) -> str:
    """Return what the terminal shows."""
    console = Console(file=StringIO(), width=200)
    if len(results) == 1:
        show_run(results[0], console)
    else:
        show_comparison(results, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_are_reported_alone_and_beside_others(name: str) -> None:
    odd = summarise(ODD[name]())
    for results in ([odd], [odd, {**odd, "policy": "another"}], [odd, {**odd, "load": 0.5}]):
        parsed(page(results))
        assert document(results)
        assert told(results)


def test_a_sweep_shows_every_chart(sweep: list[dict[str, Any]]) -> None:
    html = page(sweep)
    tree = parsed(html)
    titles = {"".join(h.itertext()) for h in tree.iter("h2")}
    assert titles >= {
        "Compared",
        "Latency",
        "Load",
        "Fairness and throughput",
        "Service by client",
        "Even shares, and cache hits",
        "Workers",
        "Clients",
        "At other loads",
        "How it was run",
    }
    named = [s for s in tree.iter(SVG) if s.get("role") == "img"]
    # 3 distributions (TTFT of the victims too), 2 load curves, 2 Pareto plots, service and 3 worker
    # charts a policy, 2 sets of bars
    assert len(named) == 3 + 2 + 2 + 2 * (1 + 3) + 2
    assert ">knee<" in html
    assert 'class="band"' in html


def test_a_single_run_has_no_comparison(sweep: list[dict[str, Any]]) -> None:
    html = page(sweep[:1])
    titles = {"".join(h.itertext()) for h in parsed(html).iter("h2")}
    assert "Figures" in titles
    assert not titles & {"Compared", "Load", "Fairness and throughput", "At other loads"}


def test_the_page_reaches_for_nothing_outside_itself(sweep: list[dict[str, Any]]) -> None:
    html = page(sweep)
    tree = parsed(html)
    for element in tree.iter():
        assert element.tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset", "onload", "style"} & set(element.attrib)
    assert not re.search(r"https?:|url\(|@import", html)


def test_drawings_are_named_once_and_described(sweep: list[dict[str, Any]]) -> None:
    tree = parsed(page([*sweep, *({**r, "workload": "another"} for r in sweep)]))
    names = Counter(e.get("id") for e in tree.iter() if e.get("id"))
    assert [name for name, count in names.items() if count > 1] == []
    for drawing in tree.iter(SVG):
        if drawing.get("aria-hidden"):
            continue
        for name in (drawing.get("aria-labelledby") or "").split():
            assert names[name] == 1
        assert "".join(drawing.find("desc").itertext()).strip()  # type: ignore[union-attr]
    for table in tree.iter("table"):
        caption = table.find("caption")
        assert caption is not None
        assert "".join(caption.itertext()).strip()


def test_drawings_stay_inside_their_frames(sweep: list[dict[str, Any]]) -> None:
    for drawing in parsed(page(sweep)).iter(SVG):
        _, _, width, height = map(float, (drawing.get("viewBox") or "").split())
        for shape in [*drawing.iter("polyline"), *drawing.iter("polygon")]:
            for point in (shape.get("points") or "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height
        for text in drawing.iter("text"):
            assert 0 <= float(text.get("x") or -1) <= width
            assert 0 <= float(text.get("y") or -1) <= height


def test_names_from_outside_are_text_everywhere() -> None:
    run = queue_run(requests=40, clients=("ann", HOSTILE), workload=HOSTILE, policy=HOSTILE)
    run.labels, run.settings = (HOSTILE,), {HOSTILE: HOSTILE}
    run.misbehaving = (HOSTILE,)
    found = summarise(run)
    results = [found, {**found, "policy": "other"}, {**found, "load": 0.1}]
    html = page(results, title=HOSTILE)
    tree = parsed(html)
    assert "<script" not in html
    assert HOSTILE in "".join(tree.itertext())
    marked = document(results)
    assert "<script" not in marked.replace("\\<", "")
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in marked.splitlines() if line.startswith("| ")}
    assert len(widths) <= 3  # an unescaped bar would make a row of another length
    assert "[" not in told([summarise(queue_run(requests=20, workload="plain"))])
    assert "[bold]" in told([summarise(queue_run(requests=20, workload="[bold]"))])


def test_markdown_has_verdict_and_tables(sweep: list[dict[str, Any]]) -> None:
    text = document(sweep)
    assert text.startswith("## by hand")
    assert "\n**At " in text
    assert "### Mean TTFT by load" in text
    rows = [line for line in text.splitlines() if line.startswith("| marginal + dlpm")]
    assert len(rows) == 2


def test_the_terminal_shows_differences_with_their_intervals(sweep: list[dict[str, Any]]) -> None:
    text = told(sweep)
    assert "P99 TTFT" in text
    assert "lmetric" in text
    assert "Load 50% of the measured maximum, 3 seeds" in text


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(words)))


def test_the_command_writes_files_or_prints(
    tmp_path: Path, sweep: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, result in enumerate(sweep):
        save(tmp_path / "in" / f"{i:02}.json", result)
    page_file, summary = tmp_path / "out" / "r.html", tmp_path / "out" / "r.md"
    assert run_command(str(tmp_path / "in"), "--html", str(page_file), "--markdown", str(summary)) == 0
    assert page_file.read_text(encoding="utf-8") == page(sweep)
    assert summary.read_text(encoding="utf-8") == document(sweep)
    assert capsys.readouterr().out == ""
    assert run_command(str(tmp_path / "in"), "--baseline", "lmetric") == 0
    assert "difference to lmetric" in " ".join(capsys.readouterr().out.split())
    assert run_command(str(tmp_path / "in" / "00.json")) == 0
    assert "Latencies" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(
    tmp_path: Path, sweep: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(str(tmp_path / "none.json")) == 2
    assert "none.json" in capsys.readouterr().err
    save(tmp_path / "one.json", sweep[0])
    assert run_command(str(tmp_path / "one.json"), "--html", str(tmp_path / "x"), "--baseline", "nobody") == 2
    assert "nobody" in capsys.readouterr().err


def test_the_page_is_the_same_every_time(sweep: list[dict[str, Any]]) -> None:
    assert page(sweep) == page(sweep)


def narrow(results: list[dict[str, Any]], width: int) -> str:
    console = Console(file=StringIO(), width=width)
    if len(results) == 1:
        show_run(results[0], console)
    else:
        show_comparison(results, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_narrow_terminal_leaves_columns_out_and_breaks_no_number(sweep: list[dict[str, Any]]) -> None:
    text = narrow(sweep[:1], 60)
    assert "too narrow for: " in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= 60
    assert "too narrow" not in told(sweep)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_terminal_tables_fit_whatever_the_names(width: int, sweep: list[dict[str, Any]]) -> None:
    names = ("team-" + "x" * 90 + "-end", "flood")
    one = summarise(queue_run(requests=60, clients=names))
    for text in (narrow([one], width), narrow(sweep, width)):
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "-end" in narrow([one], width)


def test_what_matters_stays_when_columns_go(sweep: list[dict[str, Any]]) -> None:
    text = narrow(sweep, 80)
    assert "too narrow for: Jain" in text.replace("\n", " ")
    kept = narrow(sweep[:1], 60)
    assert "service" in kept
    assert "too narrow for: requests" in kept


def test_names_give_the_terminal_no_orders() -> None:
    """An escape sequence in a client's name clears the screen, or writes over what was said before."""
    name = "bob\x1b[2J\x07\x9b1A\r"
    run = queue_run(requests=40, clients=("ann", name), workload=name, policy=name)
    run.misbehaving = (name,)
    shown = StringIO()
    show_run(summarise(run), Console(file=shown, width=140, color_system=None))
    assert "bob?[2J" in shown.getvalue()
    assert all(c.isprintable() or c == "\n" for c in shown.getvalue())
