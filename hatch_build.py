"""Puts the compiled hot path into the wheel when FAIRLEAD_COMPILE=1; otherwise the wheel is pure."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface[Any]):
    """Compiles with scripts/compile.py. Editable installs are compiled in place instead: ``make fast``."""

    def dependencies(self) -> list[str]:
        """Return what compiling needs, for an isolated build."""
        return ["mypy[mypyc]>=2.4", "msgspec>=0.19"] if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the extension modules to the wheel and give it this platform's tag."""
        if not _wanted() or version == "editable":
            return
        spec = importlib.util.spec_from_file_location(
            "compile_hot_path", Path(self.root, "scripts", "compile.py")
        )
        assert spec is not None
        assert spec.loader is not None
        compiler = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compiler)
        into = Path(compiler.WORK, "wheel")
        for path in compiler.build(into, self.app.display_info):
            build_data["force_include"][str(path)] = str(path.relative_to(into))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _wanted() -> bool:
    return os.environ.get("FAIRLEAD_COMPILE", "0") not in {"", "0"}
