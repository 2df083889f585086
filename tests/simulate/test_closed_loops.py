"""Clients of ``--concurrency``: a number of sessions is always open, and never more."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead import cli
from fairlead.core.keys import seed_key, token_keys
from fairlead.report.run import DONE, REJECTED, UNFINISHED, Run
from fairlead.simulate.settings import ENGINE, GATEWAY, Settings
from fairlead.simulate.world import World
from fairlead.simulate.world.loops import AFTER_ERROR_US
from fairlead.trace.generators import generate
from fairlead.trace.loops import EVERYONE, LoopStreams, loops_of, parse_loops, with_loops
from fairlead.trace.model import Loop, Session, Trace, TraceError, Turn
from fairlead.trace.workload import Workload

BLOCK = 16
ROUND_TRIP = Settings().round_trip_us
TINY = {"workers": 1, "max_num_seqs": 4, "interval_us": 100_000}


def turn(content: int, blocks: int, output: int, **more: Any) -> Turn:
    tokens = [content] * (blocks * BLOCK)
    return Turn(len(tokens) + 1, output, token_keys(tokens, BLOCK, seed_key("m")), **more)


def chain(content: int, turns: int, output: int = 8, delay_us: int = 0) -> list[Turn]:
    return [turn(content, 2 + i, output, after=i - 1, delay_us=delay_us if i else 0) for i in range(turns)]


def trace_of(sessions: Sequence[Session], loops: dict[str, Loop]) -> Trace:
    ordered = sorted(sessions, key=lambda session: session.at)
    return Trace(
        name="hand-made",
        block_tokens=BLOCK,
        sessions=lambda: iter(ordered),
        requests=sum(len(session.turns) for session in ordered),
        duration_us=ordered[-1].at,
        clients=dict.fromkeys((session.client for session in ordered), 1.0),
        loops=loops,
        identity="hand-made",
    )


def singles(client: str, count: int, every_us: int = 50_000) -> list[Session]:
    return [Session(i * every_us, client, [turn(1_000 * ord(client) + i, 3, 20)]) for i in range(count)]


def open_over_time(run: Run, client: str) -> list[tuple[int, int, int]]:
    """Return (from, to, requests open) of a client whose sessions are single requests, from the record."""
    number, requests = list(run.clients).index(client), run.requests
    changes: Counter[int] = Counter()
    for row, whose in enumerate(requests.client):
        if whose == number:
            changes[requests.arrived[row]] += 1
            if requests.ended[row] >= 0:
                changes[requests.ended[row]] -= 1
    times, found, count = sorted(changes), [], 0
    for start, stop in zip(times, [*times[1:], times[-1]], strict=True):
        count += changes[start]
        found.append((start, stop, count))
    return found


def test_the_next_request_comes_a_round_trip_after_an_answer() -> None:
    trace = trace_of(singles("a", 6), {"a": Loop(1)})
    requests = World(trace, Settings(**TINY)).run().requests
    assert len(requests) == 6
    assert requests.arrived[0] == 0
    for row in range(1, 6):
        assert requests.arrived[row] == requests.ended[row - 1] + ROUND_TRIP


def test_a_loop_keeps_its_requests_in_the_traces_order() -> None:
    sessions = [Session(i * 10, "a", [turn(i, 2 + i % 5, 10 + i)]) for i in range(12)]
    requests = World(trace_of(sessions, {"a": Loop(2)}), Settings(**TINY)).run().requests
    assert list(requests.prompt) == [session.turns[0].prompt_tokens for session in sessions]


def test_the_other_clients_keep_their_arrivals_and_loops_end_with_them() -> None:
    others = singles("b", 20, every_us=100_000)
    trace = trace_of([*singles("a", 300), *others], {"a": Loop(3)})
    run = World(trace, Settings(**TINY)).run()
    requests = run.requests
    a, b = (list(run.clients).index(name) for name in "ab")
    arrived = [t for t, client in zip(requests.arrived, requests.client, strict=True) if client == b]
    assert arrived == [session.at for session in others]
    of_loop = [t for t, client in zip(requests.arrived, requests.client, strict=True) if client == a]
    assert max(of_loop) <= others[-1].at < max(requests.ended)
    assert set(requests.outcome) == {DONE}


def test_with_an_end_the_loops_go_on_to_it() -> None:
    trace = trace_of([*singles("a", 5), *singles("b", 2, every_us=1000)], {"a": Loop(2)})
    run = World(trace, Settings(until_us=3_000_000, **TINY)).run()
    number = list(run.clients).index("a")
    outcomes = [o for o, c in zip(run.requests.outcome, run.requests.client, strict=True) if c == number]
    assert len(outcomes) > 10, "five requests are not enough: they come again"
    assert outcomes.count(UNFINISHED) == 2
    assert max(run.requests.arrived) > 2_800_000


def test_where_all_clients_are_loops_as_many_requests_are_sent_as_the_trace_has() -> None:
    trace = trace_of([*singles("a", 30), *singles("b", 30)], {"a": Loop(8), "b": Loop(1)})
    run = World(trace, Settings(**TINY)).run()
    assert len(run.requests) == 60
    counts = Counter(run.clients[c] for c in run.requests.client)
    assert counts["a"] > 30, "the busier client took its own requests more than once"
    assert set(run.requests.outcome) == {DONE}


def test_requests_that_come_again_find_nothing_of_the_pass_before_and_share_among_themselves() -> None:
    same = [Session(i, "a", [turn(1, 8, 4)]) for i in range(3)]
    world = World(trace_of(same, {"a": Loop(1)}), Settings(until_us=2_000_000, **TINY))
    run = world.run()
    ends = [row for row, outcome in enumerate(run.requests.outcome) if outcome == DONE]
    assert len(ends) > 12
    assert world.clients.loops.passes > 4
    for row in ends:
        assert (run.requests.cached[row] > 0) == (row % 3 > 0), "the first of each pass finds nothing"


def test_a_session_holds_its_place_until_its_last_answer() -> None:
    """Two users of three turns each: the third session waits for a whole one to end."""
    sessions = [Session(i, "a", chain(i, 3, delay_us=200_000)) for i in range(5)]
    requests = World(trace_of(sessions, {"a": Loop(2)}), Settings(**TINY)).run().requests
    assert len(requests) == 15
    first_turns = [row for row in range(15) if requests.prompt[row] == 2 * BLOCK + 1]
    third_turns = [row for row in range(15) if requests.prompt[row] == 4 * BLOCK + 1]
    starts = sorted(requests.arrived[row] for row in first_turns)
    ends = sorted(requests.ended[row] for row in third_turns)
    assert starts[:2] == [0, 0]
    assert starts[2:] == [end + ROUND_TRIP for end in ends[:3]]


def test_a_session_whose_turn_fails_gives_its_place_to_the_next() -> None:
    """A prompt that no engine can hold fails, and its followers never come; the loop goes on later."""
    sessions = [Session(0, "a", [turn(1, 400, 4), turn(1, 401, 4, after=0)]), *singles("a", 3)]
    world = World(trace_of(sessions, {"a": Loop(1)}), Settings(kv_tokens=64 * BLOCK, **TINY))
    requests = world.run().requests
    assert world.clients.abandoned == 1
    assert list(requests.outcome[1:]) == [DONE] * (len(requests) - 1)
    assert requests.arrived[1] == requests.ended[0] + AFTER_ERROR_US


def test_a_rejected_loop_waits_a_second_before_it_asks_again() -> None:
    trace = trace_of(singles("a", 200), {"a": Loop(40)})
    requests = World(trace, Settings(max_queued=5, until_us=4_000_000, **TINY)).run().requests
    rejected = list(requests.outcome).count(REJECTED)
    assert 0 < rejected <= 40 * 4


def test_think_times_are_those_of_the_seed_whatever_the_policy() -> None:
    trace = trace_of(singles("a", 40), {"a": Loop(3, 500_000)})
    pauses = []
    for order, seed in (("fcfs", 1), ("dlpm", 1), ("fcfs", 2)):
        requests = World(trace, Settings(order=order, seed=seed, workers=1)).run().requests
        pauses.append(sorted(requests.arrived[:3]))
    assert pauses[0] == pauses[1] != pauses[2]
    assert pauses[0][0] > 0


@settings(max_examples=30, deadline=None)
@given(
    opens=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    think=st.sampled_from([0, 0, 30_000]),
    seed=st.integers(0, 10**6),
    order=st.sampled_from(["fcfs", "lpm", "vtc", "dlpm:quantum=300"]),
    topology=st.sampled_from([GATEWAY, ENGINE]),
    workers=st.integers(1, 3),
)
def test_never_more_open_than_said_and_no_fewer_but_for_think_and_round_trip(
    opens: list[int], think: int, seed: int, order: str, topology: str, workers: int
) -> None:
    draw = Random(seed)
    names = [f"c{i}" for i in range(len(opens))]
    sessions = [
        Session(i, draw.choice(names), [turn(draw.randint(0, 3), draw.randint(1, 9), draw.randint(1, 40))])
        for i in range(60)
    ] + [Session(0, name, [turn(9, 1, 5)]) for name in names]
    loops = {
        name: Loop(count, think if i == 0 else 0)
        for i, (name, count) in enumerate(zip(names, opens, strict=True))
    }
    trace = trace_of(sessions, loops)
    chosen = Settings(
        order=order, topology=topology, seed=seed, until_us=2_000_000, **{**TINY, "workers": workers}
    )
    run = World(trace, chosen).run()
    for name, loop in loops.items():
        steps = open_over_time(run, name)
        assert max(count for _, _, count in steps) <= loop.open
        if loop.think_us:
            continue
        assert steps[0][2] == loop.open, "all of them are sent at the start"
        short = sum((stop - start) * (loop.open - count) for start, stop, count in steps)
        number = list(run.clients).index(name)
        ended = sum(
            1
            for client, end in zip(run.requests.client, run.requests.ended, strict=True)
            if client == number and end >= 0
        )
        assert short <= ended * ROUND_TRIP, "one fewer for a round trip after each answer, and never else"


def test_closed_form_equals_step_by_step_with_loops() -> None:
    for seed in range(12):
        draw = Random(seed)
        sessions = [
            Session(i * 1000, draw.choice("abc"), chain(draw.randint(0, 9), draw.randint(1, 3), 30))
            for i in range(25)
        ]
        loops = {"a": Loop(draw.randint(1, 6)), "b": Loop(2, draw.choice([0, 100_000]))}
        chosen = Settings(order=draw.choice(["dlpm:quantum=300", "vtc", "fcfs"]), workers=draw.randint(1, 2))
        fast, slow = (
            World(trace_of(sessions, loops), replace(chosen, fast_forward=many)).run()
            for many in (True, False)
        )
        assert list(fast.requests.ended) == list(slow.requests.ended)
        assert list(fast.requests.arrived) == list(slow.requests.arrived)


# ---------------------------------------------------------------------- the option


def test_what_the_option_means() -> None:
    told = parse_loops(["noisy=50, quiet=2@1.5", "*=3"])
    assert told == {"noisy": Loop(50), "quiet": Loop(2, 1_500_000), EVERYONE: Loop(3)}
    assert parse_loops(["team=a=4"]) == {"team=a": Loop(4)}
    found = loops_of(told, ["noisy", "other", "quiet"])
    assert found == {"noisy": Loop(50), "other": Loop(3), "quiet": Loop(2, 1_500_000)}
    assert list(found) == ["noisy", "other", "quiet"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("client-0", "not of the form CLIENT=N"),
        ("=4", "not of the form CLIENT=N"),
        ("client-0=0", "1 to 100,000 requests open, a whole number, not '0'"),
        ("client-0=-3", "not '-3'"),
        ("client-0=2.5", "not '2.5'"),
        ("client-0=many", "not 'many'"),
        ("client-0=", "not ''"),
        ("client-0=100001", "not '100001'"),
        ("client-0=2@-1", "think for 0 to 1,000,000 seconds, not '-1'"),
        ("client-0=2@nan", "not 'nan'"),
        ("client-0=2@", "not ''"),
        ("client-0=2,client-0=3", "'client-0' is named twice"),
        ("client-9=2", "there is no client 'client-9' (there are: client-0, client-1; * stands for all)"),
    ],
)
def test_what_cannot_be_is_refused_by_name(bad: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "vtc-overload", "--requests", "20", "--concurrency", bad]) == 2
    assert says in capsys.readouterr().err


def test_a_client_without_requests_cannot_be_a_loop() -> None:
    trace = generate("shared-prefix", requests=1, clients=4)
    with pytest.raises(TraceError, match=r"no request is of client 'client-\d'"):
        World(with_loops(trace, {EVERYONE: Loop(1)}), Settings(workers=1)).run()


def test_the_attacker_can_be_a_loop_and_the_maximum_is_measured_without_loops() -> None:
    workload = Workload(
        source="shared-prefix", requests=60, clients=2, attack="more", concurrency={"attacker": Loop(7)}
    )
    opened = workload.open()
    assert not opened.loops
    assert dict(workload.looped(workload.attacked(opened)).loops) == {"attacker": Loop(7)}
    with pytest.raises(TraceError, match="no client 'attacker'"):
        replace(workload, attack="").open()


def test_a_load_needs_a_client_that_keeps_its_times(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", "vtc-overload", "--requests", "40", "--load", "0.5", "--concurrency"]
    assert cli.main([*command, "*=4"]) == 2
    assert "--load spaces arrivals" in capsys.readouterr().err
    assert cli.main([*command, "client-0=4,client-1=2"]) == 2
    assert cli.main(["compare", "vtc-overload", "--loads", "0.5", "--concurrency", "*=4"]) == 2
    assert "--loads spaces arrivals" in capsys.readouterr().err


def test_the_command_simulates_loops_from_a_file_with_sessions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    command = ["simulate", "multi-turn", "--requests", "60", "--clients", "3", "--workers", "1"]
    assert cli.main([*command, "--concurrency", "*=2", "--json", str(result)]) == 0
    told = json.loads(result.read_text())
    assert told["num_prompts"] >= 60
    assert told["load"] == 0
    assert any(
        label.startswith("closed loops (synthetic): client-0 keeps 2 open") for label in told["labels"]
    )
    capsys.readouterr()


def test_every_pass_has_keys_of_its_own_and_the_same_sharing() -> None:
    trace = with_loops(generate("shared-prefix", requests=50, clients=2, seed=3), {EVERYONE: Loop(1)})
    mine = [session for session in trace.sessions() if session.client == "client-0"]
    streams = LoopStreams(trace)
    passes = [[streams.take("client-0") for _ in mine] for _ in range(3)]
    assert passes[0] == mine
    used = [{key for session in one for t in session.turns for key in t.keys} for one in passes]
    assert len(used[0] | used[1] | used[2]) == 3 * len(used[0])
    for one in passes[1:]:
        renamed = dict(
            zip(*([k for s in each for k in s.turns[0].keys] for each in (mine, one)), strict=True)
        )
        assert len(set(renamed.values())) == len(renamed)
        for before, after in zip(mine, one, strict=True):
            assert [renamed[key] for key in before.turns[0].keys] == list(after.turns[0].keys)
            assert before.turns[0][:2] == after.turns[0][:2]
    # The slower client still gets its own first pass.
    assert streams.take("client-1") == next(s for s in trace.sessions() if s.client == "client-1")
