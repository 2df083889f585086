"""The file with every client's figures."""

import json
import logging
import threading
from pathlib import Path

import pytest

from fairlead.plugins.figures import Figures, FiguresFile
from fairlead.plugins.settings import PluginSettings, SettingsError, plugin_ordering


def file_in(folder: Path, interval: float) -> tuple[FiguresFile, Figures]:
    settings = PluginSettings(metrics_interval_secs=interval)
    figures = Figures()
    return FiguresFile(str(folder / "f.json"), figures, plugin_ordering(settings), settings), figures


def test_it_is_written_at_once_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    file, figures = file_in(tmp_path, 0.01)
    assert json.loads(path.read_text())["clients"] == {}
    figures.of("alice").running = 1
    seen = threading.Event()
    while "alice" not in json.loads(path.read_text())["clients"]:
        seen.wait(0.005)
    file.close()
    assert [one.name for one in tmp_path.iterdir()] == ["f.json"]
    slow, figures = file_in(tmp_path, 1000.0)
    figures.of("bob").running = 1
    slow.close()
    assert "bob" in json.loads(path.read_text())["clients"]


def test_a_path_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'metrics_file': cannot write .*nowhere"):
        file_in(tmp_path / "nowhere", 1.0)


def test_a_disk_that_fails_later_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    with caplog.at_level(logging.WARNING):
        file, _ = file_in(folder, 0.005)
        folder.rename(tmp_path / "gone")
        waited = threading.Event()
        while not caplog.records:
            waited.wait(0.005)
        waited.wait(0.05)  # several more failures
        (tmp_path / "gone").rename(folder)
        file.close()
    assert len(caplog.records) == 1
    assert "cannot write" in caplog.text
    assert (folder / "f.json").exists()
