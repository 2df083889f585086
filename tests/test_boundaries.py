"""The rooms of the house and who may enter them (docs/architecture.md)."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
    "testing": {"core", "testing"},
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
            if path.name == "open_class.py" and top == "mypy_extensions":
                continue  # for type checkers and the compiler only
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


INSIDE_CORE = {
    "core/prefix": {"core.cached_tokens", "core.model", "core.prefix"},
    "core/ordering": {
        "core.cached_tokens",
        "core.model",
        "core.open_class",
        "core.ordering",
        "core.params",
        "core.registry",
    },
    "core/routing": {"core.model", "core.open_class", "core.params", "core.registry", "core.routing"},
    "core/events.py": {"core.model"},
    "core/commands.py": {"core.model"},
    "core/ledger.py": {"core.model"},
    "core/prefilling.py": {"core.model"},
    "core/shedding.py": {"core.model"},
    "core/fleet.py": {"core.model", "core.outputs"},
    "core/outputs.py": {"core.model"},
}
"""Rooms within the core, and what each may import of it. None of them knows of the dispatcher."""


@pytest.mark.parametrize("room", sorted(INSIDE_CORE))
def test_a_room_of_the_core_imports_only_what_it_may(room: str) -> None:
    path = SRC / room
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "fairlead":
                assert ".".join(parts[1:3]) in INSIDE_CORE[room], f"{file.relative_to(SRC)} imports {name}"


def test_who_imports_the_dispatcher_within_the_core() -> None:
    """What the dispatcher is made of must not need it; ``check`` needs its type, ``make`` makes it."""
    files = sorted((SRC / "core").rglob("*.py"))
    found = [file.name for file in files if "fairlead.core.dispatcher" in imports(file)]
    assert found == ["invariants.py", "make.py"]


# ---- import cycles


def modules() -> dict[str, Path]:
    found = {}
    for path in SRC.rglob("*.py"):
        parts = ("fairlead", *path.relative_to(SRC).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def run_at_import(tree: ast.Module, *, for_types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run when the module is imported; with ``for_types`` also those for checkers."""
    pending: list[ast.AST] = [*tree.body]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and not for_types and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)


def graph(*, for_types: bool) -> dict[str, set[str]]:
    """Return what each module imports of ours."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for node in run_at_import(ast.parse(path.read_text()), for_types=for_types):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            else:
                both = [(f"{node.module}.{alias.name}", node.module or "") for alias in node.names]
                found[name] |= {inner if inner in known else outer for inner, outer in both}
        found[name] &= known.keys()
    return found


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle; none if there is no circle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}), "the test itself finds circles"
    assert cycle(graph(for_types=False)) == []


def test_within_the_core_no_circle_exists_for_types_either_but_of_check() -> None:
    edges = {
        name: found for name, found in graph(for_types=True).items() if name.startswith("fairlead.core.")
    }
    edges["fairlead.core.invariants"].remove("fairlead.core.dispatcher")
    assert cycle(edges) == []
