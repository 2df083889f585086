"""What a light client gets beside a heavy one, inside a real vLLM server with the plugin.

    python -m benchmarks.plugins.closed_loop [--order ORDER ...] [--open K ...] [--seconds 30] [--json FILE]

Run it in the environment of the engine tests (`make test-engines` sets that up). One server on the CPU runs
four requests at a time. Client `noisy` keeps 50 requests open, `quiet` K. Prompts share nothing; outputs have
8 to 40 tokens, evenly drawn, so that requests do not end in lockstep. Printed is the service of noisy over
that of quiet, by the plugin's own metrics file, and quiet's time to first token.
`benchmarks.gateway.closed_loop` says what *owed* and *reach* are. Under `priority` quiet always goes first:
where it opens no more than it is owed, no order that is not willing to leave slots empty gives it more.
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
from pathlib import Path

import uvloop
from tests.engines.plugin_load import tell
from tests.engines.plugin_servers import FIRST, SEQUENCES, plugin_server
from tests.engines.servers import MODEL, Engine, wait_for

from benchmarks.gateway.closed_loop import NOISY_OPEN, PAPER, Shares, failures, ms
from benchmarks.gateway.loops import Clients, Loop, Size
from fairlead.plugins.settings import PluginSettings
from fairlead.report.distribution import percentile

SIZE = Size(60, 8, 40)
WARM_UP = 0.25
"""Share of the time that is left out at the start: the queue of noisy has to form."""
DEFAULT = PluginSettings().order
PRIORITY = "priority"
ORDERS = ("fcfs", "vtc", "dlpm:light=off,quantum=1000", PAPER, DEFAULT, PRIORITY)


def service_of(folder: Path) -> dict[str, float]:
    """Return what each client was served, by the plugin's metrics file."""
    clients = json.loads((folder / "figures.json").read_text())["clients"]
    return {name: figures["service"] for name, figures in clients.items()}


def measure(engine: Engine, folder: Path, order: str, quiet_open: int, seconds: float) -> Shares:
    """Have an engine of ``plugin_server`` begin anew with ``order``, and send for ``seconds``."""
    tell(engine, order)
    row = uvloop.run(_measure(engine, folder, order, quiet_open, seconds))
    wait_for(lambda: _idle(folder), 60, "the end of all requests")
    return row


async def _measure(engine: Engine, folder: Path, order: str, quiet_open: int, seconds: float) -> Shares:
    loops = [Loop("noisy", NOISY_OPEN), Loop(FIRST if order == PRIORITY else "quiet", quiet_open)]
    async with Clients(engine.url, MODEL, loops, size=SIZE) as clients:
        await asyncio.sleep(WARM_UP * seconds)
        clients.begin_window()
        before = service_of(folder)
        await asyncio.sleep((1 - WARM_UP) * seconds)
        after = service_of(folder)
        seen = clients.end_window()
    noisy, quiet = (after.get(loop.name, 0) - before.get(loop.name, 0) for loop in loops)
    light = seen[loops[1].name]
    times = sorted(light.ttft_s) or [math.nan]
    return Shares(
        SEQUENCES, quiet_open, order, noisy, quiet,
        light.ended, failures(seen), percentile(times, 50), percentile(times, 99),
    )  # fmt: skip


def _idle(folder: Path) -> bool:
    clients = json.loads((folder / "figures.json").read_text())["clients"]
    return not any(one["waiting"] or one["running"] for one in clients.values())


def line(row: Shares) -> str:
    """Return a row in words."""
    what = f"{row.order:27} quiet opens {row.open}: noisy {row.noisy:,.0f} : quiet {row.quiet:,.0f}"
    times = f"{row.answers} answers, TTFT median {ms(row.ttft_p50_s)}, P99 {ms(row.ttft_p99_s)} ms"
    return f"{what} = {row.ratio:5.2f} (owed {row.owed:.2f}, reach {row.reach:.2f}); {times}"


def main() -> int:
    """Start the server, measure each row, print."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--order", action="append", metavar="ORDER", help=f"default: {', '.join(ORDERS)}")
    parser.add_argument("--open", action="append", type=int, metavar="K", help="default: 2 and 4")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row (default: %(default)g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "figures")
        engine = plugin_server(21, folder)
        try:
            print("starting the server", file=sys.stderr, flush=True)
            engine.start()
            engine.wait_up()
            for quiet_open in args.open or (2, 4):
                for order in args.order or ORDERS:
                    rows.append(row := measure(engine, folder, order, quiet_open, args.seconds))
                    print(line(row), flush=True)
        except KeyboardInterrupt:
            print("interrupted; the server is stopped", file=sys.stderr)
            return 130
        finally:
            engine.stop()
    if args.json:
        found = [row._asdict() | {"ratio": row.ratio, "owed": row.owed, "reach": row.reach} for row in rows]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
