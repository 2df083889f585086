"""A request may be several sequences to the engine: ``n``, ``best_of``, a list of prompts."""

import json

import pytest

from fairlead.core import events as ev
from fairlead.core.commands import Dispatch
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.model import Limits, Request
from fairlead.trace.decisions import decode, encode

from .driver import make_dispatcher


def one_worker(sequences: int = 8, kv_tokens: int = 1_000_000) -> Dispatcher:
    d = make_dispatcher("round_robin", "fcfs", settings=Settings(prefill_backlog_us=0))
    d.step(ev.WorkerUp(0, "w", Limits(sequences, kv_tokens)))
    return d


def arrive(d: Dispatcher, rid: int, sequences: int, max_tokens: int | None = 1) -> list[int]:
    """Return the requests that were sent."""
    request = Request(rid, "ann", 10, max_tokens=max_tokens, sequences=sequences)
    return sent(d, ev.Arrived(0, request))


def sent(d: Dispatcher, event: ev.Event) -> list[int]:
    found = [c.rid for c in d.step(event) if isinstance(c, Dispatch)]
    d.check()
    return found


def test_a_request_counts_as_its_sequences_in_the_batch() -> None:
    d = one_worker(sequences=8)
    assert arrive(d, 1, 3) == [1]
    assert arrive(d, 2, 5) == [2]
    assert d.fleet.running == d.fleet.batch_size == [8]
    assert arrive(d, 3, 1) == []
    assert sent(d, ev.Finished(1, 2)) == [3]
    assert (d.fleet.running, d.fleet.batch_size, d.running) == ([4], [4], 2)


def test_what_does_not_fit_waits_for_room_and_is_not_bypassed() -> None:
    d = one_worker(sequences=8)
    arrive(d, 1, 3)
    arrive(d, 2, 2)
    assert arrive(d, 3, 4) == [], "5 run, 3 are left"
    assert arrive(d, 4, 1) == [], "the first in the queue keeps its turn"
    assert sent(d, ev.Finished(1, 2)) == [3, 4]


def test_an_idle_worker_takes_more_than_its_batch() -> None:
    d = one_worker(sequences=8)
    assert arrive(d, 1, 1000) == [1]
    assert arrive(d, 2, 1) == []
    assert sent(d, ev.Finished(1, 1)) == [2]


def test_each_sequence_has_an_output_of_its_own_in_the_kv_pool() -> None:
    d = one_worker(kv_tokens=1_000)
    arrive(d, 1, 4, max_tokens=100)
    assert d.fleet.kv_running == [10 + 4 * 100]
    assert arrive(d, 2, 6, max_tokens=100) == [], "10 + 600 beside 410 of 1,000"
    assert sent(d, ev.Finished(1, 1)) == [2]


def test_output_beyond_what_was_expected_counts_as_it_comes() -> None:
    d = one_worker()
    arrive(d, 1, 4, max_tokens=100)
    d.step(ev.FirstToken(1, 1))
    d.step(ev.Progressed(1, 1, 350))
    assert d.fleet.kv_running == [410]
    d.step(ev.Progressed(1, 1, 60))
    assert d.fleet.kv_running == [420]


def test_the_mean_output_is_of_a_sequence() -> None:
    d, plain = one_worker(), one_worker()
    arrive(d, 1, 10, max_tokens=None)
    arrive(plain, 1, 1, max_tokens=None)
    sent(d, ev.Finished(1, 1, output_tokens=5_000))
    sent(plain, ev.Finished(1, 1, output_tokens=500))
    assert d.outputs.expected("ann") == pytest.approx(plain.outputs.expected("ann"))


def test_the_decision_log_has_the_number_and_reads_logs_from_before() -> None:
    event = ev.Arrived(5, Request(1, "ann", 10, [7], sequences=3))
    line = encode([(event, ())])
    assert decode(line)[0] == event
    name, (at, request) = json.loads(line)
    assert request[9] == 3
    older = json.dumps([name, [at, request[:9]]]).encode()
    assert decode(older)[0] == ev.Arrived(5, event.request._replace(sequences=1))
