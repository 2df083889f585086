"""Results on disk: written whole, read back equal, refused with a reason."""

from pathlib import Path

import pytest

from fairlead.report.metrics import summarise
from fairlead.report.results import ResultError, load, load_all, save
from tests.report.runs import queue_run


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    found = summarise(queue_run(requests=30))
    path = tmp_path / "deep" / "one.json"
    save(path, found)
    assert load(path) == found
    assert [p.name for p in path.parent.iterdir()] == ["one.json"]


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    for name, seed in (("b", 2), ("a", 1)):
        save(tmp_path / f"{name}.json", summarise(queue_run(seed=seed, requests=5)))
    (tmp_path / "notes.txt").write_text("not a result")
    assert [r["seed"] for r in load_all([tmp_path, tmp_path / "b.json"])] == [1, 2, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not a result of fairlead"),
        ('{"completed": 3}', "not a result of fairlead"),
        ('{"fairlead": "0.0.1", "schema": 0}', "schema 0, written by fairlead 0.0.1; this version reads 1"),
        ('{"fairlead": "9.0", "schema": 99}', "schema 99"),
        ('{"fairlead": "9.0"}', "schema None"),
    ],
)
def test_what_is_not_a_result_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=r"odd\.json: ") as refused:
        load(path)
    assert words in str(refused.value)


def test_missing_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="No such file"):
        load(tmp_path / "none.json")
    with pytest.raises(ResultError, match=r"no \*\.json"):
        load_all([tmp_path])
    with pytest.raises(ResultError, match="no results"):
        load_all([])


def test_a_result_that_is_not_json_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        save(tmp_path / "nan.json", {"fairlead": "1", "schema": 1, "mean": float("nan")})
    assert not list(tmp_path.iterdir())
