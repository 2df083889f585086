"""One registry for both kinds of policy: ours, and those of other packages.

A policy of ours is one file and one line in its package's tuple. One of another package is found by
its entry point (groups ``fairlead.ordering`` and ``fairlead.routing``). The core does no I/O, so the
finder of entry points is an argument: ``fairlead`` sets it when it is imported (``fairlead.external``).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar, cast

from fairlead.core.params import Param, PolicyError, Values, nearest, resolve


class Described(Protocol):
    """What a policy class says of itself."""

    name: ClassVar[str]
    source: ClassVar[str]
    """Where the rule comes from: paper and section, or project."""
    summary: ClassVar[str]
    """The rule in one line."""
    params: ClassVar[tuple[Param, ...]]


class External(NamedTuple):
    """A policy that another package offers. Nothing of that package is imported before ``load``."""

    name: str
    package: str
    """The distribution that offers it, for messages."""
    load: Callable[[], object]
    """Import the policy's class and return it. May raise anything."""


Finder = Callable[[str], Iterable[External]]
"""Given the name of a group of entry points, say which policies other packages offer in it."""

_finders: list[Finder] = []


def add_finder(finder: Finder) -> None:
    """Ask ``finder`` too, from the next registry on that has not looked for external policies yet."""
    _finders.append(finder)


P = TypeVar("P", bound=Described)


class Registry(Generic[P]):
    """Policies by name. Unknown names raise ``PolicyError`` listing the valid ones."""

    def __init__(self, kind: str, classes: Iterable[type[P]], group: str = "", method: str = "") -> None:
        """``group`` names the entry points of external policies; ``method`` is one that each must have."""
        self.kind = kind
        self.group = group
        self._method = method
        self._classes: dict[str, type[P]] = {}
        self._found: dict[str, External] | None = None
        for cls in classes:
            if cls.name in self._classes:
                raise ValueError(f"two classes are called '{cls.name}', each {kind} needs a name of its own")
            self._classes[cls.name] = cls
        self._built_in = tuple(self._classes)

    def built_in(self) -> list[str]:
        """Return the names of fairlead's own policies in the order of registration."""
        return list(self._built_in)

    def names(self) -> list[str]:
        """Return all names: fairlead's own in the order of registration, then others' by name."""
        return [*self._built_in, *sorted(self._external())]

    def get(self, name: str) -> type[P]:
        """Return the class called ``name``."""
        found = self._classes.get(name)
        if found is not None:
            return found
        external = self._external().get(name)
        if external is None:
            valid = ", ".join(self.names())
            raise PolicyError(f"unknown {self.kind} '{name}' (valid: {valid}){nearest(name, self.names())}")
        loaded = self._classes[name] = self._load(external)
        return loaded

    def package(self, name: str) -> str:
        """Return the package that offers ``name``; empty for fairlead's own."""
        external = self._external().get(name)
        return "" if external is None else external.package

    def resolve(self, name: str, given: Mapping[str, object] | None = None) -> Values:
        """Return every parameter of ``name`` with ``given`` applied and checked."""
        return resolve(name, self.get(name).params, given or {})

    def _external(self) -> dict[str, External]:
        """Look for the policies of other packages, once."""
        if self._found is None:
            found: dict[str, External] = {}
            self._found = found
            for finder in _finders if self.group else ():
                for external in finder(self.group):
                    # A name of ours keeps its meaning, and of two packages the first keeps it.
                    if external.name not in self._built_in:
                        found.setdefault(external.name, external)
        return self._found

    def _load(self, external: External) -> type[P]:
        where = f"{self.kind} '{external.name}' of package '{external.package}'"
        try:
            cls = external.load()
        except Exception as error:
            raise PolicyError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(cls, type):
            raise PolicyError(f"{where} is {cls!r}: the entry point must name a class")
        missing = [
            word
            for word in ("name", "source", "summary", "params", self._method)
            if word and not hasattr(cls, word)
        ]
        if missing:
            raise PolicyError(f"{where}: its class {cls.__name__} has no {', '.join(missing)}")
        found = cast("type[P]", cls)
        if found.name != external.name:
            raise PolicyError(f"{where}: its class is called '{found.name}'; both names must be the same")
        return found


def parse_spec(spec: str) -> tuple[str, dict[str, object]]:
    """Split ``name`` or ``name:key=value,key=value``, the form that command lines use."""
    name, _, rest = spec.partition(":")
    given: dict[str, object] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise PolicyError(f"{name}: '{part}' is not key=value (write {name}:key=value,key=value)")
        key = key.strip()
        if key in given:
            raise PolicyError(f"{name}: parameter '{key}' is given twice")
        given[key] = value.strip()
    return name.strip(), given
