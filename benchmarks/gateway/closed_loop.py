"""What a light client gets beside heavy ones: the gateway in front of an embedded engine, closed loops.

    python -m benchmarks.gateway.closed_loop                       # both tables, seven minutes
    python -m benchmarks.gateway.closed_loop --part shares --order dlpm --slots 4 --open 2 --seconds 20
    python -m benchmarks.gateway.closed_loop --max-ratio 1.25 --max-wait 2 --json out/closed-loop.json

Starts `fairlead engine` and `fairlead serve` on 127.0.0.1, new ones for each row. All requests have the same
size: about 415 tokens of prompt, which no other shares, and 100 of output.

*Shares*: client `noisy` keeps 50 requests open, `quiet` keeps K. The engine runs N at a time (its slots).
Printed is the service (uncached prompt + 2 x output tokens, by the gateway's metrics) of noisy over that of
quiet. *Owed* is the same figure of the max-min shares of N slots. *Reach* is what can be had without keeping
slots free: a request of a client that opens no more than it is owed comes when all slots are taken, and waits
for the next of N to end, 1/N of a request's time if they end evenly. So K open requests hold K x N / (N + 1).
Under `priority` quiet always goes first: what it gets there is the best that it can have without a free slot.

*Wait*: 20 heavy clients keep 10 requests open each. Twelve light ones keep one open, and pause for 1.2 s
(mean) after each answer. Each of the 32 is owed N / 32 slots. The light ones are owed 3 of 8 together, and
use about half of that. Their time to first token is compared with what they see without the heavy ones, on
an engine with the slots that they are owed (rounded down).

All clients begin at once, and nobody was served anything yet: the first seconds are a contest of newcomers. A
row covers `--seconds` after `--warm-up`. Exit code 1 if the default order (any, where --order is given)
exceeds `--max-ratio` or `--max-wait`, or a request failed; 130 on Ctrl-C, with engine and gateway stopped.
"""

import argparse
import asyncio
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gateway.loops import Clients, Loop, Seen
from fairlead.core.ordering import ORDERINGS
from fairlead.core.params import PolicyError
from fairlead.core.registry import parse_spec
from fairlead.core.routing import POLICIES
from fairlead.demo import processes
from fairlead.http.client import Pool
from fairlead.report.distribution import percentile
from fairlead.report.fairness import fair_shares

DEFAULT = ""
"""The order that `fairlead serve` has without an option."""
PAPER = "dlpm:light=off,quantum=8192"
"""DLPM without its rules for light clients, as in the paper, and with a fixed quantum."""
PRIORITY = "priority"
"""Here quiet has the higher weight, so that it always goes first."""
NOISY_OPEN = 50
CELLS = (
    *((4, 2, order) for order in ("fcfs", "vtc", "dlpm:light=off,quantum=1000", PAPER, DEFAULT, PRIORITY)),
    *((4, 4, order) for order in ("vtc", PAPER, DEFAULT)),
    *((8, 8, order) for order in ("vtc", PAPER, DEFAULT)),
)
"""Slots, requests that quiet keeps open, order."""
HEAVY, HEAVY_OPEN, HEAVY_SLOTS = 20, 10, 8
LIGHT, LIGHT_THINK_S = 12, 1.2
WAIT_ORDERS = ("fcfs", "vtc", PAPER, DEFAULT)
MODEL = "closed-loop"


class Shares(NamedTuple):
    """A row of the first table. Service in units, times in seconds."""

    slots: int
    open: int
    order: str
    noisy: float
    quiet: float
    answers: int
    failed: int
    ttft_p50_s: float
    ttft_p99_s: float

    @property
    def ratio(self) -> float:
        """Service of noisy over that of quiet."""
        return self.noisy / self.quiet if self.quiet else math.inf

    @property
    def owed(self) -> float:
        """The same of the max-min shares of the slots."""
        noisy, quiet = fair_shares([NOISY_OPEN, self.open], [1.0, 1.0], self.slots)
        return noisy / quiet

    @property
    def reach(self) -> float:
        """The same where each of quiet's requests waits for the next slot to come free."""
        quiet = min(self.slots / (1 + self.owed), self.open * self.slots / (self.slots + 1))
        return (self.slots - quiet) / quiet


class Wait(NamedTuple):
    """A row of the second table: times to first token of the light clients, in seconds."""

    title: str
    slots: int
    order: str
    answers: int
    failed: int
    ttft_p50_s: float
    ttft_p99_s: float


class Bench:
    """Runs rows, one after the other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.seconds: float = args.seconds
        self.warm_up: float = args.warm_up
        self.policy: str = args.policy
        self.speed: float = args.speed
        self.seed: int = args.seed

    async def shares(self, slots: int, quiet_open: int, order: str) -> Shares:
        """Measure a row of the first table."""
        loops = [Loop("noisy", NOISY_OPEN), Loop("quiet", quiet_open)]
        what = f"{slots} slots, quiet opens {quiet_open}, {named(order)}"
        service, seen = await self._run(what, slots, order, loops)
        times = sorted(seen["quiet"].ttft_s) or [math.nan]
        return Shares(
            slots, quiet_open, order, service["noisy"], service["quiet"],
            seen["quiet"].ended, failures(seen), percentile(times, 50), percentile(times, 99),
        )  # fmt: skip

    async def wait(self, title: str, slots: int, order: str, heavy: int) -> Wait:
        """Measure a row of the second table, with so many heavy clients."""
        light = [Loop(f"light-{i}", 1, LIGHT_THINK_S) for i in range(LIGHT)]
        loops = light + [Loop(f"heavy-{i}", HEAVY_OPEN) for i in range(heavy)]
        _, seen = await self._run(f"{title}, {slots} slots, {named(order)}", slots, order, loops)
        times = sorted(t for loop in light for t in seen[loop.name].ttft_s) or [math.nan]
        ended = sum(seen[loop.name].ended for loop in light)
        return Wait(title, slots, order, ended, failures(seen), percentile(times, 50), percentile(times, 99))

    async def _run(
        self, what: str, slots: int, order: str, loops: list[Loop]
    ) -> tuple[dict[str, float], dict[str, Seen]]:
        """Return each client's service in the window, and what it saw."""
        keys = {loop.name: f"key-of-{loop.name}" for loop in loops}
        size = ["--max-num-seqs", str(slots), "--speed", str(self.speed), "--model-name", MODEL]
        policies = ["--policy", self.policy, *(["--order", order] if order else [])]
        weights = {"quiet": 2.0} if order == PRIORITY else {}
        with processes.workspace() as name:
            folder = Path(name)
            progress(f"{what}: starts")
            async with (
                processes.engines(folder, 1, size) as workers,
                processes.gateway(folder, workers, policies, keys, weights) as url,
                Clients(url, MODEL, loops, keys, self.seed) as clients,
            ):
                await self._pass(f"{what}: warms up", self.warm_up)
                before = await service_of(url)
                clients.begin_window()
                await self._pass(what, self.seconds)
                after = await service_of(url)
                seen = clients.end_window()
        progress("")
        return {name: after.get(name, 0.0) - before.get(name, 0.0) for name in keys}, seen

    async def _pass(self, what: str, seconds: float) -> None:
        """Let time pass, and say so."""
        clock = asyncio.get_running_loop()
        began = clock.time()
        while (left := seconds - (clock.time() - began)) > 0:
            progress(f"{what}, {seconds - left:.0f} of {seconds:.0f} s")
            await asyncio.sleep(min(1.0, left))


async def service_of(url: str) -> dict[str, float]:
    """Return what the gateway says that each client was served."""
    pool = Pool(url)
    try:
        _, _, body = await pool.fetch(b"GET", b"/metrics", timeout=30.0)
    finally:
        await pool.close()
    return {
        sample.labels["client"]: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "fairlead_service_total" and "client" in sample.labels
    }


def failures(seen: dict[str, Seen]) -> int:
    """Count what failed, and say why."""
    for name, one in seen.items():
        if one.failed:
            print(f"{name}: {one.failed} requests failed, the last with: {one.last_error}", file=sys.stderr)
    return sum(one.failed for one in seen.values())


def named(order: str) -> str:
    return order or "the default order"


def progress(text: str) -> None:
    """Show what is being done, where somebody looks; an empty text takes it away."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1000 * seconds:,.0f}"


async def all_shares(bench: Bench, cells: list[tuple[int, int, str]]) -> list[Shares]:
    """Measure and print the first table."""
    print(f"{'slots':>5} {'open':>4}  {'order':27} {'noisy : quiet':>13} {'owed':>5} {'reach':>5}", end="")
    print(f"  {'answers':>7} {'quiet TTFT ms: median':>21} {'P99':>6}")
    rows = []
    for slots, quiet_open, order in cells:
        row = await bench.shares(slots, quiet_open, order)
        rows.append(row)
        print(
            f"{slots:5} {quiet_open:4}  {order or '(default)':27} {row.ratio:13.2f} {row.owed:5.2f}", end=""
        )
        times = f"{ms(row.ttft_p50_s):>21} {ms(row.ttft_p99_s):>6}"
        print(f" {row.reach:5.2f}  {row.answers:7} {times}", flush=True)
    return rows


async def all_waits(bench: Bench, orders: list[str], slots: int) -> list[Wait]:
    """Measure and print the second table; the first row is that of the light clients alone."""
    owed = LIGHT * slots / (LIGHT + HEAVY)
    print(f"\n{LIGHT} light clients are owed {owed:.2f} of {slots} slots beside {HEAVY} heavy ones")
    print(f"{'':10} {'slots':>5}  {'order':27} {'answers':>7} {'TTFT ms: median':>15} {'P99':>6}")
    plan = [("alone", max(1, math.floor(owed)), DEFAULT, 0)]
    plan += [(f"with {HEAVY}", slots, order, HEAVY) for order in orders]
    rows = []
    for title, count, order, heavy in plan:
        row = await bench.wait(title, count, order, heavy)
        rows.append(row)
        times = f"{ms(row.ttft_p50_s):>15} {ms(row.ttft_p99_s):>6}"
        print(f"{title:10} {count:5}  {order or '(default)':27} {row.answers:7} {times}", flush=True)
    return rows


def exceeded(args: argparse.Namespace, shares: list[Shares], waits: list[Wait]) -> list[str]:
    """Return what is beyond the bars, one line each."""
    judged = set(args.order or [DEFAULT])
    found = []
    for share in shares:
        bar = (args.max_ratio or math.inf) * share.reach
        if share.order in judged and share.ratio > bar:
            what = f"{share.slots} slots, {share.open} open, {named(share.order)}"
            found.append(f"{what}: noisy : quiet is {share.ratio:.2f}, the bar {bar:.2f}")
    for wait in waits[1:]:
        times = wait.ttft_p99_s / waits[0].ttft_p99_s
        if wait.order in judged and times > (args.max_wait or math.inf):
            found.append(f"{named(wait.order)}: light clients' P99 is {times:.2f} x that of alone")
    failed = sum(share.failed for share in shares) + sum(wait.failed for wait in waits)
    return found + ([f"{failed} requests failed"] if failed else [])


async def main_async(args: argparse.Namespace) -> int:
    """Measure, print, write, judge."""
    task = asyncio.current_task()
    assert task is not None
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
    bench = Bench(args)
    orders = args.order or None
    cells = list(CELLS)
    if args.slots or args.open:
        cells = [(args.slots or 4, args.open or 2, order) for order in orders or [DEFAULT]]
    elif orders:
        sizes = dict.fromkeys((slots, count) for slots, count, _ in CELLS)
        cells = [(slots, count, order) for slots, count in sizes for order in orders]
    shares, waits = [], []
    if args.part in {"shares", "all"}:
        shares = await all_shares(bench, cells)
    if args.part in {"wait", "all"}:
        waits = await all_waits(bench, orders or list(WAIT_ORDERS), args.slots or HEAVY_SLOTS)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(as_json(args, shares, waits), indent=2) + "\n")
    found = exceeded(args, shares, waits)
    for line in found:
        print(f"closed_loop: {line}", file=sys.stderr)
    return 1 if found else 0


def as_json(args: argparse.Namespace, shares: list[Shares], waits: list[Wait]) -> dict[str, Any]:
    """Return the figures as --json writes them; an order of "" is the default one."""
    return {
        "seconds": args.seconds,
        "warm_up": args.warm_up,
        "speed": args.speed,
        "seed": args.seed,
        "policy": args.policy,
        "shares": [
            row._asdict() | {"ratio": row.ratio, "owed": row.owed, "reach": row.reach} for row in shares
        ],
        "wait": [row._asdict() for row in waits],
    }


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 3600")
    return value


def count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 256:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 256")
    return value


def main() -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--part", choices=("shares", "wait", "all"), default="all", help="which table")
    parser.add_argument("--order", action="append", metavar="POLICY", help="only this order; may be repeated")
    parser.add_argument("--policy", default="marginal", help="routing policy (default: %(default)s)")
    parser.add_argument("--slots", type=count, metavar="N", help="only an engine with so many slots")
    parser.add_argument("--open", type=count, metavar="K", help="only so many requests of quiet open")
    parser.add_argument("--seconds", type=positive, default=15.0, help="of each row (default: %(default)g)")
    parser.add_argument("--warm-up", type=positive, default=5.0, help="seconds before (default: %(default)g)")
    parser.add_argument("--speed", type=positive, default=4.0, help="of the engine (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of the pauses (default: %(default)s)")
    parser.add_argument("--max-ratio", type=positive, metavar="R", help="bar: noisy : quiet is R x reach")
    parser.add_argument("--max-wait", type=positive, metavar="R", help="bar: P99 TTFT is R x that of alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args()
    try:
        for order in args.order or []:
            ORDERINGS.resolve(*parse_spec(order))
        POLICIES.resolve(*parse_spec(args.policy))
        return uvloop.run(main_async(args))
    except PolicyError as error:
        parser.error(str(error))
    except processes.DemoError as error:
        print(f"closed_loop: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress("")
        print("interrupted; engine and gateway are stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
