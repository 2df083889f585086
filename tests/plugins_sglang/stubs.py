"""Stand-ins for two packages that SGLang imports and that do nothing in its scheduler.

There is no build of them that goes with torch's CPU build. To be imported before SGLang.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence

PACKAGES = ("torchvision", "sgl_kernel")


class Anything(type):
    """A class whose every attribute is another one."""

    def __getattr__(cls, name: str) -> "Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Package(types.ModuleType):
    """A package in which every name is to be found."""

    __path__: Sequence[str] = ()
    __version__ = "0"

    def __getattr__(self, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".", maxsplit=1)[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Package(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Put the stand-ins where ``import`` finds them, once transformers has looked for the real ones."""
    import transformers.image_utils  # noqa: F401

    sys.meta_path.insert(0, Finder())
