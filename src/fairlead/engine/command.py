"""``fairlead engine``: the engine model as a server of its own."""

import argparse
import asyncio
import logging
import signal
import sys
from dataclasses import fields

import uvloop
import zmq

from fairlead.core.ordering import ORDERINGS
from fairlead.engine.profiles import PROFILES
from fairlead.engine.server import EngineConfig, EngineServer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; their defaults are ``EngineConfig``'s."""
    default = EngineConfig()
    shown = " (default: %(default)s)"
    parser.description = (
        "A model of one LLM engine behind an OpenAI-compatible server: KV cache, batching and step times are"
        " imitated, the text is filler. No GPU, no weights."
    )
    add = parser.add_argument
    profiles, policies = ", ".join(PROFILES), ", ".join(ORDERINGS.names())
    add("--host", default="127.0.0.1", help="address to listen on" + shown)
    add("--port", type=int, default=8000, help="port to listen on; 0 takes a free one" + shown)
    add("--profile", default=default.profile, metavar="NAME", help="model and GPU: " + profiles + shown)
    add("--speed", type=float, default=default.speed, help="how many times as fast as the GPU" + shown)
    add(
        "--order",
        default=default.order,
        metavar="POLICY",
        help=f"order of the waiting queue: {policies}; parameters as name:key=value,..." + shown,
    )
    add("--model-name", metavar="NAME", help="name that clients use (default: the profile's model)")
    add("--max-num-seqs", type=int, metavar="N", help="most sequences in a batch (default: the profile's)")
    add(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="most tokens in a step (default: the profile's)",
    )
    add("--max-model-len", type=int, metavar="N", help="context length (default: the profile's)")
    add("--kv-blocks", type=int, metavar="N", help="KV blocks in the pool (default: the profile's memory)")
    add("--block-size", type=int, default=default.block_size, metavar="N", help="tokens in a block" + shown)
    add(
        "--sync-scheduling",
        dest="async_scheduling",
        action="store_false",
        help="schedule a step when the last one has ended, as vLLM does on CPUs",
    )
    add("--seed", type=int, default=default.seed, help="seed of texts and lengths" + shown)
    add("--kv-events", metavar="ENDPOINT", help="publish KV-cache events here, such as tcp://127.0.0.1:5557")
    add("--kv-replay", metavar="ENDPOINT", help="answer replay requests for KV-cache events here")
    add(
        "--kv-topic",
        default=default.kv_topic,
        metavar="TOPIC",
        help="topic of KV-cache events (default: none)",
    )
    add("--legacy-events", action="store_true", help="KV-cache events as arrays, as in vLLM before June 2026")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Returns 0 when stopped, 1 if it cannot listen, 2 for wrong options."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    config = EngineConfig(**{field.name: getattr(args, field.name) for field in fields(EngineConfig)})
    try:
        return uvloop.run(_serve(config, args.host, args.port))
    except (ValueError, OSError, zmq.ZMQError) as error:
        print(f"fairlead engine: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


async def _serve(config: EngineConfig, host: str, port: int) -> int:
    server = EngineServer(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.start(host, port)
    print(f"a model of an engine ({config.profile}) listens on {server.url}", flush=True)
    await stop.wait()
    await server.stop()
    return 0
