"""A request that an engine computes whole matches nothing, and leaves its blocks for others."""

import pytest

from fairlead.core import events as ev
from fairlead.core.commands import Dispatch
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.model import Limits, Request

from .driver import make_dispatcher

KEYS = list(range(1, 11))
PROMPT = 165
"""Ten blocks of 16 tokens, and a tail of 5."""


def fleet(order: str = "dlpm", policy: str = "lmetric", workers: int = 2, sequences: int = 8) -> Dispatcher:
    d = make_dispatcher(policy, order, settings=Settings(prefill_backlog_us=0))
    for number in range(workers):
        d.step(ev.WorkerUp(0, f"w{number}", Limits(sequences, 1_000)))
    return d


def sent(d: Dispatcher, event: ev.Event) -> list[Dispatch]:
    found = [c for c in d.step(event) if isinstance(c, Dispatch)]
    d.check()
    return found


def ask(d: Dispatcher, rid: int, *, reads: bool, client: str = "ann") -> list[Dispatch]:
    return sent(d, ev.Arrived(0, Request(rid, client, PROMPT, KEYS, 16, 1, reads_cache=reads)))


def test_it_matches_nothing_and_others_match_what_it_left() -> None:
    d = fleet(workers=1)
    ask(d, 1, reads=True)
    sent(d, ev.Finished(1, 1))
    (second,) = ask(d, 2, reads=False)
    assert second.reasons.matched_tokens == 0
    assert d.ledger.account("ann").outstanding == PROMPT
    sent(d, ev.Finished(2, 2))
    (third,) = ask(d, 3, reads=True)
    assert third.reasons.matched_tokens == 160


def test_its_own_blocks_are_left_where_nobody_was_before() -> None:
    d = fleet(workers=1)
    ask(d, 1, reads=False)
    sent(d, ev.Finished(1, 1))
    (second,) = ask(d, 2, reads=True)
    assert second.reasons.matched_tokens == 160


def test_the_predicted_hit_rate_counts_it_as_computed() -> None:
    d = fleet(workers=1)
    ask(d, 1, reads=True)
    sent(d, ev.Finished(1, 1))
    for rid in range(2, 60):
        ask(d, rid, reads=False)
        sent(d, ev.Finished(rid, rid, PROMPT, 0, 1))
    assert d.fleet.hit_rate[0] == 0


def test_it_holds_its_whole_prompt_in_the_kv_pool_beside_what_is_shared() -> None:
    d = fleet(workers=1)
    ask(d, 1, reads=True)
    ask(d, 2, reads=True)
    shared = d.fleet.kv_running[0]
    assert shared == 160 + 2 * (5 + 1)
    ask(d, 3, reads=False)
    assert d.fleet.kv_running[0] == shared + PROMPT + 1
    sent(d, ev.Finished(1, 3))
    assert d.fleet.kv_running[0] == shared


@pytest.mark.parametrize(
    "policy", ["lmetric", "marginal", "cache_aware", "preble", "d2lpm", "vllm_score", "linear"]
)
def test_a_worker_that_caches_its_prompt_has_no_pull_on_it(policy: str) -> None:
    """The score of a routing policy is that of a prompt which no worker caches."""
    d, cold = fleet(policy=policy), fleet(policy=policy)
    for dispatcher in (d, cold):
        sent(dispatcher, ev.Arrived(0, Request(1, "bob", PROMPT, KEYS if dispatcher is d else [99], 16, 1)))
        sent(dispatcher, ev.Finished(1, 1))
    (mine,), (other,) = ask(d, 2, reads=False), ask(cold, 2, reads=False)
    assert mine.worker == other.worker
    assert list(mine.reasons.scores) == list(other.reasons.scores)


@pytest.mark.parametrize("order", ["dlpm", "lpm", "vtc", "fcfs"])
def test_it_waits_as_a_prompt_that_is_not_cached(order: str) -> None:
    d = fleet(order, workers=1, sequences=1)
    ask(d, 1, reads=True)
    assert not ask(d, 2, reads=False)
    assert not ask(d, 3, reads=True)
    first, second = sent(d, ev.Finished(1, 1)), sent(d, ev.Finished(2, 2 if order in {"vtc", "fcfs"} else 3))
    order_of = [first[0].rid, second[0].rid]
    assert order_of == ([2, 3] if order in {"vtc", "fcfs"} else [3, 2]), (
        "longest match first, where that counts"
    )
    assert {c.rid: c.reasons.matched_tokens for c in (*first, *second)} == {2: 0, 3: 160}
