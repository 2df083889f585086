"""The plugin in a real vLLM server, all orders in turn, against a server without it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.core.model import Costs
from tests.engines.plugin_load import (
    DOCUMENT_TOKENS,
    OUTPUT_TOKENS,
    OWN_TOKENS,
    STEPS,
    Measured,
    measure,
    widest_gap,
)
from tests.engines.servers import LOGS, MODEL_FOLDER, ROOT, VENV, Engine, wait_for

MEDIUM = VENV / "models" / "medium"
SEQUENCES = 4
KV_BLOCKS = 150
"""Four prompts of 704 tokens take 92 at most; the twelve documents would take 240."""
QUANTUM = 1000
ORDERS = ("fcfs", "lpm", "vtc", f"dlpm:quantum={QUANTUM}")
ANSWERS = int(os.environ.get("ANSWERS_A_RUN", "60"))
"""After so many answers a run sends nothing more; what is open then is answered too."""
LIMITS = {
    "--model": str(MEDIUM),
    "--max-num-seqs": str(SEQUENCES),
    "--num-gpu-blocks-override": str(KV_BLOCKS),
    "--max-num-batched-tokens": "768",
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine, Path]]:
    """A server with the plugin, one without, and the folder of the first one's logs of steps."""
    if not (MEDIUM / "config.json").exists():
        make = [sys.executable, "-m", "tests.engines.plugin_model", str(MODEL_FOLDER), str(MEDIUM)]
        subprocess.run(make, check=True, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    logs = tmp_path_factory.mktemp("steps")
    scheduler = {"--scheduler-cls": "tests.engines.plugin_switch.SwitchScheduler"}
    environment = {
        STEPS: str(logs),
        "FAIRLEAD_PLUGIN_METRICS_FILE": str(logs / "figures.json"),
        "FAIRLEAD_PLUGIN_METRICS_INTERVAL_SECS": "0.2",
    }
    ours, theirs = Engine(8, LIMITS | scheduler, environment), Engine(9, LIMITS)
    try:
        ours.start()
        theirs.start()
        ours.wait_up()
        theirs.wait_up()
        yield ours, theirs, logs
    finally:
        ours.stop()
        theirs.stop()


@pytest.fixture(scope="module")
def runs(servers: tuple[Engine, Engine, Path]) -> dict[str, Measured]:
    """What the clients saw, by order; ``stock`` is the server without the plugin."""
    ours, theirs, _ = servers
    found = {order.partition(":")[0]: measure(ours, ANSWERS, order) for order in ORDERS}
    found["stock"] = measure(theirs, ANSWERS // 2)
    return found


@pytest.fixture(scope="module")
def gaps(servers: tuple[Engine, Engine, Path], runs: dict[str, Measured]) -> dict[str, float]:
    """The widest gap of service between two clients that waited, by order."""
    return {order: widest_gap(servers[2] / f"{order}.jsonl") for order in runs if order != "stock"}


def test_figures(runs: dict[str, Measured], gaps: dict[str, float]) -> None:
    """Printed for the documents, after a check that the runs were worth comparing."""
    lines = [f"{'order':6} {'requests':>8} {'tokens/s':>8} {'hits':>6} {'gap':>7}  median TTFT"]
    for order, run in runs.items():
        ttfts = ", ".join(f"{run.ttft_s(client):.2f}" for client in ("alice", "bob", "mallory"))
        gap = f"{gaps[order]:7,.0f}" if order in gaps else f"{'':7}"
        lines.append(
            f"{order:6} {len(run.answers):8} {run.tokens_a_second:8,.0f} {run.hit_rate:6.1%} {gap}  {ttfts}"
        )
    print("\n" + "\n".join(lines))
    for run in runs.values():
        assert len(run.answers) >= ANSWERS // 2
        assert run.queries >= len(run.answers) * (DOCUMENT_TOKENS + OWN_TOKENS)


def test_answers_are_those_of_stock_vllm(runs: dict[str, Measured]) -> None:
    stock = runs["stock"].texts()
    for order, run in runs.items():
        if order != "stock":
            both = run.texts().keys() & stock.keys()
            assert len(both) > 20
            assert {client for client, _ in both} == {"alice", "bob", "mallory"}
            assert {key: run.texts()[key] for key in both} == {key: stock[key] for key in both}


def test_dlpm_stays_within_its_bound_at_every_step(gaps: dict[str, float]) -> None:
    costs = Costs()
    prompt = DOCUMENT_TOKENS + OWN_TOKENS
    uncharged = costs.extend * prompt + costs.output * SEQUENCES * OUTPUT_TOKENS
    assert gaps["dlpm"] <= 2 * (QUANTUM + uncharged)


def test_dlpm_reuses_more_than_vtc_and_is_fairer_than_arrival_order(
    runs: dict[str, Measured], gaps: dict[str, float]
) -> None:
    assert runs["dlpm"].hit_rate > runs["vtc"].hit_rate + 0.1
    assert gaps["dlpm"] < 0.7 * gaps["fcfs"]
    for client in ("alice", "bob"):
        assert runs["dlpm"].ttft_s(client) < runs["fcfs"].ttft_s(client)


def test_the_file_has_the_figures_of_every_client(servers: tuple[Engine, Engine, Path]) -> None:
    path = servers[2] / "figures.json"

    def told() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    wait_for(lambda: "mallory" in told()["clients"], 10, "the figures of mallory")
    wait_for(lambda: not told()["clients"]["mallory"]["running"], 10, "the end of the last request")
    mallory = told()["clients"]["mallory"]
    assert mallory["admitted"] == mallory["ended"] > 0
    assert mallory["extend_tokens"] + mallory["cached_tokens"] == mallory["prompt_tokens"]
    assert mallory["output_tokens"] == mallory["ended"] * OUTPUT_TOKENS


def test_nothing_went_wrong_unseen(servers: tuple[Engine, Engine, Path]) -> None:
    for engine in servers[:2]:
        assert "Traceback" not in (LOGS / f"{engine.name}.log").read_text()
