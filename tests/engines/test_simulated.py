"""The simulator against a real vLLM that is sent the same requests.

Decisions are compared step by step: the model of the engine is given the arrivals of each step of vLLM's
log, and has to do the same in every one of them. Machine and timing play no part in that.

Times are compared with a simulation in virtual time, whose step times were fitted to other traffic: for the
engine alone (requests arrive when it had them) and for the client (they arrive when they were due). They
are told, beside those of the same workload sent twice: on a machine that does other work as well they say
more about that than about the simulator.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import pytest

from fairlead.engine.measured import distribution
from fairlead.engine.model import Engine as Model
from fairlead.engine.profiles import DEFAULT_PROFILE, load_profile
from fairlead.engine.step_log import LoggedStep, read_step_log
from fairlead.report.run import Requests
from fairlead.simulate.settings import Settings
from fairlead.simulate.world import World
from fairlead.trace.model import Trace
from tests.engines.servers import BLOCK_TOKENS, LOGS, MODEL
from tests.engines.stepwise import Follower, arriving, send
from tests.engines.workloads import (
    AGAIN,
    BATCHED_TOKENS,
    FLOOD,
    GROWING,
    KV_BLOCKS,
    LONE,
    PRESSED,
    SEQUENCES,
    STEADY,
    Workloads,
    logging_engine,
)

COMPARED = (STEADY, AGAIN, PRESSED, FLOOD, GROWING)
PASSES, PAUSE = 4, 1.5
SHOWN = ("mean", "p50", "p95", "p99")


@dataclass(frozen=True)
class Measured:
    """What the real engine did with each workload, in the order in which they were sent."""

    traces: dict[str, Trace]
    seen: dict[str, Requests]
    steps: list[LoggedStep]
    calibration: Path
    """The log as it was before the workloads that are compared."""


@pytest.fixture(scope="module")
def measured() -> Measured:
    LOGS.mkdir(parents=True, exist_ok=True)
    log, calibration = LOGS / "steps.csv", LOGS / "calibration.csv"
    engine = logging_engine(3, str(log))
    traces, seen = {}, {}

    def sent(some: Iterator[Trace]) -> None:
        for trace in some:
            traces[trace.name] = trace
            seen[trace.name] = send(engine.url, trace)

    engine.start()
    try:
        engine.wait_ready(engine.url + "/health", 240)
        workloads = Workloads()
        sent(workloads.calibration())
        shutil.copy(log, calibration)
        sent(workloads.compared())
    finally:
        engine.stop()
    return Measured(traces, seen, read_step_log(log), calibration)


@pytest.fixture(scope="module")
def followed(measured: Measured) -> Follower:
    """The model after all steps of the real engine; the test fails where they differ."""
    model = Model(
        load_profile(DEFAULT_PROFILE),  # times play no part
        block_tokens=BLOCK_TOKENS,
        kv_blocks=KV_BLOCKS - 1,
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=BATCHED_TOKENS,
    )
    ours = Follower(model, list(measured.traces.values()))
    assert ours.follow(measured.steps) == []
    return ours


def test_every_step_of_the_real_engine_is_the_models(measured: Measured, followed: Follower) -> None:
    """Who is admitted, with how many cached tokens, what is computed, who is preempted, who ends."""
    assert followed.evicted > 1000, "the cache was under pressure"
    assert followed.preempted > 10, "answers outgrew the pool"
    for name in COMPARED:
        mine = [followed.hits[session.client] for session in measured.traces[name].sessions()]
        theirs = list(measured.seen[name].cached)
        assert mine == theirs, f"{name}: what the clients were told is what the model found"
        assert sum(theirs) > 0
    assert sum(measured.seen[PRESSED].cached) < 0.9 * sum(measured.seen[STEADY].cached)
    counts = f"{followed.evicted:,} evictions, {followed.preempted} preemptions"
    print(f"\n{len(measured.steps):,} steps, {counts}: all equal")


class Watched(World):
    """A simulation that notes the order of admission."""

    def __init__(self, trace: Trace, settings: Settings) -> None:
        super().__init__(trace, settings)
        self.order: list[int] = []
        plain = self.clients.admitted

        def admitted(row: int, cached_tokens: int) -> None:
            self.order.append(row)
            plain(row, cached_tokens)

        self.clients.admitted = admitted


@pytest.fixture(scope="module")
def profile(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of this machine, fitted to the steps of the calibration as anybody would.

    Steps far longer than a first fit says are pauses of the machine: they are left out, and the rest is
    fitted again.
    """
    folder = tmp_path_factory.mktemp("profile")
    table = measured.calibration
    for attempt in range(PASSES):
        path = fit(table, folder / f"tiny-{attempt}.toml")
        times = load_profile(path).steps
        header, *lines = measured.calibration.read_text().splitlines()
        steps = zip(lines, read_step_log(measured.calibration), strict=True)
        kept = [line for line, step in steps if step.step_us < PAUSE * times.step_us(step.work)]
        print(f"{len(kept):,} of {len(lines):,} steps are no pauses")
        table = folder / f"steps-{attempt}.csv"
        table.write_text("\n".join([header, *kept]) + "\n")
    return path


def fit(table: Path, path: Path) -> Path:
    options = {
        "--name": "tiny-cpu",
        "--model": MODEL,
        "--gpu": "this machine",
        "--kv-tokens": (KV_BLOCKS - 1) * BLOCK_TOKENS,
        "--kv-bytes-per-token": 1024,
        "--max-model-len": 4096,
        "--max-num-seqs": SEQUENCES,
        "--max-num-batched-tokens": BATCHED_TOKENS,
        "--out": path,
    }
    command = [sys.executable, "-m", "fairlead", "profile", "fit", str(table)]
    for name, value in options.items():
        command += [name, str(value)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"\n{done.stdout}")
    return path


class Story(NamedTuple):
    """What happened to the requests of a workload, each by its name."""

    admitted: Sequence[str]
    """In order."""
    cached: Mapping[str, int]
    ttft_ms: Mapping[str, float]
    tpot_ms: Mapping[str, float]


def story(names: Sequence[str], rows: Requests, admitted: Sequence[str]) -> Story:
    """Return what the clients saw of requests in order of arrival."""
    spans = zip(names, rows.arrived, rows.first, rows.ended, rows.output, strict=True)
    ttft, tpot = {}, {}
    for name, arrived, first, ended, output in spans:
        ttft[name] = (first - arrived) / 1000
        if output > 1:
            tpot[name] = (ended - first) / 1000 / (output - 1)
    return Story(admitted, dict(zip(names, rows.cached, strict=True)), ttft, tpot)


def names_of(trace: Trace) -> list[str]:
    return [session.client for session in trace.sessions()]


def at_the_clients(measured: Measured, followed: Follower, workload: str) -> Story:
    """What really happened, from when a request was due to when its tokens were read."""
    names = names_of(measured.traces[workload])
    order = [name for name in followed.hits if name.rpartition("-")[0] == workload]
    return story(names, measured.seen[workload], order)


def inside_the_engine(measured: Measured, followed: Follower, workload: str) -> Story:
    """What really happened, from when the engine had a request to the ends of its steps."""
    clients = at_the_clients(measured, followed, workload)
    ttft, tpot = {}, {}
    for session in measured.traces[workload].sessions():
        name, output = session.client, session.turns[0].output_tokens
        first, ended = followed.first_us[name], followed.ended_us[name]
        ttft[name] = (first - followed.arrived_us[name]) / 1000
        if output > 1:
            tpot[name] = (ended - first) / 1000 / (output - 1)
    return clients._replace(ttft_ms=ttft, tpot_ms=tpot)


def simulated(trace: Trace, profile: Path, hop_us: int) -> Story:
    settings = Settings(
        policy="round_robin", order="fcfs", workers=1, topology="engine", engine=str(profile), hop_us=hop_us
    )
    world = Watched(trace, settings)
    rows, names = world.run().requests, names_of(trace)
    return story(names, rows, [names[rid] for rid in world.order])


def hop_us(measured: Measured, followed: Follower) -> int:
    """Return half of what a lone request's TTFT is at its client above the engine's own."""
    real = at_the_clients(measured, followed, LONE), inside_the_engine(measured, followed, LONE)
    extra = [real[0].ttft_ms[name] - inside for name, inside in real[1].ttft_ms.items()]
    return max(1, round(median(extra) / 2 * 1000))


def inversions(order: Sequence[str], other: Sequence[str]) -> int:
    """Return Kendall's distance of two orders: pairs that come the other way round."""
    place = {one: i for i, one in enumerate(other)}
    places = [place[one] for one in order]
    return sum(places[i] > later for i in range(len(places)) for later in places[i + 1 :])


def compared(real: Story, ours: Story) -> dict[str, Any]:
    """Return real and simulated figures beside each other."""
    found: dict[str, Any] = {
        "requests": len(real.cached),
        "hits_equal": sum(cached == ours.cached[name] for name, cached in real.cached.items()),
        "kendall": inversions(real.admitted, ours.admitted),
    }
    for what in ("ttft_ms", "tpot_ms"):
        sides = [distribution(getattr(side, what).values()) for side in (real, ours)]
        found[what] = {key: [round(side[key], 3) for side in sides] for key in sides[0]}
        found[what]["error"] = round(sides[1]["mean"] / sides[0]["mean"] - 1, 4)
    return found


def told(name: str, one: Mapping[str, Any]) -> None:
    print(f"{name}: hits equal {one['hits_equal']} of {one['requests']}, Kendall distance {one['kendall']}")
    for what in ("ttft_ms", "tpot_ms"):
        figures = ", ".join(f"{key} {one[what][key][0]:.1f} / {one[what][key][1]:.1f}" for key in SHOWN)
        print(f"  {what} real / simulated: {figures}; error of the mean {one[what]['error']:+.1%}")


def test_simulated_in_time(measured: Measured, followed: Follower, profile: Path) -> None:
    report: dict[str, Any] = {}
    for name in COMPARED:
        trace = measured.traces[name]
        inside, clients = (
            inside_the_engine(measured, followed, name),
            at_the_clients(measured, followed, name),
        )
        ours = simulated(arriving(trace, followed.arrived_us), profile, hop_us=1)
        report[f"{name}, engine"] = compared(inside, ours)
        ours = simulated(trace, profile, hop_us(measured, followed))
        report[f"{name}, clients"] = compared(clients, ours)
    for where, real in (("engine", inside_the_engine), ("clients", at_the_clients)):
        twice = [real(measured, followed, name) for name in (STEADY, AGAIN)]
        ttft, tpot = ([mean(getattr(one, what).values()) for one in twice] for what in ("ttft_ms", "tpot_ms"))
        report[f"noise, {where}"] = {
            "ttft": round(ttft[1] / ttft[0] - 1, 4),
            "tpot": round(tpot[1] / tpot[0] - 1, 4),
        }
    (LOGS / "accuracy.json").write_text(json.dumps(report, indent=1))
    print()
    for name, one in report.items():
        if "noise" in name:
            print(f"the same workload sent twice, {name}: {one}")
        else:
            told(name, one)
    for name in COMPARED:
        one = report[f"{name}, engine"]
        assert one["kendall"] == 0, f"{name}: admitted in another order"
        if name != PRESSED:
            # Without pressure on what is shared, hits follow from the order and not from the time.
            assert one["hits_equal"] >= 0.98 * one["requests"]
    # Of the right magnitude where a queue of seconds outweighs a shared machine's pauses.
    real, ours_mean = report[f"{FLOOD}, engine"]["ttft_ms"]["mean"]
    assert 0.2 < ours_mean / real < 5
