"""CSV traces: Azure's and the VTC paper's."""

import gzip
from pathlib import Path

import pytest

from fairlead.trace.model import TraceError
from fairlead.trace.reading import read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ARENA = "req_id,client_id,arrival_s,input_tokens,output_tokens\n"


def test_azure_times_have_seven_digits(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        AZURE + "2023-11-16 23:59:59.9000009,374,44\r\n2023-11-17 00:00:00.4000000,1,2\r\n", newline=""
    )
    trace = read_trace(path)
    one, two = trace.sessions()
    assert (one.at, two.at) == (0, 500_000)
    assert one.turns[0][:4] == (374, 44, (), ())
    assert trace.clients == {"all": 1.0}
    assert any("share no prefix" in label for label in trace.labels)


def test_arena_clients_are_the_sources_own(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text(ARENA + "0,13,0.0,13,199\n1,2,0.207938,36,137\n2,13,0.3,5,6\n")
    trace = read_trace(path)
    assert [(s.client, s.at, s.turns[0][:2]) for s in trace.sessions()] == [
        ("13", 0, (13, 199)),
        ("2", 207_938, (36, 137)),
        ("13", 300_000, (5, 6)),
    ]
    assert trace.clients == {"13": 1.0, "2": 1.0}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("0,1,0.0,x,9", "line 2: input_tokens is 'x', not a whole number"),
        ("0,1,-1,5,9", "line 2: arrival_s is -1, negative"),
        ("0,1,nan,5,9", "line 2: arrival_s is nan, out of range"),
        ("0,1,soon,5,9", "line 2: arrival_s is 'soon', not a number"),
        ("0,,0.0,5,9", "line 2: client_id is missing"),
        ("0,1,0.0,5", "line 2: output_tokens is missing"),
    ],
)
def test_bad_cells_are_named(tmp_path: Path, row: str, says: str) -> None:
    path = tmp_path / "v.csv"
    path.write_text(ARENA + row + "\n1,1,1.0,5,9\n")
    with pytest.raises(TraceError) as refused:
        read_trace(path)
    assert says in str(refused.value)


def test_a_bad_timestamp_shows_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(AZURE + "yesterday,1,2\n")
    with pytest.raises(TraceError, match=r"line 2: TIMESTAMP is 'yesterday', not like 2023-11-16"):
        read_trace(path)


def test_a_line_that_breaks_off_and_a_missing_column(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text(ARENA + "0,1,0.0,5,9\n1,1,1.0")
    trace = read_trace(path)
    assert trace.requests == 1
    assert [repair.rule for repair in trace.repairs] == ["the last line breaks off: left out"]
    with pytest.raises(TraceError, match="no column TIMESTAMP"):
        read_trace(path, form="azure")


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.csv.gz"
    path.write_bytes(gzip.compress(ARENA.encode()))
    with pytest.raises(TraceError, match="no request"):
        read_trace(path)
