"""Which form of the hot path runs: extension modules compiled from the sources, or the sources.

``scripts/compile.py`` puts extension modules beside the sources, where Python prefers them, and a
stamp with the size and time of every file that went into them. If one differs, or ``FAIRLEAD_PURE=1``
is set, the sources are imported instead: an edit never runs old code. Without a stamp, as in an
installed wheel, extension modules are taken as they are.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own would cost more to import than all that is done here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import FileFinder, ModuleSpec

PACKAGE = os.path.dirname(__file__)
STAMP = os.path.join(PACKAGE, ".compiled")
"""A line a file: size, modification time in nanoseconds, digest of the content, path from ``PACKAGE``."""


def guard() -> None:
    """Import the sources from now on unless what was compiled is what they say."""
    if os.environ.get("FAIRLEAD_PURE", "0") not in {"", "0"} or not _fresh():
        sys.meta_path.insert(0, _SourcesOnly())


def compiled() -> bool:
    """Return whether the hot path runs as compiled code."""
    from importlib.util import find_spec  # noqa: PLC0415 - a millisecond that importing fairlead need not cost

    spec = find_spec("fairlead.core.dispatcher")
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")


def _fresh() -> bool:
    """Whether every file is as the stamp has it; also if there is no stamp."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        for line in lines:
            size, mtime_ns, _, path = line.split(" ", 3)
            stat = os.stat(os.path.join(PACKAGE, path))
            if stat.st_size != int(size) or stat.st_mtime_ns != int(mtime_ns):
                return False
    except (OSError, ValueError):  # a file is gone, or a stamp that is being replaced
        return False
    return bool(lines)


class _SourcesOnly:
    """Finds this package's modules as ``.py`` files only."""

    def __init__(self) -> None:
        self._finders: dict[str, FileFinder] = {}

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: object = None,  # noqa: ARG002 - the protocol's
    ) -> ModuleSpec | None:
        """Find a module of the package below one of its directories."""
        if not name.startswith("fairlead."):
            return None
        for directory in path or ():
            found = self._finder(directory).find_spec(name)
            if found is not None:
                return found
        return None

    def _finder(self, directory: str) -> FileFinder:
        finder = self._finders.get(directory)
        if finder is None:
            from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader  # noqa: PLC0415 - as above

            finder = self._finders[directory] = FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES))
        return finder
