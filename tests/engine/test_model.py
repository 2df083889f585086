"""The engine model: conservation, progress, order, and who pays for what."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate, count
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.model import Request
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.engine.model import Engine, TooLongError
from fairlead.engine.profiles import PROFILES
from fairlead.engine.step import StepResult
from fairlead.engine.steptime import Work
from tests.engine.naive import NaiveEngine

RUNS = settings(max_examples=60, deadline=None)
PROFILE = PROFILES["llama-3.1-8b-h100"]
BLOCK = 4


def keys_of(tokens: list[int], block: int = BLOCK) -> list[int]:
    """Chained keys of the full blocks of ``tokens``."""
    full = len(tokens) // block
    return [hash(tuple(tokens[: (i + 1) * block])) & (2**60 - 1) for i in range(full)]


@dataclass
class Job:
    """A request with its tokens and its true output."""

    rid: int
    client: str
    prompt: list[int]
    output: list[int]

    def submit(self, engine: Engine, now: int = 0) -> None:
        keys = keys_of(self.prompt, engine.block_tokens)
        chain = keys_of(self.prompt + self.output, engine.block_tokens)
        request = Request(self.rid, self.client, len(self.prompt), keys, engine.block_tokens)
        engine.submit(request, len(self.output), now, chain[len(keys) :])


def engine_of(blocks: int = 16, seqs: int = 4, budget: int = 16, order: str = "fcfs", **more) -> Engine:
    return Engine(
        PROFILE,
        make_ordering(order, {}, OrderingContext()),
        block_tokens=BLOCK,
        kv_blocks=blocks,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        **more,
    )


def run(engine: Engine, limit: int = 10_000) -> list[StepResult]:
    """Step until the engine is idle."""
    results, now = [], 0
    while (result := engine.step(now)) is not None:
        results.append(result)
        now += result.duration_us
        assert len(results) < limit, "the engine never becomes idle"
    return results


def job(rid: int, prompt: int, output: int, client: str = "a", first: int = 0) -> Job:
    """Build a job of the given lengths whose prompt shares nothing with another ``first``'s."""
    return Job(rid, client, [first, *range(prompt - 1)], [100 + rid] * output)


class Draw(NamedTuple):
    """A job as hypothesis draws it."""

    client: str
    shared: int
    """Leading prompt tokens that all jobs have in common."""
    own: list[int]
    output: int
    gap: int
    """Steps between the job before it and its arrival."""
    cancel: int | None
    """Step in which its caller goes away, if it does."""


JOBS = st.lists(
    st.builds(
        Draw,
        client=st.sampled_from("abc"),
        shared=st.integers(0, 20),
        own=st.lists(st.integers(0, 1), min_size=1, max_size=16),
        output=st.integers(1, 24),
        gap=st.integers(0, 3),
        cancel=st.none() | st.integers(0, 20),
    ),
    min_size=1,
    max_size=14,
)


def jobs_of(drawn: list[Draw]) -> list[Job]:
    return [
        Job(rid, d.client, [*range(d.shared), *d.own], [50 + rid % 3] * d.output)
        for rid, d in enumerate(drawn)
    ]


def told(result: StepResult | None) -> dict[str, Any]:
    """Return what a step tells, in a form that can be compared."""
    if result is None:
        return {}
    return {
        "duration_us": result.duration_us,
        "work": result.work,
        "tokens": sorted(result.tokens),
        "finished": result.finished,
        "admitted": [(a.rid, a.cached_tokens) for a in result.admitted],
        "preempted": result.preempted,
        "evicted": result.evicted,
        "stored": [(s.rid, s.start, s.keys) for s in result.stored],
    }


@RUNS
@given(
    drawn=JOBS,
    blocks=st.integers(16, 40),
    seqs=st.integers(1, 6),
    budget=st.integers(6, 40),
    ahead=st.booleans(),
)
def test_everything_ends_and_nothing_is_lost(drawn, blocks, seqs, budget, ahead):
    """Requests come and are cancelled between steps; each of the others gets all its tokens, once.

    After every step the books of pool, batch and queue are counted afresh, and the cache is what the
    stored and evicted blocks say.
    """
    engine = engine_of(blocks, seqs, budget, async_scheduling=ahead)
    jobs = jobs_of(drawn)
    arrivals = list(accumulate(d.gap for d in drawn))
    tokens: Counter[int] = Counter()
    firsts: Counter[int] = Counter()
    done: list[int] = []
    cancelled: set[int] = set()
    cached: set[int] = set()
    now = 0
    for step in range(5_000):
        for each in jobs:
            if arrivals[each.rid] == step:
                each.submit(engine, now)
            if drawn[each.rid].cancel == step and engine.cancel(each.rid):
                cancelled.add(each.rid)
                assert each.rid not in engine
        engine.check()
        result = engine.step(now)
        if result is None:
            assert not engine.load.waiting
            if step > arrivals[-1]:
                break
            continue
        engine.check()
        now += result.duration_us
        assert len(set(result.tokens)) == len(result.tokens) <= seqs
        assert set(result.first) <= set(result.tokens)
        assert result.work.decode_seqs + result.work.prefill_tokens <= budget
        tokens.update(result.tokens)
        firsts.update(result.first)
        done += result.finished
        cached -= set(result.evicted)
        for stored in result.stored:
            assert stored.parent is None or stored.parent in cached
            cached |= set(stored.keys)
        assert len(cached) == engine.pool.cached
        assert set(engine.pool.keys()) == set(cached)
    else:
        pytest.fail("the engine never becomes idle")
    assert engine.pool.used == 0
    assert sorted(done) == sorted(set(range(len(drawn))) - cancelled)
    for each in jobs:
        if each.rid not in cancelled:
            assert tokens[each.rid] == len(each.output)
            assert firsts[each.rid] == 1


@pytest.mark.parametrize("order", ["fcfs", "lpm", "vtc", "dlpm"])
@RUNS
@given(drawn=JOBS, seqs=st.integers(1, 6), budget=st.integers(6, 40))
def test_every_ordering_empties_the_queue(order, drawn, seqs, budget):
    """A pool that holds little more than one request preempts, evicts, and still ends everything."""
    engine = engine_of(16, seqs, budget, order)
    for each in jobs_of(drawn):
        each.submit(engine)
    finished = [rid for result in run(engine) for rid in result.finished]
    engine.check()
    assert sorted(finished) == list(range(len(drawn)))


class Bill:
    """Stands between an engine and its ordering, and adds up what it is charged."""

    def __init__(self, order) -> None:
        self._order = order
        self.extend: Counter[str] = Counter()
        self.output: Counter[str] = Counter()

    def __getattr__(self, name):
        return getattr(self._order, name)

    def admitted(self, number, item, extend_tokens):
        self.extend[item.client] += extend_tokens
        return self._order.admitted(number, item, extend_tokens)

    def corrected(self, number, client, prompt_tokens, extend_tokens):
        self.extend[client] += extend_tokens
        self._order.corrected(number, client, prompt_tokens, extend_tokens)

    def decoded(self, number, client, tokens):
        self.output[client] += tokens
        self._order.decoded(number, client, tokens)


@RUNS
@given(drawn=JOBS, seqs=st.integers(1, 6), budget=st.integers(6, 40))
def test_the_bill_is_the_work_done(drawn, seqs, budget):
    """Clients pay for every prompt token computed, recomputed ones included, and no other.

    The step that ends a recomputation computes one token on top that is charged as output, as
    every decode step is. Cancelled prompts are paid for as far as they got.
    """
    engine = engine_of(16, seqs, budget)
    engine.ordering = bill = Bill(engine.ordering)
    for each in jobs_of(drawn):
        each.submit(engine)
    computed = resumes = 0
    tokens: Counter[str] = Counter()
    clients = {each.rid: each.client for each in jobs_of(drawn)}
    decoding: set[int] = set()
    resumed: set[int] = set()
    for step in count():
        for rid, d in enumerate(drawn):
            if d.cancel == step:
                engine.cancel(rid)
        result = engine.step(0)
        if result is None:
            break
        computed += result.work.prefill_tokens
        tokens.update(clients[rid] for rid in result.tokens)
        resumed |= {a.rid for a in result.admitted if a.resumed and a.rid in decoding}
        resumed -= set(result.preempted)
        resumes += len(resumed & set(result.tokens))
        resumed -= set(result.tokens)
        decoding |= set(result.first)
    assert bill.output == tokens
    assert bill.extend.total() == computed - resumes


@RUNS
@given(drawn=JOBS, blocks=st.integers(16, 40), seqs=st.integers(1, 6), budget=st.integers(6, 40))
def test_steps_equal_those_of_the_naive_engine(drawn, blocks, seqs, budget):
    """Not touching a sequence between its events changes nothing, block by block and step by step."""
    engine = engine_of(blocks, seqs, budget)
    naive = NaiveEngine(PROFILE, blocks, BLOCK, seqs, budget)
    jobs = jobs_of(drawn)
    arrivals = list(accumulate(d.gap for d in drawn))
    for step in range(5_000):
        for each in jobs:
            if arrivals[each.rid] == step:
                each.submit(engine)
                keys = keys_of(each.prompt)
                request = Request(each.rid, each.client, len(each.prompt), keys, BLOCK)
                naive.submit(request, len(each.output), keys_of(each.prompt + each.output)[len(keys) :])
        result, expected = engine.step(0), naive.step()
        if result is None or expected is None:
            assert result is expected
            if step > arrivals[-1]:
                break
            continue
        assert told(result) == expected
    assert not engine.load.running


@RUNS
@given(drawn=JOBS, blocks=st.integers(16, 40), seqs=st.integers(1, 6), budget=st.integers(6, 40))
def test_blocks_of_answers_take_room_whether_they_have_keys_or_not(drawn, blocks, seqs, budget):
    """Keys that nobody else has and no keys make the same steps; only the latter are not reported."""
    engines = [engine_of(blocks, seqs, budget) for _ in range(2)]
    arrivals = list(accumulate(d.gap for d in drawn))
    first_own = 2**59
    for step in range(5_000):
        for each in jobs_of(drawn):
            if arrivals[each.rid] == step:
                keys = [key >> 1 for key in keys_of(each.prompt)]
                request = Request(each.rid, each.client, len(each.prompt), keys, BLOCK)
                own = range(first_own + 10 * each.rid, first_own + 10 * each.rid + 10)
                for engine, output_keys in zip(engines, ((), own), strict=True):
                    engine.submit(request, len(each.output), 0, output_keys)
        unnamed, named = (engine.step(0) for engine in engines)
        if named is not None:
            stored = [s._replace(keys=[key for key in s.keys if key < first_own]) for s in named.stored]
            named.stored = [s for s in stored if s.keys]
            named.evicted = [k for k in named.evicted if k < first_own]
        assert told(unnamed) == told(named)
        if named is None and step > arrivals[-1]:
            break
    assert engines[0].pool.cached == engines[1].pool.cached


@RUNS
@given(drawn=JOBS, seqs=st.integers(1, 6), budget=st.integers(6, 40))
def test_fcfs_admits_in_order_of_arrival(drawn, seqs, budget):
    engine = engine_of(24, seqs, budget)
    for each in jobs_of(drawn):
        each.submit(engine)
    admitted = [a.rid for result in run(engine) for a in result.admitted if not a.resumed]
    assert admitted == sorted(admitted)


@RUNS
@given(drawn=JOBS)
def test_the_same_requests_give_the_same_steps(drawn):
    runs = []
    for _ in range(2):
        engine = engine_of()
        for each in jobs_of(drawn):
            each.submit(engine)
        runs.append(run(engine))
    assert [told(result) for result in runs[0]] == [told(result) for result in runs[1]]


def test_hand_computed_life_of_one_request() -> None:
    """10 prompt tokens in chunks of 4, 3 output tokens: three prefill steps, two decode steps."""
    engine = engine_of(budget=4)
    job(7, prompt=10, output=3).submit(engine)
    results = run(engine)
    assert [r.work for r in results] == [
        Work(0, 0, 4, 4 * 4),
        Work(0, 0, 4, 4 * (2 * 4 + 4)),
        Work(0, 0, 2, 2 * (2 * 8 + 2)),
        Work(1, 10),
        Work(1, 11),
    ]
    assert [list(r.tokens) for r in results] == [[], [], [7], [7], [7]]
    assert [list(r.first) for r in results] == [[], [], [7], [], []]
    assert [list(r.finished) for r in results] == [[], [], [], [], [7]]
    assert [r.duration_us for r in results] == [PROFILE.steps.step_us(r.work) for r in results]
    # Twelve tokens reached the KV cache: three full blocks, the last of them half output.
    assert [(s.start, len(s.keys)) for r in results for s in r.stored] == [(0, 1), (1, 1), (2, 1)]
    assert engine.pool.cached == 3


def test_decode_comes_first_and_prefill_takes_the_rest_of_the_budget() -> None:
    engine = engine_of(blocks=64, seqs=4, budget=6)
    job(1, 4, 9).submit(engine)
    engine.step(0)
    job(2, 12, 2, first=1).submit(engine)
    works = [result.work for result in run(engine)]
    assert [(w.decode_seqs, w.prefill_tokens) for w in works[:3]] == [(1, 5), (1, 5), (1, 2)]


def test_a_second_turn_reuses_the_first_turns_answer() -> None:
    """Output tokens are cached too: the next turn computes only its new words."""
    engine = engine_of(budget=64, blocks=64)
    first = job(1, 8, 9)
    first.submit(engine)
    run(engine)
    Job(2, "a", [*first.prompt, *first.output, 3, 3, 3], [9]).submit(engine)
    (admission,) = engine.step(0).admitted
    # 16 of the 17 tokens were computed and fill 4 blocks; the last output token never was.
    assert (admission.cached_tokens, admission.computed_tokens) == (16, 4)


def test_the_last_prompt_token_is_always_computed() -> None:
    """A prompt that is cached in full still computes its last block, as in vLLM."""
    engine = engine_of(budget=64)
    for rid in (1, 2):
        Job(rid, "a", list(range(8)), [5]).submit(engine)
        (result,) = run(engine)
    assert result.admitted[0].cached_tokens == 4
    assert result.work.prefill_tokens == 4


def test_a_request_finds_blocks_of_the_same_step() -> None:
    """As in vLLM, blocks count as cached once they are scheduled."""
    engine = engine_of(budget=64)
    for rid in (1, 2):
        Job(rid, "a", [*range(8), rid], [5]).submit(engine)
    result = engine.step(0)
    assert [a.cached_tokens for a in result.admitted] == [0, 8]


def test_preemption_takes_the_youngest_and_resumes_it_first() -> None:
    """Two grow until blocks run out; the younger loses its own, and goes before who waits."""
    engine = engine_of(blocks=6, seqs=2, budget=32, watermark=0)
    for rid, output in ((1, 12), (2, 12), (3, 1)):
        job(rid, 8, output, first=rid).submit(engine)
    results = run(engine)
    preempted = [rid for r in results for rid in r.preempted]
    assert preempted == [2]
    order = [(a.rid, a.resumed) for r in results for a in r.admitted]
    assert order == [(1, False), (2, False), (2, True), (3, False)]
    assert engine.load.preemptions == 1


def test_preempted_work_is_found_in_the_cache_again() -> None:
    """What the preempted request computed stays cached until somebody needs the room."""
    engine = engine_of(blocks=6, seqs=2, budget=32, watermark=0)
    for rid in (1, 2):
        job(rid, 8, 12, first=rid).submit(engine)
    resumed = [a for r in run(engine) for a in r.admitted if a.resumed]
    assert [a.rid for a in resumed] == [2]
    assert resumed[0].cached_tokens > 0


def test_the_answer_so_far_of_a_preempted_request_is_found_again() -> None:
    """Two prompts of 2 blocks grow to 3 each of the 6 there are; then the older one needs another."""
    engine = engine_of(blocks=6, seqs=2, budget=32, watermark=0)
    for rid, output in ((1, 6), (2, 12)):
        job(rid, 8, output, first=rid).submit(engine)
    results = run(engine)
    assert [rid for r in results for rid in r.preempted] == [2]
    (resumed,) = (a for r in results for a in r.admitted if a.resumed)
    # It had 12 tokens computed. The older one took the last block; the others were still there.
    assert resumed.cached_tokens == 8


def test_a_block_stored_and_evicted_in_the_same_step_is_not_reported() -> None:
    """The younger one's answer is complete when it is preempted, and goes to the older one at once."""
    engine = engine_of(blocks=6, seqs=2, budget=32, watermark=0)
    for rid, output in ((1, 6), (2, 12)):
        job(rid, 8, output, first=rid).submit(engine)
    preemption = next(r for r in run(engine) if r.preempted)
    assert 2 not in {stored.rid for stored in preemption.stored}
    assert preemption.evicted == []


def test_the_watermark_keeps_a_newcomer_out_but_not_a_lone_request() -> None:
    engine = engine_of(blocks=10, seqs=4, budget=64, watermark=0.3)
    job(1, 20, 2).submit(engine)
    job(2, 12, 2, first=1).submit(engine)
    assert [a.rid for a in engine.step(0).admitted] == [1]
    run(engine)
    job(3, 39, 1, first=2).submit(engine)
    assert [a.rid for a in engine.step(0).admitted] == [3]


def test_refuses_what_never_fits() -> None:
    engine = engine_of(blocks=4)
    with pytest.raises(TooLongError, match="17 tokens of prompt and output; the context length is 16"):
        job(1, 10, 7).submit(engine)
    assert 1 not in engine
    job(1, 10, 6).submit(engine)
    assert [rid for r in run(engine) for rid in r.finished] == [1]


def test_refuses_contradictions() -> None:
    engine = engine_of()
    with pytest.raises(ValueError, match="at least one"):
        engine.submit(Request(1, "a", 0), 1)
    with pytest.raises(ValueError, match="2 full blocks in 7 prompt tokens"):
        engine.submit(Request(1, "a", 7, (1, 2)), 1)
    engine.submit(Request(1, "a", 7), 1)
    with pytest.raises(KeyError, match="already in the engine"):
        engine.submit(Request(1, "a", 7), 1)
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        engine_of(seqs=10, budget=9)
    with pytest.raises(ValueError, match="max_model_len"):
        engine_of(max_model_len=10_000)


def test_blocks_without_keys_are_never_shared() -> None:
    engine = engine_of(budget=64)
    for rid in (1, 2):
        engine.submit(Request(rid, "a", 9), 3)
    results = run(engine)
    assert [a.cached_tokens for r in results for a in r.admitted] == [0, 0]
    assert engine.pool.cached == 0


def test_cancelling_frees_blocks_at_once_wherever_the_request_is() -> None:
    engine = engine_of(blocks=8, seqs=1, budget=8)
    for rid in (1, 2):
        job(rid, 20, 4, first=rid).submit(engine)
    engine.step(0)
    assert (engine.load.running, engine.load.waiting) == (1, 1)
    assert engine.cancel(2)
    assert engine.cancel(1)
    assert not engine.cancel(1)
    engine.check()
    assert engine.pool.used == 0
    assert engine.step(0) is None


def test_load_counts_lookups_and_hits_once_per_request() -> None:
    engine = engine_of(blocks=64, budget=64)
    for rid in (1, 2):
        Job(rid, "a", list(range(10)), [5, 5]).submit(engine)
    engine.step(0)
    load = engine.load
    assert (load.running, load.waiting) == (2, 0)
    assert (load.prefix_queries, load.prefix_hits) == (20, 8)
    assert load.kv_usage == 4 / 64
    assert "running=2" in repr(engine)


def test_resetting_the_cache_spares_what_runs() -> None:
    engine = engine_of(blocks=64, budget=64, order="lpm")
    job(1, 8, 1).submit(engine)
    run(engine)
    job(2, 8, 9, first=1).submit(engine)
    engine.step(0)
    assert sorted(engine.reset_cache()) == sorted(keys_of(job(1, 8, 1).prompt))
    assert engine.pool.cached == 2
    engine.check()


def test_limits_come_from_the_profile() -> None:
    engine = Engine(replace(PROFILE, kv_tokens=1_600, max_num_seqs=3, max_model_len=500))
    assert (engine.pool.blocks, engine.max_num_seqs, engine.max_model_len) == (100, 3, 500)


def test_lpm_prefers_what_is_cached() -> None:
    """The engine tells its queue of blocks stored and evicted."""
    engine = engine_of(blocks=64, seqs=1, budget=64, order="lpm")
    Job(1, "a", list(range(12)), [5]).submit(engine)
    engine.step(0)
    job(2, 12, 1, first=9).submit(engine)
    Job(3, "b", [*range(12), 3], [5]).submit(engine)
    admitted = [a.rid for r in run(engine) for a in r.admitted]
    assert admitted == [3, 2]


def test_each_client_pays_for_its_own_tokens() -> None:
    engine = engine_of(blocks=64, budget=64)
    engine.ordering = bill = Bill(engine.ordering)
    job(1, 8, 3, client="a").submit(engine)
    job(2, 8, 5, client="b", first=1).submit(engine)
    run(engine)
    assert bill.extend == {"a": 8, "b": 8}
    assert bill.output == {"a": 3, "b": 5}
