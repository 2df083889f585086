"""The model against runs of real engines, none of which was used to fit it.

- 300 ShareGPT requests, Llama-3.1-8B, RTX PRO 6000, vLLM 0.19 (LLMServingSim, MIT).
- The same requests on an RTX 4090, six times what it can do: most of them wait for a minute or two.
- Llama-3.1-8B on H100, TensorRT-LLM, fixed concurrency (NVIDIA aiconfigurator, Apache-2.0).

The data is not copied here: FAIRLEAD_DATA names a directory that holds it under profiles/ and traces/.
"""

import csv
import gzip
import os
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import pytest

from fairlead.core.model import Request
from fairlead.engine.measured import compare, read_run, replay
from fairlead.engine.model import Engine
from fairlead.engine.profiles import PROFILES

DATA = Path(os.environ.get("FAIRLEAD_DATA", ""))
MEASURED = DATA / "profiles/llmservingsim/RTXPRO6000/bench_Llama-3.1-8B/requests.jsonl"
BLOCKS = DATA / "traces/llmservingsim/sharegpt-llama-3.1-8b-300-sps10.hashed16.jsonl.gz"

SILICON = DATA / "profiles/aiconfigurator/silicon_sample.csv.gz"


def needs(*paths: Path) -> pytest.MarkDecorator:
    present = os.environ.get("FAIRLEAD_DATA") and all(path.exists() for path in paths)
    return pytest.mark.skipif(not present, reason="set FAIRLEAD_DATA to a directory with measured runs")


@needs(MEASURED, BLOCKS)
def test_times_are_those_of_the_real_engine() -> None:
    """Mean TTFT within 4% and mean TPOT within 1.5%, though the run is close to saturation."""
    run = read_run(MEASURED.parent, BLOCKS)
    assert run.limits == {"max_num_seqs": 128, "max_num_batched_tokens": 2048}
    found = compare(run, replay(run, PROFILES["llama-3.1-8b-rtx-pro-6000"]))
    ttft, tpot = found["ttft_s"]["mean"]["error"], found["tpot_s"]["mean"]["error"]
    assert abs(ttft) < 0.04, f"mean TTFT is off by {ttft:+.1%}"
    assert abs(tpot) < 0.015, f"mean TPOT is off by {tpot:+.1%}"
    assert abs(found["end_s"]["error"]) < 0.015


RTX_4090 = {"ttft_s": (65.4566, 137.3563), "tpot_s": (0.0324, 0.0560)}
"""Mean and P99 of the real engine, as LLMServingSim publishes them (bench/examples/RTX4090, summary.txt)."""


@needs(MEASURED, BLOCKS)
@pytest.mark.parametrize("ahead", [False, True])
def test_times_on_a_second_gpu_are_those_of_the_real_engine(ahead: bool) -> None:
    """No coefficient of this profile comes from a run on its GPU, and the KV pool preempts 190 times.

    The real pool had 2,588 blocks, of which vLLM's null block holds nothing.
    """
    run = replace(
        read_run(MEASURED.parent, BLOCKS), limits={"max_num_seqs": 256, "max_num_batched_tokens": 2048}
    )
    found = replay(run, PROFILES["llama-3.1-8b-rtx-4090"], ahead=ahead, kv_blocks=2_587)
    assert found.preemptions > 100
    report = compare(run, found)
    for name, limit in (("ttft_s", 0.04), ("tpot_s", 0.015)):
        for key, measured in zip(("mean", "p99"), RTX_4090[name], strict=True):
            error = report[name][key]["modelled"] / measured - 1
            assert abs(error) < limit, f"{name} {key} is off by {error:+.1%}"


def closed_loop_tpot_s(prompt: int, output: int, concurrency: int) -> float:
    """Mean TPOT when ``concurrency`` callers each send their next request once answered, four times."""
    engine = Engine(PROFILES["llama-3.1-8b-h100"], max_num_batched_tokens=8_192)
    total = 4 * concurrency
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    sent = now = 0
    while len(last) < total:
        while sent < total and sent - len(last) < concurrency:
            engine.submit(Request(sent, "", prompt), output, now)
            sent += 1
        result = engine.step(now)
        assert result is not None
        now += result.duration_us
        first.update(dict.fromkeys(result.first, now))
        last.update(dict.fromkeys(result.finished, now))
    return mean(last[i] - first[i] for i in last) / (output - 1) / 1e6


@needs(SILICON)
def test_tpot_on_h100_is_near_that_of_another_engine() -> None:
    """TensorRT-LLM is not vLLM, but reads the same weights: median error within 6%, all within 20%."""
    with gzip.open(SILICON, "rt") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if "Llama-3.1-8B" in row["model_path"]
            and (row["system"], row["mode"], row["tp_size"], row["precision"]) == ("h100_sxm", "agg", "1", "")
            and int(row["batch_size"]) <= 64
        ]
    assert len(rows) > 30
    errors = [
        closed_loop_tpot_s(int(row["isl"]), int(row["osl"]), int(row["batch_size"]))
        / (float(row["silicon_tpot_ms"]) / 1e3)
        - 1
        for row in rows
    ]
    assert median(map(abs, errors)) < 0.06
    assert max(map(abs, errors)) < 0.20
