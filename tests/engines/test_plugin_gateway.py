"""The gateway in front of two vLLM servers that order for themselves: fair over both of them."""

from pathlib import Path

import pytest

from tests.engines.plugin_load import OUTPUT_TOKENS, Measured, figures_of, measure, tell
from tests.engines.servers import Engine, gateway

ANSWERS = 200
ORDERS = ("fcfs", "dlpm:quantum=1000")
POLICY = "d2lpm:quantum=4000"


@pytest.fixture(scope="module")
def runs(fair: list[tuple[Engine, Path]]) -> dict[str, Measured]:
    """What three clients saw through ``serve --engine-ordering``, by the engines' order.

    All of them say that they are alice; the gateway knows better by their keys.
    """
    engines = [engine for engine, _ in fair]
    found = {}
    for order in ORDERS:
        for engine in engines:
            tell(engine, order)
        name = order.partition(":")[0]
        with gateway(f"engine-ordering-{name}", engines, "--engine-ordering", "--policy", POLICY) as one:
            found[name] = measure(engines, ANSWERS, through=one, told="alice", fold=2)
            waited = one.metric("fairlead_requests_total")
            assert sum(waited.values()) == len(found[name].answers)
    return found


def test_a_flooding_client_gets_no_more_than_the_others(runs: dict[str, Measured]) -> None:
    for order, run in runs.items():
        print(f"{order}: {run.summary()}")
    assert runs["dlpm"].gap_seen() < 0.6 * runs["fcfs"].gap_seen()
    waits = {order: sum(run.ttft_s(client) for client in ("alice", "bob")) for order, run in runs.items()}
    assert waits["dlpm"] < 0.8 * waits["fcfs"]


def test_each_engine_heard_whose_a_request_was(
    fair: list[tuple[Engine, Path]], runs: dict[str, Measured]
) -> None:
    """By the figures of the last run: nobody was taken for alice, and nobody was left unnamed."""
    for client in ("alice", "bob", "mallory"):
        told = [figures_of(client, folder) for _, folder in fair]
        answers = [answer for answer in runs["dlpm"].answers if answer.client == client]
        assert all(figures["ended"] for figures in told)
        assert sum(figures["ended"] for figures in told) == len(answers)
        assert sum(figures["output_tokens"] for figures in told) == OUTPUT_TOKENS * len(answers)
        assert sum(figures["cached_tokens"] for figures in told) == sum(a.cached_tokens for a in answers)
