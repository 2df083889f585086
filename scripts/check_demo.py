"""Checks the figures of a demo run: their shape, and that the schedulers differ as they must.

    python scripts/check_demo.py FILE

Written for CI, where the demo is short: the bounds are far inside what a run shows.
"""

import json
import sys
from pathlib import Path

WELL_BEHAVED = ("assistant", "docs", "agent")
LIGHT = "agent"
PHASES = [("fcfs", "least_requests"), ("dlpm", "d2lpm"), ("dlpm", "marginal")]


def problems(result: dict[str, list[dict[str, object]]]) -> list[str]:
    """Return what is wrong, one line each."""
    phases = result["phases"]
    found = []
    if [(p["order"], p["policy"]) for p in phases] != PHASES:
        return [f"the phases are not {', '.join(f'{order} + {policy}' for order, policy in PHASES)}"]
    for phase in phases:
        name = f"{phase['order']} + {phase['policy']}"
        clients = phase["clients"]
        assert isinstance(clients, dict)
        for client, figures in clients.items():
            missing = {"ttft_p50_ms", "ttft_p99_ms", "service", "owed", "completed"} - set(figures)
            if missing:
                found.append(f"{name}: {client} lacks {sorted(missing)}")
            elif figures["failed"]:
                found.append(f"{name}: {figures['failed']} requests of {client} failed")
            elif not figures["completed"] and (phase["order"], client) != ("fcfs", LIGHT):
                found.append(f"{name}: {client} completed nothing")
        totals = ("tokens_per_s", "hit_rate", "jain")
        found += [f"{name}: no {key}" for key in totals if not isinstance(phase.get(key), float)]
    first = phases[0]
    for phase in phases[1:]:
        for client in WELL_BEHAVED:
            before, after = _p50(first, client), _p50(phase, client)
            if not after < 0.7 * before:
                found.append(f"{phase['policy']}: {client}'s p50 TTFT is {after} ms, {before} ms under fcfs")
        before, after = _got(first, LIGHT), _got(phase, LIGHT)
        if not after > 1.2 * before:
            found.append(
                f"{phase['policy']}: {LIGHT} got {after:.0%} of what it was owed, {before:.0%} under fcfs"
            )
        if not _number(phase["hit_rate"]) > _number(first["hit_rate"]):
            found.append(f"{phase['policy']}: hit rate {phase['hit_rate']} is not above {first['hit_rate']}")
    return found


def _p50(phase: dict[str, object], client: str) -> float:
    clients = phase["clients"]
    assert isinstance(clients, dict)
    return _number(clients[client]["ttft_p50_ms"])


def _got(phase: dict[str, object], client: str) -> float:
    clients = phase["clients"]
    assert isinstance(clients, dict)
    return _number(clients[client]["service"]) / _number(clients[client]["owed"])


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)


def main() -> int:
    found = problems(json.loads(Path(sys.argv[1]).read_text()))
    for line in found:
        print(f"demo: {line}", file=sys.stderr)
    if not found:
        print("demo: complete, and the well-behaved clients fare better under both fair schedulers")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
