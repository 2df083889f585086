"""How fast the engine model runs: in virtual time, step by step, and as a server, per streamed token.

    python -m benchmarks.engine [--quick] [--json FILE]

The naive engine (tests/engine/naive.py), which touches every sequence at every step, runs the same
requests in the same process; the ratio is what to compare between machines, the rest is for
orientation. Each figure is the best of several rounds, since machines are shared.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import uvloop
from tests.engine.naive import NaiveEngine

from fairlead.core.model import Request
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.engine.model import Engine
from fairlead.engine.profiles import PROFILES
from fairlead.engine.server import EngineConfig, EngineServer

PROFILE = PROFILES["llama-3.1-8b-h100"]
BLOCK = 16


class Load(NamedTuple):
    """A workload: how long prompts and answers are, what prompts share, how big the KV pool is."""

    name: str
    prompt: int
    shared: int
    """Leading tokens that a quarter of all prompts have in common."""
    output: int
    gap_us: int
    """Mean time between arrivals."""
    blocks: int
    seqs: int


LOADS = (
    Load("chat", 600, 200, 250, 40_000, 28_000, 256),
    Load("documents", 8_000, 7_500, 100, 120_000, 28_000, 256),
    Load("tight", 600, 200, 250, 40_000, 1_500, 256),
)
ORDERINGS = ("fcfs", "lpm", "vtc", "dlpm")


class Arrival(NamedTuple):
    """One request of a workload."""

    at_us: int
    request: Request
    output: int
    output_keys: list[int]


def arrivals(load: Load, count: int) -> list[Arrival]:
    """Return the same ``count`` requests every time: log-normal lengths, Poisson arrivals, 8 clients."""
    draw = random.Random(load.name)
    made = []
    at = 0
    for rid in range(count):
        at += round(draw.expovariate(1 / load.gap_us))
        family = draw.randrange(4)
        prompt = max(1, round(load.shared + draw.lognormvariate(0, 0.6) * (load.prompt - load.shared)))
        output = min(2_000, max(1, round(draw.lognormvariate(0, 0.7) * load.output)))
        chain = [
            hash((family, i) if i < load.shared // BLOCK else (rid, family, i)) & (2**60 - 1)
            for i in range((prompt + output) // BLOCK)
        ]
        keys = chain[: prompt // BLOCK]
        request = Request(rid, f"client-{rid % 8}", prompt, keys, BLOCK, arrived_us=at)
        made.append(Arrival(at, request, output, chain[len(keys) :]))
    return made


class Run(NamedTuple):
    """What one run took and did."""

    wall_s: float
    steps: int
    model_s: float
    preemptions: int


def simulate(load: Load, order: str, todo: list[Arrival]) -> Run:
    """Run the engine model through ``todo``."""
    ordering = make_ordering(order, {}, OrderingContext())
    engine = Engine(PROFILE, ordering, block_tokens=BLOCK, kv_blocks=load.blocks, max_num_seqs=load.seqs)
    begin = time.perf_counter()
    now = steps = following = 0
    while True:
        while following < len(todo) and todo[following].at_us <= now:
            _, request, output, output_keys = todo[following]
            engine.submit(request, output, now, output_keys)
            following += 1
        result = engine.step(now)
        if result is not None:
            now += result.duration_us
            steps += 1
        elif following < len(todo):
            now = todo[following].at_us
        else:
            return Run(time.perf_counter() - begin, steps, now / 1e6, engine.load.preemptions)


def simulate_naively(load: Load, todo: list[Arrival]) -> float:
    """Run the naive engine through ``todo``; return the wall time in seconds."""
    engine = NaiveEngine(PROFILE, load.blocks, BLOCK, load.seqs, PROFILE.max_num_batched_tokens)
    begin = time.perf_counter()
    now = following = 0
    while True:
        while following < len(todo) and todo[following].at_us <= now:
            engine.submit(todo[following].request, todo[following].output, todo[following].output_keys)
            following += 1
        result = engine.step()
        if result is not None:
            now += int(str(result["duration_us"]))
        elif following < len(todo):
            now = todo[following].at_us
        else:
            return time.perf_counter() - begin


def measure_model(count: int, rounds: int) -> list[dict[str, object]]:
    """Time every workload under every ordering; the naive engine on a part of each."""
    rows: list[dict[str, object]] = []
    for load in LOADS:
        todo = arrivals(load, count)
        part = todo[: max(50, count // 10)]
        naive = min(simulate_naively(load, part) for _ in range(max(1, rounds // 2)))
        ours = min(simulate(load, "fcfs", part).wall_s for _ in range(rounds))
        for order in ORDERINGS:
            best = min((simulate(load, order, todo) for _ in range(rounds)), key=lambda run: run.wall_s)
            rows.append(
                {
                    "load": load.name,
                    "order": order,
                    "requests_per_s": round(count / best.wall_s),
                    "steps_per_s": round(best.steps / best.wall_s),
                    "x_real_time": round(best.model_s / best.wall_s),
                    "preemptions": best.preemptions,
                    "x_naive": round(naive / ours, 1) if order == "fcfs" else None,
                }
            )
    return rows


async def measure_server(streams: int, tokens: int) -> dict[str, object]:
    """Stream from four engines in this process to clients in another; CPU of this one a token."""
    servers = [EngineServer(EngineConfig(speed=1.0)) for _ in range(4)]
    ports = [await server.start() for server in servers]
    words = [str(word) for word in (*ports, streams, tokens)]
    begin = time.process_time()
    clients = await asyncio.create_subprocess_exec(sys.executable, "-m", __spec__.name, "--clients", *words)
    assert await clients.wait() == 0
    cpu = time.process_time() - begin
    count = sum(server.metrics.generation_tokens for server in servers)
    lag = max(server.pacer.lag_s for server in servers)
    for server in servers:
        await server.stop()
    return {
        "engines": 4,
        "streams": 4 * streams,
        "tokens": count,
        "cpu_us_per_token": round(cpu / count * 1e6, 1),
        "lag_s": round(lag, 2),
    }


async def run_clients(ports: list[int], streams: int, tokens: int) -> None:
    """Read ``streams`` streams from every port to their end."""
    sent = {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": tokens, "ignore_eos": True}
    body = json.dumps(sent | {"stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"

    async def one(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head % len(body) + body)
        while await reader.read(2**16):
            pass
        writer.close()

    await asyncio.gather(*(one(port) for port in ports for _ in range(streams)))


def show(rows: list[dict[str, object]]) -> None:
    """Print the rows as a table."""
    print("  ".join(f"{name:>14}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{'' if value is None else value:>14}" for value in row.values()))


def main() -> None:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=text)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests, one round")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--clients", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clients:
        *ports, streams, tokens = args.clients
        uvloop.run(run_clients(ports, streams, tokens))
        return
    rows = measure_model(200 if args.quick else 2_000, 1 if args.quick else 3)
    show(rows)
    server = uvloop.run(measure_server(25 if args.quick else 100, 100))
    print(", ".join(f"{name} {value}" for name, value in server.items()))
    if args.json:
        args.json.write_text(json.dumps({"model": rows, "server": server}, indent=2))


if __name__ == "__main__":
    main()
