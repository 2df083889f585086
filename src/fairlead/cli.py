"""The command line: one sub-command a module, imported only when it is used."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fairlead import __version__, compiled
from fairlead.core.params import PolicyError


class _Command(NamedTuple):
    module: str
    help: str


COMMANDS = {
    "serve": _Command(
        "fairlead.gateway.command", "run the gateway: OpenAI-compatible, in front of your engines"
    ),
    "engine": _Command("fairlead.engine.command", "run a model of an LLM engine, served over HTTP"),
    "demo": _Command(
        "fairlead.demo.command", "show the difference live: four engines, the gateway, four clients"
    ),
    "verify": _Command(
        "fairlead.simulate.commands.verify", "repeat the decisions of a decision log, and compare"
    ),
    "profile": _Command("fairlead.engine.profile_command", "list, show, fit and check engine profiles"),
    "simulate": _Command(
        "fairlead.simulate.commands.simulate", "run one policy on a workload, in virtual time"
    ),
    "replay": _Command("fairlead.replay.command", "send a workload to a live endpoint, for the same report"),
    "report": _Command(
        "fairlead.report.command", "show results as an HTML file, as Markdown, or in the terminal"
    ),
    "compare": _Command(
        "fairlead.simulate.commands.compare",
        "compare policies on the same requests, with confidence intervals",
    ),
    "experiment": _Command(
        "fairlead.simulate.commands.experiment", "repeat what the papers report: E1 to E5"
    ),
    "policies": _Command(
        "fairlead.policies", "list every ordering and routing policy, its source and parameters"
    ),
}


class _Version(argparse.Action):
    """Says the version, and whether the hot path is compiled; only then is that looked up."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002 - argparse's
        super().__init__(
            option_strings,
            dest,
            nargs=0,
            default=argparse.SUPPRESS,
            help=help or "print the version and exit",
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print and exit."""
        print(f"fairlead {__version__} ({'compiled' if compiled() else 'pure Python'})")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fairlead``. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="fairlead",
        description="Schedules LLM requests: fair to clients, prefix-cache aware, balanced over workers.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    # Only the chosen command's module is imported: `fairlead serve` must not pay for the demo's table.
    chosen = next((word for word in words if word in COMMANDS), None)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        return int(args.run(args))
    except PolicyError as error:
        print(f"fairlead {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
