"""Which code a result follows from: the sources of a module and of all that it imports here."""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
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


@lru_cache
def hash_of_package(module: str) -> str:
    """Return a hash of all files of the package that ``module`` is in, or of ``module`` if it is in none.

    For packages of others, whose imports are not followed. Taken once a process, as ``hash_of``.
    """
    top = module.partition(".")[0]
    spec = find_spec(top)
    if spec is None:
        raise ValueError(f"the source of module '{module}' cannot be found")
    roots = [Path(place) for place in spec.submodule_search_locations or ()]
    files = {path.relative_to(root).as_posix(): path for root in roots for path in root.rglob("*")}
    if not roots and spec.origin:
        files = {Path(spec.origin).name: Path(spec.origin)}
    state = hashlib.blake2b(top.encode(), digest_size=16)
    for name, path in sorted(files.items()):
        if path.is_file() and "__pycache__" not in path.parts:
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
