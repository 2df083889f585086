"""Command-line flags of the simulated fleet, shared by the commands that simulate."""

import argparse
from pathlib import Path
from typing import Any

from fairlead.core.ordering import ORDERINGS
from fairlead.core.registry import Registry, parse_spec
from fairlead.core.routing import POLICIES
from fairlead.engine.profiles import PROFILES
from fairlead.simulate.settings import ENGINE, GATEWAY, Fault, Settings
from fairlead.trace.workload import Workload

GENERATOR_LOAD = 0.7
"""What a generator's arrivals are scaled to if nothing is said: its own rate knows nothing of the fleet."""


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that make ``Settings``, but for the policies and the seed."""
    default = Settings()
    group = parser.add_argument_group("fleet")
    add = group.add_argument
    shown = " (default: %(default)s)"
    add("--workers", type=int, default=default.workers, help="number of engines" + shown)
    add(
        "--engine",
        default=default.engine,
        metavar="PROFILE",
        help=f"model and GPU: {', '.join(PROFILES)}, or a file of `fairlead profile fit`" + shown,
    )
    add("--kv-tokens", type=int, default=0, help="tokens of each engine's KV pool (default: the profile's)")
    add("--max-num-seqs", type=int, default=0, help="most sequences in a batch (default: the profile's)")
    add(
        "--max-num-batched-tokens", type=int, default=0, help="most tokens in a step (default: the profile's)"
    )
    add("--max-model-len", type=int, default=0, help="context length (default: the profile's)")
    add(
        "--topology",
        choices=(GATEWAY, ENGINE),
        default=default.topology,
        help="where requests wait: in the gateway, until a worker has capacity, or in the engines" + shown,
    )
    add(
        "--hop-ms",
        type=float,
        default=default.hop_us / 1e3,
        help="milliseconds from gateway to engine, and back" + shown,
    )
    add(
        "--round-trip-ms",
        type=float,
        default=default.round_trip_us / 1e3,
        help="milliseconds from an answer to the next request of a client of --concurrency, without its"
        " think time" + shown,
    )
    add("--exact-cache", action="store_true", help="the gateway follows the engines' KV-cache events")
    add("--sync-scheduling", action="store_true", help="engines schedule a step when the last one has ended")
    group = parser.add_argument_group("trouble")
    add = group.add_argument
    add(
        "--stale",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds by which the gateway hears of engines late",
    )
    add(
        "--queue-timeout",
        type=float,
        default=0.0,
        metavar="S",
        help="longest wait in a queue (default: no limit)",
    )
    add("--max-queued", type=int, default=0, help="most requests that may wait (default: no limit)")
    add("--client-timeout", type=float, default=0.0, metavar="S", help="seconds after which clients hang up")
    add("--cancel-share", type=float, default=0.0, help="share of requests whose client hangs up early")
    add(
        "--fault",
        action="append",
        default=[],
        metavar="WORKER,AT[,FOR]",
        help="worker (from 0) dies AT seconds and returns FOR seconds later, with an empty cache",
    )
    group = parser.add_argument_group("simulation")
    add = group.add_argument
    add(
        "--until",
        type=float,
        default=0.0,
        metavar="S",
        help="end of the simulation (default: when all is done)",
    )
    add(
        "--interval",
        type=float,
        default=default.interval_us / 1e6,
        metavar="S",
        help="interval of time series" + shown,
    )
    add("--step-by-step", action="store_true", help="simulate each step: the same results, slower")


def settings_from(args: argparse.Namespace, **more: Any) -> Settings:
    """Return the ``Settings`` that the flags name, with ``more`` on top. Raises ValueError naming a flag."""
    settings = Settings(
        workers=args.workers,
        engine=args.engine,
        kv_tokens=_at_least_0(args, "kv_tokens"),
        max_num_seqs=_at_least_0(args, "max_num_seqs"),
        max_num_batched_tokens=_at_least_0(args, "max_num_batched_tokens"),
        max_model_len=_at_least_0(args, "max_model_len"),
        topology=args.topology,
        hop_us=max(1, round(_at_least_0(args, "hop_ms") * 1e3)),
        round_trip_us=round(_at_least_0(args, "round_trip_ms") * 1e3),
        exact_cache=args.exact_cache,
        async_scheduling=not args.sync_scheduling,
        stale_us=_us(args, "stale"),
        queue_timeout_us=_us(args, "queue_timeout"),
        max_queued=_at_least_0(args, "max_queued") or Settings().max_queued,
        client_timeout_us=_us(args, "client_timeout"),
        cancel_share=args.cancel_share,
        faults=tuple(map(parse_fault, args.fault)),
        until_us=_us(args, "until"),
        interval_us=_us(args, "interval"),
        fast_forward=not args.step_by_step,
        **more,
    )
    settings.check()
    settings.profile()
    kinds: tuple[tuple[str, Registry[Any]], ...] = ((settings.policy, POLICIES), (settings.order, ORDERINGS))
    for spec, registry in kinds:
        registry.resolve(*parse_spec(spec))
    return settings


def default_load(workload: Workload) -> float:
    """Return the load where none is asked for: of a recording and of closed loops alone, none.

    Raises ``TraceError`` for a workload that cannot be.
    """
    return 0.0 if Path(workload.source).exists() or workload.only_loops() else GENERATOR_LOAD


def check_has_load(flag: str, load: float, workload: Workload) -> None:
    """Raise ValueError for a load of a workload in which no client sends when the trace says."""
    if load and workload.only_loops():
        raise ValueError(
            f"{flag} spaces arrivals, and with --concurrency for every client none is left that keeps its"
            " times: leave one of the two out"
        )


def parse_fault(told: str) -> Fault:
    """Read ``WORKER,AT[,FOR]``, the times in seconds."""
    parts = told.split(",")
    try:
        worker, at = int(parts[0]), float(parts[1])
        length = float(parts[2]) if len(parts) == 3 else 0.0
        if len(parts) > 3 or at < 0 or length < 0:
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"--fault '{told}': write WORKER,AT or WORKER,AT,FOR, such as 2,60,30") from None
    return Fault(worker, int(at * 1e6), int(length * 1e6))


def _at_least_0(args: argparse.Namespace, name: str) -> Any:
    value = getattr(args, name)
    if value < 0:
        raise ValueError(f"--{name.replace('_', '-')} cannot be negative")
    return value


def _us(args: argparse.Namespace, name: str) -> int:
    return int(_at_least_0(args, name) * 1e6)
