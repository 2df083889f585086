"""Writes what the documentation takes from the code; ``--check`` only says which pages are not current.

In a page, a part between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is written here, by the function
of that name in ``PARTS``. docs/configuration.md is written as a whole.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fairlead
from fairlead import testing
from fairlead.cli import COMMANDS
from fairlead.config import Config, reference
from fairlead.core.ordering import ORDERINGS
from fairlead.core.params import Param
from fairlead.core.routing import POLICIES
from fairlead.gateway.app import Gateway
from fairlead.policies import markdown_table, shown
from fairlead.simulate.capacity import cache_folder

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
_PART = re.compile(r"(<!-- begin ([^>]+?) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


for registry in (ORDERINGS, POLICIES):
    registry._found = {}  # noqa: SLF001 - policies of packages that happen to be installed are not ours to list


def policies() -> str:
    """Return both tables of policies."""
    return f"{markdown_table(ORDERINGS)}\n\n{markdown_table(POLICIES)}"


def rules(kind: str) -> str:
    """Return a table of one kind of policy that leads to the sections of its page."""
    registry = ORDERINGS if kind == "ordering" else POLICIES
    rows = [f"| [`{name}`](#{name}) | {registry.get(name).summary} |" for name in registry.names()]
    return "\n".join(["| policy | rule |", "|---|---|", *rows])


def parameters(name: str) -> str:
    """Return the table of one policy's parameters."""
    policy = (ORDERINGS if name in ORDERINGS.names() else POLICIES).get(name)
    if not policy.params:
        return "No parameters."
    rows = [f"| `{p.name}` | `{shown(p.default)}` | {p.help}{_choices(p)} |" for p in policy.params]
    return "\n".join(["| parameter | default | meaning |", "|---|---|---|", *rows])


def _choices(param: Param) -> str:
    return f" ({', '.join(param.choices)})" if param.choices else ""


def metrics() -> str:
    """Return a table of what the gateway tells Prometheus, read from a gateway that was not started."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    gateway = Gateway(Config(worker_urls=("http://127.0.0.1:1",)))
    for family in gateway._exposition.collect():  # noqa: SLF001 - it belongs to the gateway's own endpoint
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        rows.append(f"| `{name}` | {family.type} | {labels or 'none'} | {family.documentation} |")
    return "\n".join(rows)


def commands() -> str:
    """Return a section for each command, with its arguments."""
    lines: list[str] = []
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"fairlead {name}", description=command.help)
        importlib.import_module(command.module).add_arguments(parser)
        lines += [f"## `fairlead {name}`", "", *_of(parser), ""]
        for title, sub in _nested(parser):
            lines += [f"### `fairlead {name} {title}`", "", *_of(sub), ""]
    return "\n".join(lines).rstrip()


def _nested(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list what was declared
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            yield from action.choices.items()


def _of(parser: argparse.ArgumentParser) -> list[str]:
    lines = [_sentence(parser.description), ""] if parser.description else []
    groups = parser._action_groups  # noqa: SLF001
    declared = [action for group in groups for action in group._group_actions]  # noqa: SLF001
    rows = [row for action in declared if (row := _row(action))]
    return [*lines, "| argument | meaning | default |", "|---|---|---|", *rows] if rows else lines


def _row(action: argparse.Action) -> str:
    """Return the table's row of one argument; empty for ``--help``, hidden ones and lists of sub-commands."""
    hidden = action.help == argparse.SUPPRESS
    if hidden or isinstance(action, argparse._HelpAction | argparse._SubParsersAction):  # noqa: SLF001
        return ""
    shown = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    if action.choices and not action.metavar:
        shown = "{" + ",".join(str(choice) for choice in action.choices if choice) + "}"
    value = " ".join(shown) if isinstance(shown, tuple) else shown
    if action.nargs in {"*", "+"}:
        value = f"{value} ..."
    both = isinstance(action, argparse.BooleanOptionalAction)
    flags = [f for f in action.option_strings if not (both and f.startswith("--no-"))] or [""]
    text = (action.help or "").replace("%%", "%")
    default = re.search(r" ?\(default:? (.*)\)$", text)
    text = text[: default.start()] if default else text
    told = re.sub(r"%\(default\)[sg]", lambda _: str(action.default), default[1] if default else "")
    told = told.replace(str(cache_folder()), "~/.cache/fairlead")
    name = ", ".join(f"`{f'{flag} {value}'.strip()}`" for flag in flags)
    return f"| {_cell(name)} | {_cell(text)} | {_cell(told)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."


def public_names() -> str:
    """Return what mkdocstrings is to describe: every public name, under the title of its kind."""
    lines: list[str] = []
    for title, modules in _KINDS.items():
        lines += [f"## {title}", ""]
        for module in modules:
            for name in _public(module):
                lines += [f"::: {module}.{name}", ""]
    return "\n".join(lines).rstrip()


def _public(module: str) -> list[str]:
    """Return the public names that a module defines, in the order of its source."""
    found = importlib.import_module(module)
    if module.startswith("fairlead.testing"):
        names = [n for n in testing.__all__ if getattr(getattr(testing, n), "__module__", "") == module]
    else:
        homes = fairlead._HOME  # noqa: SLF001 - the one list of where each name is
        names = [n for n, home in homes.items() if f"fairlead.{home}" == module]
    order = list(vars(found))
    return sorted(names, key=order.index)


_KINDS = {
    "The dispatcher": (
        "fairlead.core.make",
        "fairlead.core.dispatcher",
        "fairlead.core.settings",
        "fairlead.core.model",
        "fairlead.core.lifecycle",
    ),
    "Events": ("fairlead.core.events",),
    "Commands": ("fairlead.core.commands",),
    "Block keys": ("fairlead.core.keys",),
    "Ordering policies": ("fairlead.core.ordering.base",),
    "Routing policies": ("fairlead.core.routing.base",),
    "Parameters of policies": ("fairlead.core.params",),
    "Tests": (
        "fairlead.testing.world",
        "fairlead.testing.engine",
        "fairlead.testing.clock",
        "fairlead.testing.checks",
    ),
}
"""Where the public names are, for the page of the Python API."""


PARTS: dict[str, Callable[[], str]] = {
    "policies": policies,
    "public names": public_names,
    "metrics": metrics,
    "commands": commands,
    "rules of ordering": lambda: rules("ordering"),
    "rules of routing": lambda: rules("routing"),
}


def part(name: str) -> str:
    """Return one generated part. Raises KeyError for a name that is none."""
    if name.startswith("parameters of "):
        return parameters(name.removeprefix("parameters of "))
    return PARTS[name]()


def files(root: Path = ROOT) -> dict[Path, str]:
    """Return what every page with a generated part should hold, by path."""
    found = {CONFIGURATION: reference()}
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if _PART.search(text):
            found[path] = _PART.sub(lambda m: f"{m[1]}\n{part(m[2])}\n\n{m[3]}", text)
    return found


def main() -> int:
    """Write the pages, or say which are not current. Returns the exit code."""
    stale = [path for path, new in files().items() if path.read_text(encoding="utf-8") != new]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"not current: {path.relative_to(ROOT)}; run `make docs` or scripts/reference.py")
        return int(bool(stale))
    for path, new in files().items():
        if path in stale:
            path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
