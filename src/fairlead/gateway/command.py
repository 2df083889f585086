"""``fairlead serve``: the gateway as a process."""

import argparse
import asyncio
import dataclasses
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

import uvloop

from fairlead.config import Config, ConfigError, add_flags, from_args
from fairlead.core.params import PolicyError
from fairlead.gateway.app import Gateway

if TYPE_CHECKING:
    from fairlead.engine.server import EngineServer

EMBEDDED = 2
"""Engines started when none is named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; names, defaults and help are ``Config``'s."""
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Returns the exit code: 0 after a clean shutdown, 2 for a wrong option."""
    try:
        config = from_args(args, os.environ)
    except ConfigError as error:
        print(f"fairlead serve: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=config.log_level.upper()
    )
    try:
        return uvloop.run(_serve(config))
    except PolicyError:
        raise  # the command line says which policies there are
    except (OSError, ValueError) as error:
        print(f"fairlead serve: {error}", file=sys.stderr)
        return 1


async def _serve(config: Config) -> int:
    engines: list[EngineServer] = []
    try:
        if not config.worker_urls:
            config = await _with_embedded(config, engines)
        gateway = Gateway(config)
        try:
            return await _serve_until_told(gateway)
        finally:
            await gateway.close()
    finally:
        for engine in engines:
            await engine.stop()


async def _serve_until_told(gateway: Gateway) -> int:
    """Serve. The first SIGINT or SIGTERM drains, the second ends at once."""
    config = gateway.config
    told = asyncio.Event()
    now = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (now if told.is_set() else told).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    port = await gateway.start()
    order = "by the engines" if config.engine_ordering else config.order
    print(
        f"fairlead serves on http://{config.host}:{port} for {len(config.worker_urls)} workers: "
        f"order {order}, policy {config.policy}, {gateway.workers.ready} ready",
        flush=True,
    )
    await told.wait()
    print(f"fairlead drains: {len(gateway.flows)} requests under way", flush=True)
    drain = asyncio.ensure_future(gateway.drain())
    at_once = asyncio.ensure_future(now.wait())
    await asyncio.wait((drain, at_once), return_when=asyncio.FIRST_COMPLETED)
    clean = drain.done() and drain.result()
    for task in (drain, at_once):
        task.cancel()
    await asyncio.gather(drain, at_once, return_exceptions=True)
    return 0 if clean else 1


async def _with_embedded(config: Config, engines: "list[EngineServer]") -> Config:
    """Start embedded engines, and say so."""
    from fairlead.engine.server import EngineConfig, EngineServer  # noqa: PLC0415 - only where it is used

    urls = []
    for number in range(EMBEDDED):
        engine = EngineServer(EngineConfig(seed=number, order="dlpm" if config.engine_ordering else "fcfs"))
        engines.append(engine)
        urls.append(f"http://127.0.0.1:{await engine.start()}")
    print(
        f"no --worker-urls: started {EMBEDDED} embedded engines ({', '.join(urls)}). They model an engine's "
        "speed and cache; their answers are filler text.",
        flush=True,
    )
    return dataclasses.replace(config, worker_urls=tuple(urls))
