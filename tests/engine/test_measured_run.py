"""The model against runs of real engines, none of which was used to fit it.

- 300 ShareGPT requests, Llama-3.1-8B, RTX PRO 6000, vLLM 0.19 (LLMServingSim, MIT).
- Llama-3.1-8B on H100, TensorRT-LLM, fixed concurrency (NVIDIA aiconfigurator, Apache-2.0).

The data is not copied here: FAIRLEAD_DATA names a directory that holds it under profiles/ and traces/.
"""

import csv
import gzip
import json
import os
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import pytest

from fairlead.core.model import Request
from fairlead.engine.model import Engine
from fairlead.engine.profiles import PROFILES

DATA = Path(os.environ.get("FAIRLEAD_DATA", ""))
MEASURED = DATA / "profiles/llmservingsim/RTXPRO6000/bench_Llama-3.1-8B/requests.jsonl"
BLOCKS = DATA / "traces/llmservingsim/sharegpt-llama-3.1-8b-300-sps10.hashed16.jsonl.gz"

SILICON = DATA / "profiles/aiconfigurator/silicon_sample.csv.gz"


def needs(*paths: Path) -> pytest.MarkDecorator:
    present = os.environ.get("FAIRLEAD_DATA") and all(path.exists() for path in paths)
    return pytest.mark.skipif(not present, reason="set FAIRLEAD_DATA to a directory with measured runs")


class Times(NamedTuple):
    ttft_s: float
    tpot_s: float


def measured(requests: list[dict[str, float]]) -> list[Times]:
    return [
        Times(
            r["first_token_ts"] - r["queued_ts"],
            (r["last_token_ts"] - r["first_token_ts"]) / (r["output_toks"] - 1),
        )
        for r in requests
    ]


def modelled(requests: list[dict[str, float]], keys: list[list[int]]) -> list[Times]:
    """Run the same requests at the same times through the model."""
    engine = Engine(PROFILES["llama-3.1-8b-rtx-pro-6000"], max_num_seqs=128)
    arrivals = [round((r["arrival_time"] - requests[0]["arrival_time"]) * 1e6) for r in requests]
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    now = following = 0
    while len(last) < len(requests):
        while following < len(requests) and arrivals[following] <= now:
            prompt, output = int(requests[following]["input_toks"]), int(requests[following]["output_toks"])
            engine.submit(Request(following, "", prompt, keys[following][: prompt // 16]), output, now)
            following += 1
        result = engine.step(now)
        if result is None:
            now = arrivals[following]
            continue
        now += result.duration_us
        first.update(dict.fromkeys(result.first, now))
        last.update(dict.fromkeys(result.finished, now))
    return [
        Times((first[i] - arrivals[i]) / 1e6, (last[i] - first[i]) / 1e6 / (r["output_toks"] - 1))
        for i, r in enumerate(requests)
    ]


@needs(MEASURED, BLOCKS)
def test_times_are_those_of_the_real_engine() -> None:
    """Mean TTFT within 5% and mean TPOT within 2%, though the run is close to saturation."""
    requests = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    with gzip.open(BLOCKS, "rt") as lines:
        keys = [json.loads(line)["hash_ids"] for line in lines]
    real, model = measured(requests), modelled(requests, keys)
    ttft = mean(t.ttft_s for t in model) / mean(t.ttft_s for t in real) - 1
    tpot = mean(t.tpot_s for t in model) / mean(t.tpot_s for t in real) - 1
    assert abs(ttft) < 0.05, f"mean TTFT is off by {ttft:+.1%}"
    assert abs(tpot) < 0.02, f"mean TPOT is off by {tpot:+.1%}"


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
