"""The plugin in a real vLLM server, all orders in turn, against a server without it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.core.model import Costs
from tests.engines.plugin_load import (
    DOCUMENT_TOKENS,
    OUTPUT_TOKENS,
    OWN_TOKENS,
    Measured,
    figures_of,
    measure,
    tell,
    widest_gap,
)
from tests.engines.plugin_servers import SEQUENCES, stock_server
from tests.engines.servers import LOGS, Engine

QUANTUM = 1000
ORDERS = ("fcfs", "lpm", "vtc", f"dlpm:quantum={QUANTUM}")
ANSWERS = int(os.environ.get("ANSWERS_A_RUN", "60"))
"""After so many answers a run sends nothing more; what is open then is answered too."""


@pytest.fixture(scope="module")
def stock() -> Iterator[Engine]:
    """A server without the plugin."""
    engine = stock_server(9)
    try:
        engine.start()
        engine.wait_up()
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def runs(fair: list[tuple[Engine, Path]], stock: Engine) -> dict[str, Measured]:
    """What the clients saw, by order; ``stock`` is the server without the plugin."""
    engine, _ = fair[0]
    found = {}
    for order in ORDERS:
        tell(engine, order)
        found[order.partition(":")[0]] = measure([engine], ANSWERS)
    found["stock"] = measure([stock], ANSWERS // 2)
    return found


@pytest.fixture(scope="module")
def gaps(fair: list[tuple[Engine, Path]], runs: dict[str, Measured]) -> dict[str, float]:
    """The widest gap of service between two clients that waited, by order."""
    return {order: widest_gap(fair[0][1] / f"{order}.jsonl") for order in runs if order != "stock"}


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


def test_the_file_has_the_figures_of_every_client(
    fair: list[tuple[Engine, Path]], runs: dict[str, Measured]
) -> None:
    assert runs
    mallory = figures_of("mallory", fair[0][1])
    assert mallory["admitted"] == mallory["ended"] > 0
    assert mallory["extend_tokens"] + mallory["cached_tokens"] == mallory["prompt_tokens"]
    assert mallory["output_tokens"] == mallory["ended"] * OUTPUT_TOKENS


def test_nothing_went_wrong_unseen(fair: list[tuple[Engine, Path]], stock: Engine) -> None:
    for engine in (fair[0][0], stock):
        assert "Traceback" not in (LOGS / f"{engine.name}.log").read_text()
