"""SGLang's scheduler without an engine. What is missing is an error with its remedy, never a skip."""

import importlib.util
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugins_sglang import stubs

ROOT = Path(__file__).resolve().parents[2]
GROUP = "sglang.srt.plugins"
Settings = Callable[..., None]


def pytest_sessionstart() -> None:
    if importlib.util.find_spec("sglang") is None:
        raise pytest.UsageError("SGLang is missing here. Run `make test-engines`: it sets all up.")


stubs.install()


@pytest.fixture(scope="session", autouse=True)
def sglang(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SGLang has loaded the plugin, by the entry point of pyproject.toml."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    installed = tmp_path_factory.mktemp("installed")
    info = installed / "fairlead_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fairlead-plugin\nVersion: 1\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    sys.path.insert(0, str(installed))
    os.environ["SGLANG_PLUGINS"] = "fairlead"

    from sglang.srt.plugins import load_plugins

    from tests.plugins_sglang import bare_sglang

    load_plugins()
    bare_sglang.publish_config()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Set what the plugin is told, in the environment."""

    def told(**values: str) -> None:
        for key, value in values.items():
            monkeypatch.setenv("FAIRLEAD_PLUGIN_" + key.upper(), value)

    return told
