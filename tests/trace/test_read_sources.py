"""Where a trace comes from: encodings, standard input, pipes, parquet, and tables whose fields are named."""

import builtins
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fairlead.trace import stdin
from fairlead.trace.mapped import parse_map
from fairlead.trace.model import TraceError
from fairlead.trace.reading import read_trace
from fairlead.trace.workload import Workload
from tests.trace.shapes import check_trace, quotes, shared_blocks
from tests.trace.test_read_formats import FILES

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("form", FILES)
def test_a_byte_order_mark_loses_no_request(form: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(FILES[form])
    plain = read_trace(tmp_path / "t")
    (tmp_path / "t").write_bytes(MARK + FILES[form])
    marked = read_trace(tmp_path / "t")
    assert list(marked.sessions()) == list(plain.sessions())
    assert marked.repairs == plain.repairs


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(FILES["vtc-arena"].decode().encode(encoding))
    with pytest.raises(TraceError, match=rf"is {encoding[:6].upper()} text.*iconv"):
        read_trace(tmp_path / "t")


class _Piped:
    """A standard input that holds ``content``."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


def test_a_dash_is_standard_input_however_often_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", _Piped(FILES["vtc-arena"]))
    one, other = read_trace("-"), Workload(source=stdin.kept("-")).open()
    assert list(one.sessions()) == list(other.sessions())
    assert (one.name, one.requests) == ("standard-input", 1)
    stdin._standard_input.cache_clear()


def test_a_terminal_is_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin._standard_input.cache_clear()
    terminal = _Piped(b"")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(TraceError, match="nothing is piped into it"):
        read_trace("-")


def test_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(FILES["mooncake"],))
    writer.start()
    assert read_trace(tmp_path / "pipe").requests == 20
    writer.join(timeout=10)


TABLE = """when;who;conv;in_tok;out_tok;done
2024-05-01 12:00:00;ann;c1;100;60;2024-05-01 12:00:04
2024-05-01 12:00:01;bob;;50;5;
2024-05-01 12:00:09Z;ann;c1;200;7;2024-05-01 12:00:10
"""
FIELDS = "arrival=when,prompt=in_tok,output=out_tok,client=who,session=conv,end=done"


def test_a_table_is_read_by_the_fields_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    trace = read_trace(tmp_path / "t.csv", form="mapped", map=FIELDS)
    assert trace.understood == "Table: 3 requests, 1 session, 2 clients, arrivals are dates"
    ann, bob = trace.sessions()
    assert (ann.client, ann.name, bob.client, bob.name, bob.at) == ("ann", "c1", "bob", "", 1_000_000)
    assert [(turn.after, turn.delay_us) for turn in ann.turns] == [(-1, 0), (0, 5_000_000)]
    assert quotes(ann.turns[1], ann.turns[0])


def test_requests_of_a_session_that_overlap_run_side_by_side(tmp_path: Path) -> None:
    rows = ["at,end,s,p,o", "0,10,x,5,1", "2,4,x,5,1", "5,6,x,5,1", "12,13,x,5,1"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    fields = "arrival=at,end=end,session=s,prompt=p,output=o"
    (only,) = check_trace(read_trace(tmp_path / "t.csv", form="mapped", map=fields))
    assert [(turn.after, turn.delay_us) for turn in only.turns] == [
        (-1, 0),
        (-1, 2_000_000),
        (1, 1_000_000),
        (0, 2_000_000),
    ]


def test_fields_within_fields_and_texts_are_read(tmp_path: Path) -> None:
    line = '{"ts": 1, "usage": {"out": 3}, "text": "%s"}\n'
    (tmp_path / "t.jsonl").write_text(line % ("a" * 640) + line % ("a" * 320 + "b" * 320))
    trace = read_trace(tmp_path / "t.jsonl", form="mapped", map="arrival=ts,prompt=text,output=usage.out")
    one, other = check_trace(trace)
    assert one.turns[0][:2] == (160, 3)
    assert shared_blocks(one.turns[0], other.turns[0]) == 5
    assert any("estimates" in label for label in trace.labels)


def test_a_table_without_arrivals_has_invented_starts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("p,o,s\n100,60,x\n50,5,\n200,7,x\n")
    trace = read_trace(tmp_path / "t.csv", form="mapped", map="prompt=p,output=o,session=s", sessions_per_s=2)
    session, alone = sorted(trace.sessions(), key=lambda session: -len(session.turns))
    assert [(turn.prompt_tokens, turn.after, turn.delay_us) for turn in session.turns] == [
        (100, -1, 0),
        (200, 0, 0),
    ]
    assert alone.at != session.at
    assert trace.understood.endswith("no arrival times")
    assert any("Poisson, 2 sessions/s" in label for label in trace.labels)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("arrival=a,prompt=b", "no field is named for output"),
        ("arrival=a,prompt=b,output=c,clint=d", "did you mean 'client'"),
        ("arrival=a,arrival=b,prompt=b,output=c", "'arrival' is named twice"),
        ("arrival", "'arrival' is not of the form"),
    ],
)
def test_a_map_that_cannot_be_meant_is_refused(told: str, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        parse_map(told)


def test_an_unknown_table_is_told_with_its_fields_and_a_map(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    with pytest.raises(TraceError) as refused:
        read_trace(tmp_path / "t.csv")
    assert "it has the fields when, who, conv, in_tok, out_tok, done" in str(refused.value)
    assert "--map arrival=...,prompt=in_tok,output=out_tok" in str(refused.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("nan,1,1", "line 2: a is nan, out of range"),
        ("-1,1,1", "line 2: a is -1, negative"),
        ("1,-1,1", "line 2: b is -1, negative"),
        ("1,1,1e30", "line 2: c is .*, beyond any context length"),
        ("1,,1", "line 2: b is missing"),
        ("1,1.5,1", "line 2: b is '1.5', not a whole number"),
        ("1970-13-01,1,1", "line 2: a is '1970-13-01', not like 2023-11-16"),
    ],
)
def test_a_cell_that_cannot_be_meant_is_named(row: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,b,c\n{row}\n1,1,1\n")
    with pytest.raises(TraceError, match=says):
        read_trace(tmp_path / "t.csv", form="mapped", map="arrival=a,prompt=b,output=c")


def test_a_quote_that_nothing_closes_loses_no_rows_in_silence(tmp_path: Path) -> None:
    rows = "".join(f"{i},1,1\n" for i in range(400))
    (tmp_path / "t.csv").write_text("a,b,c\n" + rows + '400,"1,1\n' + rows)
    with pytest.raises(TraceError, match="a quote runs on to line 802"):
        read_trace(tmp_path / "t.csv", form="mapped", map="arrival=a,prompt=b,output=c")


def test_parquet_rows_are_read_as_lines(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs fairlead[parquet]")
    from pyarrow import parquet

    columns = {"timestamp": [0, 500], "input_length": [1100, 1024], "output_length": [7, 9]}
    table: Any = pyarrow.table({**columns, "hash_ids": [[0, 1, 2], [0, 5]]})
    parquet.write_table(table, tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet")
    one, other = check_trace(trace)
    assert shared_blocks(one.turns[0], other.turns[0]) == 1
    broken = (tmp_path / "t.parquet").read_bytes()[:-30]
    (tmp_path / "cut.parquet").write_bytes(broken)
    with pytest.raises(TraceError, match="is the file complete"):
        read_trace(tmp_path / "cut.parquet")


def test_parquet_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + bytes(100))
    found = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return found(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TraceError, match=r"pip install 'fairlead\[parquet\]'"):
        read_trace(tmp_path / "t.parquet")
