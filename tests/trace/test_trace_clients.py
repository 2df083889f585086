"""Clients by rule: what goes together, in which shares, and that the label says so."""

from collections import Counter

import pytest

from fairlead.trace.clients import RULES, assign_clients, common_blocks
from fairlead.trace.model import Trace
from tests.trace.test_trace_transform import made, single


def clients_of(trace: Trace) -> list[str]:
    return [session.client for session in trace.sessions()]


def test_requests_of_one_chain_go_to_one_client() -> None:
    """Blocks 1 and 2 are everybody's; the third tells conversations apart."""
    source = made([single(i, 64, (1, 2, 100 + i % 40, 1000 + i)) for i in range(400)])
    assert common_blocks(source) == 2
    trace = assign_clients(source, "prefix", 8)
    owner: dict[int, str] = {}
    for session in trace.sessions():
        chain = session.turns[0].keys[2]
        assert owner.setdefault(chain, session.client) == session.client
    assert len(set(owner.values())) > 4
    assert trace.labels[-1] == "clients assigned by prefix chain (synthetic), 8 clients, seed 1"


def test_a_few_odd_prompts_do_not_hide_what_everybody_shares() -> None:
    odd = [single(i, 64, (900 + i,)) for i in range(4)]
    source = made(odd + [single(10 + i, 64, (1, 2, 100 + i)) for i in range(196)])
    assert common_blocks(source) == 2


def test_prompts_without_a_block_of_their_own_are_spread() -> None:
    trace = assign_clients(made([single(i) for i in range(200)]), "prefix", 4)
    assert set(Counter(clients_of(trace)).values()) <= set(range(25, 80))


def test_one_prompt_alone_shares_with_nobody() -> None:
    assert common_blocks(made([single(0, 64, (1, 2, 3))])) == 0


def test_sessions_of_one_name_stay_together() -> None:
    trace = assign_clients(made([single(i, name=f"s{i % 20}") for i in range(200)]), "session", 5)
    owner: dict[str, str] = {}
    for session in trace.sessions():
        assert owner.setdefault(session.name, session.client) == session.client
    assert len(set(owner.values())) > 2


def test_round_robin_random_and_single() -> None:
    source = made([single(i) for i in range(300)])
    assert clients_of(assign_clients(source, "round-robin", 3))[:4] == [f"client-{i}" for i in (0, 1, 2, 0)]
    drawn = assign_clients(source, "random", 3, seed=5)
    assert clients_of(drawn) == clients_of(drawn)
    assert clients_of(drawn) != clients_of(assign_clients(source, "random", 3, seed=6))
    assert all(count > 60 for count in Counter(clients_of(drawn)).values())
    assert assign_clients(source, "single", 9).clients == {"client-0": 1.0}


def test_skew_gives_zipf_shares() -> None:
    source = made([single(i, name=f"s{i}") for i in range(6_000)])
    for rule in ("prefix", "session", "random"):
        trace = assign_clients(source, rule, 10, skew=1.0)
        counts = Counter(clients_of(trace))
        assert counts["client-0"] == pytest.approx(2 * counts["client-1"], rel=0.2)
        assert "Zipf 1" in trace.labels[-1]


def test_every_rule_labels_its_clients_as_synthetic() -> None:
    source = made([single(i) for i in range(50)])
    for rule, words in RULES.items():
        trace = assign_clients(source, rule, 8)
        assert trace.labels[-1].startswith(f"{words} (synthetic)")
        assert trace.labels[: len(source.labels)] == source.labels
        assert trace.misbehaving == frozenset()
