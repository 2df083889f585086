"""Which code a result follows from: the sources of a module and of all that it imports here."""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from fairlead import __version__

_ROOT = Path(__file__).parent.parent


@lru_cache
def hash_of(module: str) -> str:
    """Return a hash of the version and of the source of ``module`` and of each module that it imports.

    Taken once a process: it is this process's code, not what files say by now.
    """
    state = hashlib.blake2b(__version__.encode(), digest_size=16)
    for name, path in sorted(sources(module).items()):
        state.update(f"\0{name}\0".encode() + path.read_bytes())
    return state.hexdigest()


def sources(name: str) -> dict[str, Path]:
    """Return the modules of fairlead that module ``name`` imports, directly or not, and their files."""
    found: dict[str, Path] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        path = _path(module)
        if path is None or module in found:
            continue
        found[module] = path
        waiting += [module.rpartition(".")[0], *_imports(path)]
    return found


def _path(module: str) -> Path | None:
    """Return a module's file; None for what is no module of fairlead, such as a name inside one."""
    top, *rest = module.split(".")
    if top != "fairlead":
        return None
    base = _ROOT.joinpath(*rest)
    places = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((path for path in places if path.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
