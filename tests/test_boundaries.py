"""The rooms of the house and who may enter them (docs/architecture.md)."""

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "fairlead"
ALLOWED = {
    "core": {"core"},
    "http": {"http"},
    "engine": {"core", "http", "engine"},
    "gateway": {"core", "http", "engine", "gateway", "config", "trace"},
    "plugins": {"core", "plugins"},
    "trace": {"core", "trace"},
    "report": {"core", "report"},
    "replay": {"core", "http", "trace", "report", "replay"},
    "simulate": {"core", "engine", "trace", "report", "simulate", "policies", "native"},
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            assert node.module
            found |= {
                f"{node.module}.{alias.name}" if node.module == "fairlead" else node.module
                for alias in node.names
            }
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((SRC / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "fairlead" and name != "fairlead.__version__":
                assert parts[1] in ALLOWED[room], f"{path.relative_to(SRC)} imports {name}"


def test_core_is_standard_library_only_without_clock_io_or_logging() -> None:
    forbidden = {
        "time",
        "datetime",
        "logging",
        "socket",
        "asyncio",
        "threading",
        "os",
        "io",
        "pathlib",
        "subprocess",
    }
    for path in sorted((SRC / "core").rglob("*.py")):
        for name in imports(path):
            top = name.split(".")[0]
            assert top == "fairlead" or top in sys.stdlib_module_names, f"{path.name} imports {name}"
            assert top not in forbidden, f"{path.name} imports {name}"
            assert name != "secrets"


def test_modules_of_the_gateway_do_not_import_each_other_in_a_circle() -> None:
    """Imports for type checkers count: who needs the other's type depends on it."""
    needs = {
        f"fairlead.gateway.{path.stem}": {
            name for name in imports(path) if name.startswith("fairlead.gateway")
        }
        for path in (SRC / "gateway").glob("*.py")
    }
    known = {"fairlead.gateway.tokenizing", "fairlead.gateway.chat_template"}
    for name in needs.keys() - known:
        reached: set[str] = set()
        ahead = set(needs[name])
        while ahead:
            reached |= ahead
            ahead = set().union(*(needs.get(n, set()) for n in ahead)) - reached
        assert name not in reached, f"{name} imports itself by way of others"
