"""Two real vLLM servers for the whole run. What is missing is an error with its remedy, never a skip."""

import importlib.util
from collections.abc import Iterator

import pytest

from tests.engines.servers import MODEL_FOLDER, Engine


def pytest_sessionstart() -> None:
    missing = [
        name
        for name in ("vllm", "openai", "tokenizers", "fairlead")
        if importlib.util.find_spec(name) is None
    ]
    if missing or not (MODEL_FOLDER / "config.json").exists():
        what = f"the packages {', '.join(missing)}" if missing else f"the model in {MODEL_FOLDER}"
        raise pytest.UsageError(f"{what} are missing here: run `make test-engines`, which sets everything up")


@pytest.fixture(scope="session")
def engines() -> Iterator[list[Engine]]:
    """Two engines, warm."""
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
