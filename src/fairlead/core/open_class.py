"""Marks a class that interpreted classes may inherit from, also where it is compiled (docs/compiled.md).

The mark is for mypyc, which is installed wherever fairlead is compiled. At run time it means nothing, so
the core needs no package for it.
"""

from typing import TYPE_CHECKING

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**_):
        """Leave the class as it is."""
        return lambda cls: cls
