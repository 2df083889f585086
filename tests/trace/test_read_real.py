"""The published traces themselves, where they lie: counts and shares as their papers and files state them.

They are not copied here: FAIRLEAD_DATA names a directory that holds them under traces/.
"""

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from fairlead.trace.clients import assign_clients, common_blocks
from fairlead.trace.model import Trace
from fairlead.trace.reachable import reachable
from fairlead.trace.reading import read_trace
from tests.trace.shapes import check_trace, quotes, shared_blocks

DATA = Path(os.environ.get("FAIRLEAD_DATA", "")) / "traces"


def real(name: str, **options: object) -> Trace:
    path = DATA / name
    if not os.environ.get("FAIRLEAD_DATA") or not path.exists():
        pytest.skip(f"set FAIRLEAD_DATA to a directory with traces/{name}")
    return read_trace(path, **options)  # type: ignore[arg-type]


def test_mooncake() -> None:
    trace = real("mooncake/conversation_trace.jsonl.zst")
    sessions = check_trace(trace)
    assert (trace.requests, trace.block_tokens, trace.repairs) == (12_031, 512, ())
    assert trace.duration_us == pytest.approx(59 * 60e6, rel=0.01)
    assert reachable(trace) == pytest.approx(0.374, abs=0.001)
    assert any("rounded to 3 s" in label for label in trace.labels)
    assert max(Counter(session.at for session in sessions).values()) == 1
    assert common_blocks(trace) == 1
    by_chain = Counter(session.client for session in assign_clients(trace, "prefix", 8).sessions())
    assert len(by_chain) == 8


def test_kv_cache_tester() -> None:
    trace = real("kv-cache-tester/sessions_odd.tar.zst")
    assert trace.requests == 25_226
    prompt = 0
    names = set()
    answered = 0
    for session in trace.sessions():
        names.add(session.name)
        for turn in session.turns:
            prompt += turn.prompt_tokens
    assert len(names) == 350
    assert prompt / trace.requests == pytest.approx(117_235, abs=1)
    for session in islice(trace.sessions(), 20):
        turns = list(islice(session.turns, 40))
        quoted = {turn.after for turn in turns[1:] if quotes(turn, turns[turn.after])}
        answered += sum(bool(turn.output_keys) for turn in turns[:-1])
        # The last one may be quoted beyond the 40; a sub-agent quotes nobody.
        assert {number for number, turn in enumerate(turns[:-1]) if turn.output_keys} <= quoted | {38}
    assert answered > 200


def test_kv_cache_tester_capped() -> None:
    trace = real("kv-cache-tester/sessions_odd.tar.zst", max_prompt_tokens=32_000)
    sessions = check_trace(trace)
    assert max(turn.prompt_tokens for session in sessions for turn in session.turns) <= 32_000
    (cap,) = [repair for repair in trace.repairs if "32000 tokens of prompt" in repair.rule]
    assert cap.count + trace.requests == 25_226


def test_servegen() -> None:
    archive = "servegen/deepseek-r1_and_m-large.tar.zst"
    trace = real(archive, model="deepseek-r1", duration_s=86_400, scale=0.2)
    assert trace.requests == pytest.approx(1_383_669 * 0.2, rel=0.02)
    assert len(trace.clients) == 73
    counts = Counter(session.client for session in trace.sessions())
    assert sum(count for _, count in counts.most_common(10)) / trace.requests == pytest.approx(
        0.677, abs=0.02
    )


def test_tables() -> None:
    arena = real("vtc-arena/arena_real_trace.csv")
    assert (arena.requests, len(arena.clients), arena.duration_us) == (1_500, 27, 600_000_000)
    assert real("azure/AzureLLMInferenceTrace_code.csv.gz").requests == 8_819
    assert real("azure/AzureLLMInferenceTrace_conv.csv.gz").requests == 19_366


def test_measured_requests() -> None:
    trace = real("llmservingsim/sharegpt-llama-3.1-8b-300-sps10.hashed16.jsonl.gz")
    sessions = check_trace(trace)
    assert (trace.requests, trace.block_tokens, trace.repairs) == (300, 16, ())
    assert trace.requests / (trace.duration_us / 1e6) == pytest.approx(10, rel=0.1)
    assert sessions[0].turns[0][:2] == (2358, 531)


def test_tau_bench() -> None:
    trace = real("tau-bench/gpt-4o-airline.json.zst")
    sessions = check_trace(trace)
    assert len(sessions) == 200
    assert shared_blocks(sessions[0].turns[0], sessions[-1].turns[0]) > 90  # one system prompt of 6,155 bytes
    assert all(quotes(b, a) for s in sessions for a, b in zip(s.turns, s.turns[1:], strict=False))
