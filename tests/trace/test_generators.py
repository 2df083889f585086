"""What holds for every generator, and what each one promises of its own."""

import os
import statistics
import subprocess
import sys
import tracemalloc
from collections import Counter
from hashlib import blake2b
from itertools import combinations, islice, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.params import PolicyError
from fairlead.trace.generators import GENERATORS, generate
from fairlead.trace.generators.keys import EMPTY, LIMIT, Keys, Prompt
from fairlead.trace.model import Session, Trace, TraceError
from tests.trace.shapes import check_trace, quotes, shared_blocks

LOOPED = [name for name in GENERATORS.names() if not name.startswith("vtc-")]
QUOTING = ["tree-of-thoughts", "multi-turn", "agents"]


def one_of(name: str, **given: object) -> Trace:
    return generate(name, seed=3, requests=150, **given)  # type: ignore[arg-type]


# --- every generator ---


@pytest.mark.parametrize("name", GENERATORS.names())
def test_a_generator_keeps_what_a_trace_promises(name: str) -> None:
    trace = one_of(name)
    sessions = check_trace(trace)
    assert list(trace.sessions()) == sessions
    assert trace.requests == 150
    assert trace.labels


@pytest.mark.parametrize("name", LOOPED)
def test_a_closed_loop_is_one_chain_a_user(name: str) -> None:
    trace = one_of(name, params={"loop": "closed", "users": 4, "think_s": 2.0})
    sessions = check_trace(trace)
    assert sorted(len(session.turns) for session in sessions) == [37, 37, 38, 38]
    assert len({session.name for session in sessions}) == 4
    for session in sessions:
        released = {turn.after for turn in session.turns}
        ends = [after for after in released if session.turns[after + 1].after == after]
        assert any(session.turns[after + 1].delay_us for after in ends if after >= 0)
        siblings = {"tree-of-thoughts": 2, "judge": 5}.get(name, 1)
        assert [turn.after for turn in session.turns].count(-1) == siblings


@pytest.mark.parametrize("name", GENERATORS.names())
def test_seed_params_and_counts_make_the_sessions_and_the_identity(name: str) -> None:
    same, again = one_of(name), one_of(name)
    assert same.identity == again.identity
    assert list(same.sessions()) == list(again.sessions())
    others = [
        generate(name, seed=4, requests=150),
        generate(name, seed=3, requests=151),
        generate(name, seed=3, requests=150, clients=3),
        generate(name, {"block_tokens": 32}, seed=3, requests=150),
    ]
    assert len({same.identity, *(other.identity for other in others)}) == 5
    assert all(list(other.sessions()) != list(same.sessions()) for other in others)


def test_sessions_are_the_same_in_every_process() -> None:
    code = (
        "from fairlead.trace.generators import *; from hashlib import blake2b\n"
        "told = [repr(list(generate(n, seed=5, requests=60).sessions())) for n in GENERATORS.names()]\n"
        "print(blake2b(''.join(told).encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hashseed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hashseed in ("1", "2")
    }
    here = [repr(list(generate(n, seed=5, requests=60).sessions())) for n in GENERATORS.names()]
    assert seen == {blake2b("".join(here).encode()).hexdigest()}


@pytest.mark.parametrize("name", GENERATORS.names())
def test_a_shorter_trace_is_the_beginning_of_a_longer_one(name: str) -> None:
    short = list(generate(name, seed=1, requests=40).sessions())
    long = list(generate(name, seed=1, requests=80).sessions())
    assert short[:-1] == long[: len(short) - 1]
    cut = short[-1].turns
    assert list(cut) == list(long[len(short) - 1].turns[: len(cut)])


@pytest.mark.parametrize("name", GENERATORS.names())
def test_any_number_of_clients_is_served(name: str) -> None:
    for clients in (1, 5):
        trace = generate(name, seed=1, requests=400, clients=clients)
        assert list(trace.clients) == [f"client-{i}" for i in range(clients)]
        assert {session.client for session in trace.sessions()} == set(trace.clients)


@pytest.mark.parametrize("name", QUOTING)
def test_a_follow_up_starts_with_the_prompt_and_the_answer_before_it(name: str) -> None:
    found = 0
    for session in one_of(name).sessions():
        for turn in session.turns:
            if turn.after >= 0:
                assert quotes(turn, session.turns[turn.after])
                found += 1
    assert found > 50


@given(
    st.integers(1, 7),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 25)), min_size=1, max_size=25),
)
def test_grown_prompts_have_equal_keys_exactly_where_their_text_is_equal(
    block: int, grown: list[tuple[int, int]]
) -> None:
    keys, word = Keys(block), 0
    prompts: list[tuple[Prompt, list[int]]] = [(EMPTY, [])]
    for parent, tokens in grown:
        prompt, text = prompts[parent % len(prompts)]
        prompts.append((keys.grow(prompt, tokens), text + list(range(word, word + tokens))))
        word += tokens
    for prompt, text in prompts:
        assert prompt.tokens == len(text)
        assert len(prompt.keys) == len(text) // block
    for (one, text), (other, words) in combinations(prompts, 2):
        for place, (a, b) in enumerate(zip(one.keys, other.keys, strict=False), 1):
            assert (a == b) == (text[: place * block] == words[: place * block])


def test_keys_run_out_with_a_word_of_advice() -> None:
    keys = Keys(16)
    with pytest.raises(TraceError, match="fewer requests"):
        keys.fresh(LIMIT)


# --- specs ---


def test_a_spec_and_params_say_the_same() -> None:
    spec = generate("doc-qa:doc_tokens=16k,questions=10", requests=50)
    params = generate("doc-qa", {"doc_tokens": 16_000, "questions": 10}, requests=50)
    assert spec.identity == params.identity
    override = generate("doc-qa:questions=3,doc_tokens=16k", {"questions": 10}, requests=50)
    assert override.identity == spec.identity


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("doc-aq", "unknown workload 'doc-aq'.*did you mean 'doc-qa'"),
        ("doc-qa:doc_token=1", "unknown parameter 'doc_token'.*did you mean 'doc_tokens'"),
        ("doc-qa:doc_tokens=0", "doc_tokens.*at least 1"),
        ("judge:loop=ajar", "one of open, closed"),
        ("shared-prefix:weights=1/x", "weights.*numbers above 0"),
        ("vtc-overload:rates=0/1", "rates.*numbers above 0"),
        ("vtc-overload:inputs=", "inputs.*numbers above 0"),
    ],
)
def test_bad_specs_are_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        generate(spec)


@pytest.mark.parametrize("counts", [{"requests": 0}, {"clients": 0}])
def test_a_workload_has_at_least_one_of_each(counts: dict[str, int]) -> None:
    with pytest.raises(TraceError, match="at least one"):
        generate("judge", **counts)  # type: ignore[arg-type]


def test_weights_are_repeated_over_the_clients() -> None:
    trace = generate("judge:weights=1/2.5", requests=10, clients=3)
    assert trace.clients == {"client-0": 1, "client-1": 2.5, "client-2": 1}


# --- arrivals ---


@pytest.mark.parametrize("burstiness", [0, 0.5, 1, 3])
def test_gaps_have_the_mean_and_the_burstiness_asked_for(burstiness: float) -> None:
    trace = generate("shared-prefix", {"rate": 20.0, "burstiness": burstiness}, requests=8_000)
    gaps = [b.at - a.at for a, b in pairwise(trace.sessions())]
    assert statistics.mean(gaps) == pytest.approx(50_000, rel=0.1)
    assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(burstiness, rel=0.1, abs=0.001)


def test_skew_gives_the_first_clients_more() -> None:
    counts = Counter(s.client for s in generate("shared-prefix:skew=1", requests=4_000, clients=4).sessions())
    for number in range(4):
        assert counts[f"client-{number}"] == pytest.approx(4_000 * 12 / 25 / (number + 1), rel=0.1)


def test_a_change_of_lengths_leaves_arrivals_and_clients_alone() -> None:
    def moments(spec: str) -> list[tuple[int, str]]:
        return [(s.at, s.client) for s in generate(spec, requests=300).sessions()]

    assert moments("doc-qa") == moments("doc-qa:doc_tokens=100,output_tokens=7,documents=1")


# --- shared-prefix ---


def test_the_yardstick_has_the_sizes_it_is_known_by() -> None:
    turns = [s.turns[0] for s in generate("shared-prefix", requests=3_000).sessions()]
    assert statistics.mean(t.prompt_tokens for t in turns) == pytest.approx(1_000, rel=0.02)
    assert statistics.mean(t.output_tokens for t in turns) == pytest.approx(200, rel=0.02)
    assert len({t.keys[49] for t in turns}) == 64  # 800 shared tokens are 50 blocks


def test_a_block_that_is_shared_only_in_part_has_a_key_of_its_own() -> None:
    trace = generate("shared-prefix:groups=1,shared_tokens=70,unique_tokens=40", requests=30, clients=1)
    for one, other in combinations([s.turns[0] for s in trace.sessions()], 2):
        assert shared_blocks(one, other) == 70 // 16


def test_groups_belong_to_clients_unless_told_otherwise() -> None:
    def owners(spec: str) -> set[int]:
        users: dict[int, set[str]] = {}
        for session in generate(spec, requests=500, clients=4).sessions():
            users.setdefault(session.turns[0].keys[0], set()).add(session.client)
        return {len(found) for found in users.values()}

    assert owners("shared-prefix:groups=6") == {1}
    assert owners("shared-prefix:groups=2") == {1}  # four clients: four groups
    assert owners("shared-prefix:groups=2,own_groups=off") == {4}


def test_a_long_trace_is_a_stream() -> None:
    def peak(sessions: int) -> int:
        trace = generate("shared-prefix", requests=1_000_000)
        tracemalloc.start()
        for _ in islice(trace.sessions(), sessions):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(3_000) < peak(1_000) * 1.2


# --- the other families ---


def test_each_document_is_asked_about_as_often_as_said() -> None:
    trace = generate("doc-qa:questions=5,documents=3,doc_tokens=200", requests=1_000, clients=2)
    asked = Counter(s.turns[0].keys[0] for s in trace.sessions())
    unfinished = [count for count in asked.values() if count != 5]
    assert max(asked.values()) == 5
    assert len(unfinished) <= 2 * 3
    owners = {s.turns[0].keys[0]: s.client for s in trace.sessions()}
    assert all(owners[s.turns[0].keys[0]] == s.client for s in trace.sessions())


def test_a_tree_branches_at_every_answer() -> None:
    trace = generate("tree-of-thoughts:depth=3,branching=3", requests=78)
    for session in check_trace(trace):
        children = Counter(turn.after for turn in session.turns)
        assert len(session.turns) == 39
        assert children == dict.fromkeys(range(-1, 12), 3)
        for one, other in combinations(session.turns, 2):
            if one.after == other.after:
                assert one.keys == other.keys
                assert one.prompt_tokens == other.prompt_tokens
                assert not set(one.output_keys) & set(other.output_keys)


def test_a_judge_asks_about_one_article_and_quotes_every_judgement() -> None:
    trace = generate("judge:dimensions=4,rubric_tokens=160,article_tokens=320,spread=0", requests=50)
    rubrics: dict[str, int] = {}
    for session in trace.sessions():
        *asked, verdict = session.turns
        for one, other in combinations(session.turns, 2):
            assert shared_blocks(one, other) == 480 // 16
        assert [turn.after for turn in session.turns] == [-1] * 4 + [3]
        assert verdict.prompt_tokens == 480 + 60 + sum(turn.output_tokens for turn in asked)
        assert rubrics.setdefault(session.client, verdict.keys[9]) == verdict.keys[9]
    assert len(set(rubrics.values())) == len(rubrics)


def test_chats_have_pauses_and_the_lengths_asked_for() -> None:
    trace = generate("multi-turn:turns=5,think_s=4,user_tokens=80,length_cv=0.5", requests=6_000)
    turns = [turn for session in trace.sessions() for turn in session.turns]
    later = [turn.delay_us for turn in turns if turn.after >= 0]
    assert statistics.mean(later) == pytest.approx(4e6, rel=0.1)
    assert {turn.delay_us for turn in turns if turn.after < 0} == {0}
    assert max(len(session.turns) for session in trace.sessions()) == 9
    assert statistics.mean(len(s.turns) for s in trace.sessions()) == pytest.approx(5, rel=0.1)
    said = [t.prompt_tokens - 400 for t in turns if t.after < 0]
    assert statistics.mean(said) == pytest.approx(80, rel=0.1)
    assert statistics.pstdev(said) == pytest.approx(40, rel=0.2)


def test_an_agent_compacts_a_context_that_grows_too_long() -> None:
    spec = "agents:context_tokens=4000,system_tokens=1600,task_tokens=100,tool_tokens=200,length_cv=0.3"
    compacted = 0
    for session in check_trace(generate(spec, requests=400)):
        assert len({turn.keys[:100] for turn in session.turns}) == 1  # everyone's instructions
        for turn in session.turns:
            assert turn.prompt_tokens <= 4_000
            if turn.after >= 0 and not quotes(turn, session.turns[turn.after]):
                assert shared_blocks(turn, session.turns[turn.after]) == 100
                compacted += 1
    assert compacted > 10


# --- VTC's suites ---


def by_client(trace: Trace) -> dict[str, list[Session]]:
    found: dict[str, list[Session]] = {name: [] for name in trace.clients}
    for session in trace.sessions():
        found[session.client].append(session)
    return found


@pytest.mark.parametrize(
    ("name", "seconds", "counts", "lengths"),
    [
        ("vtc-overload", 600, [900, 1_800], [256, 256]),
        ("vtc-weighted", 360, [288, 288, 432, 576], [256] * 4),
        ("vtc-on-off", 600, [150, 1_200], [256, 256]),
        ("vtc-short-long", 600, [4_800, 900], [64, 256]),
        ("vtc-shift", 900, [90 + 300 + 150, 600 + 300 + 450], [256, 256]),
    ],
)
def test_a_suite_has_the_papers_rates_and_lengths(
    name: str, seconds: int, counts: list[int], lengths: list[int]
) -> None:
    trace = generate(name)
    found = by_client(trace)
    close = 0.06 if name == "vtc-short-long" else 0.01  # Poisson; the others are off by an edge at most
    for sessions, count, length in zip(found.values(), counts, lengths, strict=True):
        assert len(sessions) == pytest.approx(count, rel=close, abs=3)
        for session in sessions:
            (turn,) = session.turns
            assert (turn.prompt_tokens, turn.output_tokens) == (length, length)
    assert trace.duration_us < seconds * 1e6
    keys = [key for s in trace.sessions() for key in s.turns[0].keys]
    assert len(set(keys)) == len(keys)


def test_the_weighted_suite_has_weights() -> None:
    assert list(generate("vtc-weighted").clients.values()) == [1, 2, 3, 4]


def test_the_first_client_is_silent_every_other_minute() -> None:
    quiet, steady = by_client(generate("vtc-on-off")).values()
    assert {session.at // 60_000_000 for session in quiet} == {0, 2, 4, 6, 8}
    assert {session.at // 60_000_000 for session in steady} == set(range(10))


def test_a_suite_that_goes_on_shifts_again() -> None:
    trace = generate("vtc-shift:phase_s=10,on_s=2", requests=200)
    assert trace.duration_us > 60e6
    first = [session.at for session in by_client(trace)["client-0"]]
    assert all(at % 30_000_000 >= 10_000_000 or at % 30_000_000 % 4_000_000 < 2_000_000 for at in first)
    assert any(at > 30_000_000 for at in first)


def test_even_gaps_are_even_and_poisson_gaps_are_not() -> None:
    def gaps(arrivals: str) -> set[int]:
        trace = generate("vtc-overload", {"arrivals": arrivals}, clients=1, requests=50)
        return {b.at - a.at for a, b in pairwise(trace.sessions())}

    assert all(abs(gap - 666_667) <= 1 for gap in gaps("even"))
    assert len(gaps("poisson")) > 40


def test_streams_are_named_apart() -> None:
    made = GENERATORS.get("judge")(GENERATORS.resolve("judge"), 1, 2)
    assert made.rng("a").random() == Random("1/judge/a").random() != made.rng("b").random()
