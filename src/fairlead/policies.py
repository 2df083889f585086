"""``fairlead policies``: what can be picked, read from the registry."""

import argparse
import json
import sys
import textwrap
from typing import Any

from fairlead.core.ordering import ORDERINGS
from fairlead.core.params import PolicyError
from fairlead.core.registry import Described, Registry
from fairlead.core.routing import POLICIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables, as in the README")


def run(args: argparse.Namespace) -> int:
    """Print every policy."""
    kinds: list[tuple[str, Registry[Any]]] = [
        ("ordering (--order): who goes next in a queue", ORDERINGS),
        ("routing (--policy): which worker", POLICIES),
    ]
    if args.json:
        print(json.dumps({r.kind: _usable(r) for _, r in kinds}, indent=2))
        return 0
    for title, registry in kinds:
        if args.markdown:
            print(markdown_table(registry))
        else:
            print(f"{title}\n")
            for name in registry.names():
                print(_shown_or_why_not(registry, name))
        print()
    return 0


def markdown_table(registry: Registry[Any]) -> str:
    """Return one Markdown table of a kind of policy."""
    rows = [f"| {registry.kind} | rule | source | parameters |", "|---|---|---|---|"]
    for name in registry.built_in():
        policy = registry.get(name)
        params = ", ".join(f"`{p.name}={shown(p.default)}`" for p in policy.params) or "none"
        rows.append(f"| `{name}` | {policy.summary} | {policy.source} | {params} |")
    return "\n".join(rows)


def _facts(policy: type[Described], package: str) -> dict[str, object]:
    params = [{"name": p.name, "default": p.default, "help": p.help} for p in policy.params]
    facts: dict[str, object] = {"name": policy.name, "summary": policy.summary, "source": policy.source}
    if package:
        facts["package"] = package
    return facts | {"parameters": params}


def _usable(registry: Registry[Any]) -> list[dict[str, object]]:
    """Return the facts of each policy that can be loaded; say on stderr why another cannot."""
    facts = []
    for name in registry.names():
        try:
            facts.append(_facts(registry.get(name), registry.package(name)))
        except PolicyError as error:
            print(f"fairlead policies: {error}", file=sys.stderr)
    return facts


def _shown_or_why_not(registry: Registry[Any], name: str) -> str:
    """Describe a policy. One of another package that cannot be loaded must not hide the others."""
    try:
        return _text(registry.get(name), registry.package(name))
    except PolicyError as error:
        return f"  {name}\n      {error}"


def shown(value: object) -> str:
    """Return a parameter's value as it is given on the command line."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _text(policy: type[Described], package: str) -> str:
    lines = [f"  {policy.name}"]
    lines += textwrap.wrap(policy.summary, 96, initial_indent="      ", subsequent_indent="      ")
    lines.append(f"      source: {policy.source}")
    if package:
        lines.append(f"      package: {package}")
    for p in policy.params:
        text = f"{p.name}={shown(p.default)}  {p.help}"
        lines += textwrap.wrap(text, 96, initial_indent="        ", subsequent_indent="            ")
    return "\n".join(lines)
