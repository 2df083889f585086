"""Small cells, and what a sweep leaves of them."""

from pathlib import Path
from typing import Any

from fairlead.simulate.settings import Settings
from fairlead.simulate.sweep.run import ALL, Cell, Sample
from fairlead.trace.workload import Workload

TIMED = ("elapsed_s", "simulated_requests_per_s")


def small(
    policy: str = "d2lpm",
    order: str = "dlpm",
    *,
    seed: int = 1,
    load: float = 0.0,
    requests: int = 40,
    source: str = "shared-prefix",
    sample: Sample = ALL,
    **more: Any,
) -> Cell:
    workload = Workload(source=source, requests=requests, seed=seed, **more)
    settings = Settings(policy=policy, order=order, workers=2, seed=seed)
    return Cell(workload, settings, load, sample=sample)


def untimed(result: dict[str, Any] | None) -> dict[str, Any]:
    """A result without what a clock measured."""
    assert result is not None
    return {key: value for key, value in result.items() if key not in TIMED}


def mooncake(path: Path, lines: int = 60) -> Path:
    """Write a trace of so many requests, two chains of prompts, 400 ms apart and then at once."""
    at = 0
    with path.open("w") as file:
        for i in range(lines):
            at += 0 if i % 3 == 0 else 400 + 100 * (i % 5)
            chain = [i % 2 * 1000 + k for k in range(2)] + [5000 + i]
            file.write(
                f'{{"timestamp": {at}, "input_length": 1500, "output_length": {20 + i % 7},'
                f' "hash_ids": {chain}}}\n'
            )
    return path
