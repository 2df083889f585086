"""Two real vLLM servers for the whole run. What is missing is an error with its remedy, never a skip."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.engines.servers import Engine

NEEDED = ("vllm", "openai", "tokenizers", "fairlead")
MODEL = Path(__file__).resolve().parents[2] / ".venv-engines" / "models" / "tiny" / "config.json"


def pytest_sessionstart() -> None:
    missing = [f"package {name}" for name in NEEDED if importlib.util.find_spec(name) is None]
    if not MODEL.exists():
        missing.append(f"the model in {MODEL.parent}")
    if missing:
        raise pytest.UsageError(
            f"missing here: {', '.join(missing)}. Run `make test-engines`: it sets all up."
        )


@pytest.fixture(scope="session")
def fair(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[list[tuple[Engine, Path]]]":
    """Two servers with the plugin, and the folder of each one's logs and figures."""
    from tests.engines.plugin_servers import plugin_server

    folders = [tmp_path_factory.mktemp(f"fair-{number}") for number in range(2)]
    both = [(plugin_server(6 + number, folder), folder) for number, folder in enumerate(folders)]
    try:
        for engine, _ in both:
            engine.start()
        for engine, _ in both:
            engine.wait_up()
        yield both
    finally:
        for engine, _ in both:
            engine.stop()


@pytest.fixture(scope="session")
def engines() -> "Iterator[list[Engine]]":
    """Two engines, warm."""
    from tests.engines.servers import Engine

    both = [Engine(1), Engine(2)]
    try:
        for engine in both:
            engine.start()
        for engine in both:
            engine.wait_up()
        yield both
    finally:
        for engine in both:
            engine.stop()
