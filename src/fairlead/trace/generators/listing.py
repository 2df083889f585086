"""The list of generators as Markdown, read from their declarations."""

from collections import Counter

from fairlead.core.params import Param
from fairlead.core.registry import Registry
from fairlead.trace.generators.base import Generator


def markdown(registry: Registry[Generator]) -> str:
    """Return a table of the generators, one of the parameters that several have, and one for each."""
    kinds = [registry.get(name) for name in registry.names()]
    rows = ["| workload | what it is | source | clients |", "|---|---|---|---|"]
    rows += [f"| `{kind.name}` | {kind.summary} | {kind.source} | {kind.clients} |" for kind in kinds]
    uses = Counter((p.name, p.help) for kind in kinds for p in kind.params)
    common = {key for key, count in uses.items() if count > 1}
    shown = {(p.name, p.help): p for kind in kinds for p in kind.params if (p.name, p.help) in common}
    rows += ["", "What several of them take (defaults in the tables below):", ""]
    rows += ["| parameter | meaning |", "|---|---|"]
    rows += [f"| `{p.name}` | {_meaning(p)} |" for p in shown.values()]
    for kind in kinds:
        rows += ["", f"### `{kind.name}`", "", "| parameter | default | meaning |", "|---|---|---|"]
        own = [p for p in kind.params if (p.name, p.help) not in common]
        rows += [f"| `{p.name}` | {_default(p)} | {_meaning(p)} |" for p in own]
        rest = ", ".join(f"`{p.name}={_default(p)}`" for p in kind.params if p not in own)
        rows += ["", f"And {rest}."]
    return "\n".join(rows)


def _meaning(param: Param) -> str:
    return param.help + (f" ({', '.join(param.choices)})" if param.choices else "")


def _default(param: Param) -> str:
    value = param.default
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
