"""Runs simulations and dispatchers, and says what came of each: run once pure and once compiled.

python -m tests.compiled.histories            a digest of every case, as JSON
python -m tests.compiled.histories CASE       one case in full, a line a fact
"""

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b

import fairlead
from fairlead.core.dispatcher import Settings as DispatcherSettings
from fairlead.core.ordering import ORDERINGS
from fairlead.core.registry import parse_spec
from fairlead.core.routing import POLICIES
from fairlead.simulate.settings import ENGINE, GATEWAY, Fault, Settings
from fairlead.simulate.world import World
from fairlead.trace.generators import generate
from tests.core.driver import WEIGHTS, Driver, make_dispatcher

REQUESTS = 160
SKIPPING = ["dlpm:scope=worker,on_no_fit=skip,quantum=900", "vtc:scope=fleet,on_no_fit=skip"]
POLICIES_OF_ENGINES = ["round_robin", "lmetric", "d2lpm:quantum=2000"]
"""Where engines order for themselves the ordering does not depend on much else; a few policies do."""


def simulated(topology: str, policy: str, order: str) -> Iterator[str]:
    """Yield everything that a simulation leaves: workers die, clients hang up, KV is short."""
    workload = "multi-turn" if policy in {"preble", "session_affinity", "lmetric"} else "shared-prefix"
    trace = generate(workload, {"rate": 40.0, "weights": "1/2/4"}, requests=REQUESTS, clients=5, seed=3)
    world = World(
        trace,
        Settings(
            policy=policy,
            order=order,
            topology=topology,
            workers=3,
            kv_tokens=24_000,
            max_num_seqs=12,
            max_model_len=20_000,
            faults=(Fault(1, 1_500_000, 2_000_000), Fault(2, 4_000_000)),
            cancel_share=0.15,
            client_timeout_us=30_000_000,
            queue_timeout_us=8_000_000,
            exact_cache=policy in {"marginal", "cache_aware", "lmetric"},
            stale_us=20_000 if policy in {"marginal", "linear"} else 0,
            interval_us=250_000,
        ),
    )
    run = world.run()
    world.dispatcher.check()
    columns = run.requests
    yield from (
        f"row {row} {values}"
        for row, values in enumerate(
            zip(
                columns.client, columns.arrived, columns.sent, columns.first, columns.ended, columns.prompt,
                columns.cached, columns.output, columns.worker, columns.outcome, strict=True,
            )
        )
    )  # fmt: skip
    series = run.series
    for name in ("service", "demand", "queued", "running", "waiting", "kv_used", "prefilled"):
        yield from (f"{name} {i} {list(values)}" for i, values in enumerate(getattr(series, name)))
    yield repr((run.fairness.worst_gap, run.fairness.pair, run.duration_us, sorted(run.itl.items())))
    yield repr((run.steps, run.preemptions, run.computed_tokens, run.settings))
    ledger = world.dispatcher.ledger
    yield from (f"{client} {account!r}" for client, account in sorted(ledger.accounts.items()))
    yield repr(world.dispatcher)


def dispatched(policy: str, order: str) -> Iterator[str]:
    """Yield every event and decision, scores included, of a dispatcher that all sorts of things happen to."""
    settings = DispatcherSettings(max_queued=20, queue_timeout_us=2_000_000, max_attempts=2)
    (routing, given), (ordering, kept) = parse_spec(policy), parse_spec(order)
    plain = make_dispatcher(
        routing, ordering, routing_params=given, ordering_params=kept, settings=settings, weights=WEIGHTS
    )
    driver = Driver(plain, random.Random(f"{policy}/{order}"), check=False)
    driver.worker_up("w1")
    driver.worker_up("w2", precise=True)
    for _ in range(400):
        driver.step()
    plain.check()
    # A score that is a whole number is one where it is an int, too: compiled code makes floats of them.
    yield from (re.sub(r"(?<=\d)\.0\b", "", line) for line in driver.log)


def cases() -> dict[str, Callable[[], Iterator[str]]]:
    """Return every case by name."""
    found: dict[str, Callable[[], Iterator[str]]] = {}
    orders = [*ORDERINGS.names(), *SKIPPING]
    for order in orders:
        for policy in POLICIES.names():
            found[f"dispatcher {policy} {order}"] = lambda p=policy, o=order: dispatched(p, o)
            found[f"{GATEWAY} {policy} {order}"] = lambda p=policy, o=order: simulated(GATEWAY, p, o)
        for policy in POLICIES_OF_ENGINES:
            found[f"{ENGINE} {policy} {order}"] = lambda p=policy, o=order: simulated(ENGINE, p, o)
    return found


def digest(lines: Iterator[str]) -> str:
    """Return a digest of all lines."""
    sums = blake2b(digest_size=16)
    for line in lines:
        sums.update(line.encode() + b"\n")
    return sums.hexdigest()


def main() -> None:
    """Print what was asked for."""
    every = cases()
    if sys.argv[1:]:
        for line in every[sys.argv[1]]():
            print(line)
        return
    json.dump(
        {"compiled": fairlead.compiled(), "cases": {n: digest(case()) for n, case in every.items()}},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
