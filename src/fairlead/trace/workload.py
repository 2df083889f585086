"""Makes a ``Trace`` from what a command line says: a file or a generator, clients, an attack, a length."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from fairlead.core.model import ClientId
from fairlead.core.params import nearest
from fairlead.core.registry import parse_spec
from fairlead.trace.clients import RULES, assign_clients
from fairlead.trace.generators import GENERATORS, generate
from fairlead.trace.generators.attack import ATTACKER, Kind, with_attacker
from fairlead.trace.loops import EVERYONE, loops_of, parse_loops, with_loops
from fairlead.trace.mapped import FORM as MAPPED
from fairlead.trace.mapped import SHAPE as MAP_SHAPE
from fairlead.trace.model import Loop, Trace, TraceError
from fairlead.trace.reading import READERS, read_trace
from fairlead.trace.stdin import STDIN, kept
from fairlead.trace.transform import limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be served.

    ``open`` makes the trace, ``attacked`` adds the misbehaving client, if any, and ``looped`` the closed
    loops, in this order: the maximum load is measured and arrivals are spaced before the other two.
    """

    source: str
    """A file or folder, or a generator's spec such as ``judge:dimensions=3``."""
    form: str = ""
    """Format of a file; empty: by its content."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the format, for files."""
    requests: int = 0
    """0: all of a file, a generator's default."""
    clients: int = 0
    """0: those of the trace, or a generator's default."""
    assign: str = ""
    """Rule that gives requests to clients; empty: as the trace says, by prefix if it names none."""
    skew: float = 0.0
    weights: Mapping[ClientId, float] = field(default_factory=dict)
    seed: int = 1
    max_prompt_tokens: int = 0
    max_total_tokens: int = 0
    attack: str = ""
    """``kind`` or ``kind:share``: a client that adds so much of the others' demand."""
    attack_at_s: float = 0.0
    concurrency: Mapping[ClientId, Loop] = field(default_factory=dict)
    """Clients that are closed loops; ``*`` stands for all that are not named."""

    def open(self) -> Trace:
        """Return the workload without its attacker. Raises ``TraceError`` or ``PolicyError``."""
        trace = self._opened()
        for client, weight in self.weights.items():
            if client not in trace.clients:
                known = ", ".join(list(trace.clients)[:8])
                hint = nearest(client, trace.clients)
                raise TraceError(f"weights: there is no client '{client}' (there are: {known}){hint}")
            if not weight > 0:
                raise TraceError(f"weights: the weight of '{client}' must be above 0, not {weight:g}")
        if self.weights:
            told = "/".join(f"{name}={weight:g}" for name, weight in sorted(self.weights.items()))
            trace = replace(
                trace,
                clients={**trace.clients, **self.weights},
                identity=f"{trace.identity}/weights/{told}",
            )
        loops_of(self.concurrency, [*trace.clients, *([ATTACKER] if self.attack else [])])  # refuses early
        return trace

    def _opened(self) -> Trace:
        name, _ = parse_spec(self.source)
        path = Path(self.source)
        if not path.exists() and name in GENERATORS.names():
            trace = generate(
                self.source,
                self.options,
                seed=self.seed,
                requests=self.requests or None,
                clients=self.clients or None,
            )
            return self._assigned(trace) if self.assign else trace
        if not path.exists():
            generators = ", ".join(GENERATORS.names())
            hint = nearest(name, GENERATORS.names())
            raise TraceError(
                f"'{self.source}' is neither a file nor a generator (there are: {generators}){hint}"
            )
        trace = read_trace(
            path,
            form=self.form or None,
            max_prompt_tokens=self.max_prompt_tokens or None,
            max_total_tokens=self.max_total_tokens or None,
            **self.options,
        )
        if self.requests and self.requests < trace.requests:
            trace = limit(trace, self.requests)
        if self.assign or (len(trace.clients) == 1 and self.clients > 1):
            return self._assigned(trace)
        if self.clients and len(trace.clients) != self.clients:
            raise TraceError(
                f"{self.source} has {len(trace.clients)} clients of its own, not {self.clients};"
                " name a rule with --assign to give its requests to others"
            )
        return trace

    def _assigned(self, trace: Trace) -> Trace:
        return assign_clients(trace, self.assign or "prefix", self.clients or 8, self.seed, self.skew)

    def attacked(self, trace: Trace) -> Trace:
        """Return ``trace`` with the misbehaving client, if the workload has one."""
        if not self.attack:
            return trace
        kind, share = parse_attack(self.attack)
        return with_attacker(trace, kind, share, at=int(self.attack_at_s * 1e6), seed=self.seed)

    def looped(self, trace: Trace) -> Trace:
        """Return ``trace`` with the closed loops, if the workload has any."""
        return with_loops(trace, self.concurrency)

    def only_loops(self) -> bool:
        """Whether no client sends when the trace says, so that there is no load. Raises as ``open`` does."""
        if not self.concurrency:
            return False
        clients = [*self.open().clients, *([ATTACKER] if self.attack else [])]
        return len(loops_of(self.concurrency, clients)) == len(clients)


def parse_attack(told: str) -> tuple[Kind, float]:
    """Split ``kind:share``; the share is 0.8 where none is given. Raises ``TraceError``."""
    word, _, amount = told.partition(":")
    kinds: tuple[Kind, ...] = get_args(Kind)
    for kind in kinds:
        if kind == word:
            try:
                share = float(amount or 0.8)
            except ValueError:
                break
            if 0 < share < 1000:
                return kind, share
    raise TraceError(f"attack '{told}': write kind or kind:share, kind one of {', '.join(kinds)}")


def add_workload_arguments(parser: argparse.ArgumentParser, *, loops: bool = True) -> None:
    """Declare the flags that make a ``Workload``; without ``loops``, no closed loops by option."""
    parser.add_argument(
        "workload",
        metavar="WORKLOAD",
        type=_source,
        help=f"a trace (file, archive, folder, or {STDIN} for standard input; formats: {', '.join(READERS)})"
        f" or a generator ({', '.join(GENERATORS.names())}), with options as in judge:dimensions=3",
    )
    group = parser.add_argument_group("workload")
    group.add_argument("--requests", type=int, default=0, help="use only the first ones (default: all)")
    group.add_argument("--form", default="", choices=["", *READERS], help="format of the trace")
    group.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the format or generator"
    )
    group.add_argument(
        "--map",
        default="",
        metavar="ROLE=FIELD,...",
        help=f"read any CSV, JSON or parquet table, the fields named so: {MAP_SHAPE}",
    )
    group.add_argument("--clients", type=int, default=0, help="number of clients (default: the workload's)")
    group.add_argument(
        "--assign", default="", choices=["", *RULES], help="give requests to clients by this rule"
    )
    group.add_argument("--skew", type=float, default=0.0, help="Zipf exponent of the clients' shares")
    group.add_argument("--weights", default="", metavar="NAME=W,...", help="weights of clients (default 1)")
    group.add_argument("--max-prompt-tokens", type=int, default=0, help="leave longer prompts out")
    group.add_argument("--max-total-tokens", type=int, default=0, help="leave longer requests out")
    group.add_argument(
        "--attack",
        default="",
        metavar="KIND[:SHARE]",
        help=f"add a misbehaving client with SHARE of the others' demand; KIND: {', '.join(get_args(Kind))}",
    )
    group.add_argument(
        "--attack-at", type=float, default=0.0, metavar="S", help="second at which the attack begins"
    )
    if loops:
        group.add_argument(
            "--concurrency",
            action="append",
            default=[],
            metavar="CLIENT=N[@S],...",
            help="this client is a closed loop: it keeps N requests (or sessions) open and sends the next"
            f" when one ends, after a mean think time of S seconds; {EVERYONE} stands for all other clients",
        )


def workload_from(args: argparse.Namespace, seed: int) -> Workload:
    """Return the ``Workload`` that the flags name. Raises ``TraceError``."""
    options = dict(_pairs("--option", part) for part in args.option)
    form = args.form
    if args.map:
        if form not in ("", MAPPED):
            raise TraceError(f"--map names the fields of a table, --form {form} a format that has its own")
        form, options["map"] = MAPPED, args.map
    weights: dict[str, float] = {}
    for part in filter(None, args.weights.split(",")):
        name, value = _pairs("--weights", part)
        try:
            weights[name] = float(value)
        except ValueError:
            raise TraceError(f"--weights: '{value}' is not a number") from None
    for flag in ("requests", "clients", "max_prompt_tokens", "max_total_tokens"):
        if getattr(args, flag) < 0:
            raise TraceError(f"--{flag.replace('_', '-')} cannot be negative")
    return Workload(
        source=args.workload,
        form=form,
        options=options,
        requests=args.requests,
        clients=args.clients,
        assign=args.assign,
        skew=args.skew,
        weights=weights,
        seed=seed,
        max_prompt_tokens=args.max_prompt_tokens,
        max_total_tokens=args.max_total_tokens,
        attack=args.attack,
        attack_at_s=args.attack_at,
        concurrency=parse_loops(getattr(args, "concurrency", ())),
    )


def _source(told: str) -> str:
    try:
        return kept(told)
    except TraceError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _pairs(flag: str, part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals:
        raise TraceError(f"{flag}: '{part}' is not of the form name=value")
    return key.strip(), value.strip()
