"""What the commands that take a trace say of it, and what they refuse."""

import json
from pathlib import Path

import pytest

from fairlead.cli import main

TABLE = "ts,in_tok,out_tok,who\n0,100,5,a\n1.5,100,5,b\n2.5,100,5,b\n"
MAP = "arrival=ts,prompt=in_tok,output=out_tok,client=who"
UNDERSTOOD = "Table: 3 requests, 0 sessions, 2 clients, arrivals in seconds"


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "requests.csv"
    path.write_text(TABLE)
    return str(path)


def test_simulate_tells_in_a_line_what_it_understood(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", table, "--map", MAP, "--json", str(tmp_path / "run.json")]) == 0
    assert capsys.readouterr().err.splitlines()[0] == UNDERSTOOD
    result = json.loads((tmp_path / "run.json").read_text())
    assert {client["name"] for client in result["clients"]} == {"a", "b"}
    assert result["completed"] == 3


def test_compare_tells_it_once_for_all_cells(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--policies", "least_requests", "--orders", "fcfs,vtc", "--seeds", "1", "--processes", "1"]
    assert main(["compare", table, "--map", MAP, *flags, "--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().err.count(UNDERSTOOD) == 1


@pytest.mark.parametrize("command", ["simulate", "compare"])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--map arrival=ts,prompt=in_tok,output=out_tok"),
        (["--map", "arrival=ts"], "no field is named for prompt and output"),
        (["--map", MAP + ",session=talk"], "line 1: no column talk (found: ts, in_tok, out_tok, who)"),
        (["--map", MAP, "--form", "azure"], "--form azure a format that has its own"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(
    command: str, flags: list[str], says: str, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, table, *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"fairlead {command}: ")
    assert says in told
