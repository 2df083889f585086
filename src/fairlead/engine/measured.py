"""A measured run of a real engine, replayed through the model and compared with it.

The run is a folder as LLMServingSim's bench leaves it: ``requests.jsonl`` (input_toks, output_toks,
arrival_time on the client's clock; queued_ts, first_token_ts, last_token_ts on the engine's) and, where
there is one, ``meta.json`` with the engine's limits.
"""

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.core.model import BlockKey, Request
from fairlead.engine.model import Engine
from fairlead.engine.profiles import Profile

BLOCK_TOKENS = 16
QUANTILES = (5, 10, 25, 50, 75, 90, 95, 99)


class Times(NamedTuple):
    """What a client sees of one request, in seconds. TPOT is None for a single token of output."""

    ttft_s: float
    tpot_s: float | None


class MeasuredRequest(NamedTuple):
    """One request of the run. ``keys``: its prompt's full blocks, if known."""

    prompt_tokens: int
    output_tokens: int
    arrival_us: int
    """From the first arrival of the run on."""
    queued_us: int
    """When the engine took it in, which it does between steps."""
    times: Times
    keys: Sequence[BlockKey]


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The requests in order of arrival, the engine's limits as far as known, and the last token's time."""

    requests: Sequence[MeasuredRequest]
    limits: dict[str, int]
    end_s: float


class Replay(NamedTuple):
    """The same requests in the model."""

    times: Sequence[Times]
    end_s: float
    steps: int
    hit_tokens: int
    preemptions: int


def read_run(folder: Path, blocks: Path | None = None) -> MeasuredRun:
    """Read a measured run; ``blocks`` names a file of one ``hash_ids`` list (16-token blocks) a request.

    Raises ValueError for a missing file or key.
    """
    rows = _json_lines(folder / "requests.jsonl")
    keys = [row["hash_ids"] for row in _json_lines(blocks)] if blocks else [[]] * len(rows)
    if not rows or len(keys) < len(rows):
        raise ValueError(f"{folder}: {len(rows)} requests, and blocks of {len(keys)}")
    try:
        # The clocks differ. The request that was taken in fastest shows by how much.
        shift = min(row["queued_ts"] - row["arrival_time"] for row in rows)
        requests = [
            _request(row, ids, shift, rows[0]["arrival_time"]) for row, ids in zip(rows, keys, strict=False)
        ]
        end_s = max(row["last_token_ts"] for row in rows) - shift - rows[0]["arrival_time"]
    except KeyError as error:
        raise ValueError(f"{folder / 'requests.jsonl'}: a request without {error}") from None
    return MeasuredRun(sorted(requests, key=lambda r: r.arrival_us), _limits(folder / "meta.json"), end_s)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        packed = path.read_bytes()
        lines = (gzip.decompress(packed) if path.suffix == ".gz" else packed).splitlines()
        return [json.loads(line) for line in lines]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from None


def _request(row: dict[str, Any], ids: Sequence[BlockKey], shift: float, start: float) -> MeasuredRequest:
    prompt, output = int(row["input_toks"]), int(row["output_toks"])
    first, last = row["first_token_ts"], row["last_token_ts"]
    arrival = row["arrival_time"]
    return MeasuredRequest(
        prompt,
        output,
        round((arrival - start) * 1e6),
        round((row["queued_ts"] - shift - start) * 1e6),
        Times(first - shift - arrival, (last - first) / (output - 1) if output > 1 else None),
        ids[: prompt // BLOCK_TOKENS],
    )


def _limits(path: Path) -> dict[str, int]:
    """Return the limits in the run's meta.json; ``kv_blocks`` is one less, as vLLM's null block is empty."""
    if not path.exists():
        return {}
    meta = json.loads(path.read_text())
    kwargs, cache = (
        meta.get(key, {}) if isinstance(meta, dict) else None for key in ("engine_kwargs", "kv_cache")
    )
    if not isinstance(kwargs, dict) or not isinstance(cache, dict):
        raise ValueError(f"{path}: engine_kwargs and kv_cache are tables of a JSON object")
    found = {key: kwargs.get(key) for key in ("max_num_seqs", "max_num_batched_tokens")}
    found["kv_blocks"] = cache.get("num_gpu_blocks")
    for key, value in found.items():
        least = 2 if key == "kv_blocks" else 1
        if value is not None and (type(value) is not int or value < least):
            shown = "kv_cache.num_gpu_blocks" if key == "kv_blocks" else f"engine_kwargs.{key}"
            raise ValueError(f"{path}: {shown} is {value!r}, not a whole number from {least} up")
    if found["kv_blocks"]:
        found["kv_blocks"] -= 1
    return {key: value for key, value in found.items() if value}


def replay(run: MeasuredRun, profile: Profile, *, ahead: bool = False, **limits: int) -> Replay:
    """Send the run's requests to the model of the engine at the times of the run; return what they saw.

    ``ahead``: a step is composed while the one before it computes, as asynchronous scheduling does, so a
    request that arrives during a step is in the one after the next. ``limits`` (kv_blocks, max_num_seqs,
    max_num_batched_tokens) come before the run's own.
    """
    chosen = {**run.limits, **limits}
    engine = Engine(
        profile,
        block_tokens=BLOCK_TOKENS,
        kv_blocks=chosen.get("kv_blocks"),
        max_num_seqs=chosen.get("max_num_seqs"),
        max_num_batched_tokens=chosen.get("max_num_batched_tokens"),
    )
    requests = run.requests
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    now = composed = following = steps = 0
    while len(last) < len(requests):
        while following < len(requests) and requests[following].arrival_us <= composed:
            r = requests[following]
            engine.submit(Request(following, "", r.prompt_tokens, r.keys), r.output_tokens, now)
            following += 1
        result = engine.step(now)
        if result is None:
            composed = now = max(now, requests[following].arrival_us)
            continue
        start, now = now, now + result.duration_us
        composed = start if ahead else now
        steps += 1
        first.update(dict.fromkeys(result.first, now))
        last.update(dict.fromkeys(result.finished, now))
    times = [
        Times(
            (first[i] - r.arrival_us) / 1e6,
            (last[i] - first[i]) / 1e6 / (r.output_tokens - 1) if r.output_tokens > 1 else None,
        )
        for i, r in enumerate(requests)
    ]
    load = engine.load
    return Replay(times, max(last.values()) / 1e6, steps, load.prefix_hits, load.preemptions)


def arriving_when_queued(run: MeasuredRun) -> MeasuredRun:
    """Return the run as its engine saw it: requests arrive when it took them in, TTFT counts from there."""
    moved = [
        r._replace(
            arrival_us=r.queued_us,
            times=r.times._replace(ttft_s=r.times.ttft_s - (r.queued_us - r.arrival_us) / 1e6),
        )
        for r in run.requests
    ]
    return replace(run, requests=sorted(moved, key=lambda r: r.arrival_us))


def compare(run: MeasuredRun, found: Replay) -> dict[str, Any]:
    """Return mean and quantiles of TTFT and TPOT, measured and modelled, and their relative errors."""
    report: dict[str, Any] = {
        "requests": len(run.requests),
        "end_s": _beside(run.end_s, found.end_s),
        "steps": found.steps,
        "hit_tokens": found.hit_tokens,
        "preemptions": found.preemptions,
    }
    real = [r.times for r in run.requests]
    for name in ("ttft_s", "tpot_s"):
        pair = [distribution([getattr(t, name) for t in side]) for side in (real, found.times)]
        report[name] = {key: _beside(pair[0][key], pair[1][key]) for key in pair[0]}
    return report


def _beside(measured: float, modelled: float) -> dict[str, float]:
    return {"measured": measured, "modelled": modelled, "error": modelled / measured - 1 if measured else 0.0}


def distribution(values: Iterable[float | None]) -> dict[str, float]:
    """Return mean and quantiles (linear between values) of what is not None."""
    found = sorted(value for value in values if value is not None)
    if not found:
        raise ValueError("no values: a run needs requests with more than one token of output")
    result = {"mean": sum(found) / len(found)}
    for percent in QUANTILES:
        place = (len(found) - 1) * percent / 100
        low, high = found[math.floor(place)], found[math.ceil(place)]
        result[f"p{percent}"] = low + (high - low) * (place - math.floor(place))
    return result


def sensitivity(run: MeasuredRun, profile: Profile) -> list[tuple[str, dict[str, Any]]]:
    """Return the comparison again with one assumption changed at a time, the unchanged one first."""
    steps = profile.steps
    pool = run.limits.get("kv_blocks", profile.kv_tokens // BLOCK_TOKENS)
    unknown = replace(run, requests=[r._replace(keys=()) for r in run.requests])
    times = {f"t_cpu {us} us": replace(steps, cpu_us=us) for us in (0, 1_000, 2_000)}
    times["without k_mix"] = replace(steps, mixed_context_ns=0)
    times["without t_seq"] = replace(steps, sequence_us=0)
    pools = {f"KV pool x {factor}": int(pool * factor) for factor in (0.8, 1.2)}
    variants: list[tuple[str, MeasuredRun, Profile, dict[str, Any]]] = [
        ("as it is", run, profile, {}),
        *((name, run, replace(profile, steps=changed), {}) for name, changed in times.items()),
        *((name, run, profile, {"kv_blocks": blocks}) for name, blocks in pools.items()),
        ("steps composed ahead", run, profile, {"ahead": True}),
        ("arrivals when queued", arriving_when_queued(run), profile, {}),
        ("no prefix cache", unknown, profile, {}),
    ]
    return [(name, compare(a, replay(a, p, **options))) for name, a, p, options in variants]
