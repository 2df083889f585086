"""One registry for both kinds of policy. A policy is one file and one line in its package's tuple."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Generic, Protocol, TypeVar

from fairlead.core.params import Param, PolicyError, Values, nearest, resolve


class Described(Protocol):
    """What a policy class says of itself."""

    name: ClassVar[str]
    source: ClassVar[str]
    """Where the rule comes from: paper and section, or project."""
    summary: ClassVar[str]
    """The rule in one line."""
    params: ClassVar[tuple[Param, ...]]


P = TypeVar("P", bound=Described)


class Registry(Generic[P]):
    """Policies by name. Unknown names raise ``PolicyError`` listing the valid ones."""

    def __init__(self, kind: str, classes: Iterable[type[P]]) -> None:
        self.kind = kind
        self._classes: dict[str, type[P]] = {}
        for cls in classes:
            if cls.name in self._classes:
                raise ValueError(f"two classes are called '{cls.name}', each {kind} needs a name of its own")
            self._classes[cls.name] = cls

    def names(self) -> list[str]:
        """Return the names in the order of registration."""
        return list(self._classes)

    def get(self, name: str) -> type[P]:
        """Return the class called ``name``."""
        found = self._classes.get(name)
        if found is None:
            valid = ", ".join(self._classes)
            raise PolicyError(f"unknown {self.kind} '{name}' (valid: {valid}){nearest(name, self._classes)}")
        return found

    def resolve(self, name: str, given: Mapping[str, object] | None = None) -> Values:
        """Return every parameter of ``name`` with ``given`` applied and checked."""
        return resolve(name, self.get(name).params, given or {})


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
