"""Who should order what two vLLM servers get: a queue in the gateway, or each server for itself.

    python -m benchmarks.plugins.fleet [--answers 400] [--json FILE] [ARM ...]

Run it in the environment of the engine tests (`make test-engines` sets that up). Four real servers on the
CPU: two with the plugin, two without, of which an arm uses one pair. Three clients with eight documents of
640 tokens each, which together take 1.6 times the KV of a pair; two of them keep 12 requests open, the third
floods with 60; each server runs four at a time. All arms get the same requests and begin with empty caches.

Printed are prompt and output tokens a second, the share of prompt tokens cached by vLLM's own counters, the
largest change of two clients' difference of service (uncached prompt + 2 x output tokens) as their requests
ended while all of them had some waiting, and times to first token.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.engines.plugin_load import OPEN, Measured, measure, tell
from tests.engines.plugin_servers import SEQUENCES, plugin_server, stock_server
from tests.engines.servers import Engine, gateway

QUANTUM = 1000
ROUTER_QUANTUM = 4 * QUANTUM


class Arm(NamedTuple):
    """One way to serve them."""

    title: str
    options: tuple[str, ...]
    order: str = ""
    """Of the engines with the plugin; without one the plain servers are used."""


AT_ONCE = "--engine-ordering"
CREDIT = ("--worker-max-num-seqs", str(SEQUENCES))
FLEET, WORKER = (f"dlpm:quantum={QUANTUM}{more}" for more in ("", ",scope=worker"))
D2LPM = f"d2lpm:quantum={ROUTER_QUANTUM}"
ARMS = {
    "plain": Arm("plain servers, round robin, nobody orders", (AT_ONCE, "--policy", "round_robin")),
    "queue-marginal": Arm("gateway's queue, marginal", ("--order", FLEET, "--policy", "marginal", *CREDIT)),
    "queue-d2lpm": Arm("gateway's queues, D2LPM", ("--order", WORKER, "--policy", D2LPM, *CREDIT)),
    "engines-d2lpm": Arm("engines order, D2LPM", (AT_ONCE, "--policy", D2LPM), FLEET),
    "engines-lmetric": Arm("engines order, LMetric", (AT_ONCE, "--policy", "lmetric"), FLEET),
    "engines-marginal": Arm("engines order, marginal", (AT_ONCE, "--policy", "marginal"), FLEET),
}


def run(name: str, fair: list[Engine], plain: list[Engine], answers: int) -> Measured:
    """Measure one arm."""
    arm = ARMS[name]
    engines = fair if arm.order else plain
    for engine in engines:
        if arm.order:
            tell(engine, arm.order)
        else:
            engine.empty_cache()
    with gateway(f"fleet-{name}", engines, *arm.options) as one:
        return measure(engines, answers, through=one, fold=len(engines))


def row(name: str, measured: Measured) -> dict[str, object]:
    """Return an arm's figures."""
    p95 = {
        c: statistics.quantiles((a.ttft_s for a in measured.answers if a.client == c), n=20)[-1] for c in OPEN
    }
    return {
        "arm": name,
        "title": ARMS[name].title,
        "options": ARMS[name].options,
        "engines_order": ARMS[name].order,
        "answers": len(measured.answers),
        "tokens_per_s": round(measured.tokens_a_second),
        "hit_rate": round(measured.hit_rate, 4),
        "service_gap": measured.gap_seen(),
        "ttft_p50_s": {client: round(measured.ttft_s(client), 3) for client in OPEN},
        "ttft_p95_s": {client: round(seconds, 3) for client, seconds in p95.items()},
    }


def main() -> None:
    """Start the servers, measure each arm, print."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"which of {', '.join(ARMS)}; all by default")
    parser.add_argument("--answers", type=int, default=400, help="answers an arm (default: 400)")
    parser.add_argument("--rounds", type=int, default=1, help="how often all arms are measured (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args()
    unknown = [name for name in args.arms if name not in ARMS]
    if unknown:
        parser.error(f"no such arm: {', '.join(unknown)} (there are {', '.join(ARMS)})")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fair = [plugin_server(number, Path(folder, str(number))) for number in (11, 12)]
        plain = [stock_server(number) for number in (13, 14)]
        try:
            print("starting four servers", file=sys.stderr, flush=True)
            for engine in fair + plain:
                engine.start()
            for engine in fair + plain:
                engine.wait_up()
            for _ in range(args.rounds):
                for name in args.arms or ARMS:
                    rows.append(row(name, measured := run(name, fair, plain, args.answers)))
                    print(f"{name:17} {measured.summary()}", flush=True)
        finally:
            for engine in fair + plain:
                engine.stop()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
