"""Starts the demo's engines and gateway as processes of their own, and ends every one of them."""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fairlead.demo.clients import MODEL
from fairlead.demo.workload import CLIENTS
from fairlead.http.client import Pool, UpstreamError

PROFILE = "llama-3.1-8b-a100"
SPEED = 2
KV_TOKENS = 48_000
BLOCK_TOKENS = 16
ENGINES = 4
HOST = "127.0.0.1"


class DemoError(Exception):
    """A part of the demo did not start; the message has the end of its log."""


def keys() -> dict[str, str]:
    """Return each client's API key. The keys protect nothing: everything runs on this machine."""
    return {client.name: f"demo-key-{client.name}" for client in CLIENTS}


_HANDED_OUT: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, none of them twice in this process.

    They lie below the range that systems take outgoing connections' ports from: a port of that
    range can be gone by the time a process that starts slowly binds it.
    """
    ports: list[int] = []
    candidates = random.sample(range(12_000, 32_000), 2_000)
    for port in candidates:
        if len(ports) == count:
            break
        with contextlib.suppress(OSError), socket.socket() as probe:
            if port not in _HANDED_OUT:
                probe.bind((HOST, port))
                ports.append(port)
    _HANDED_OUT.update(ports)
    return ports


SIZE = (
    *("--profile", PROFILE, "--speed", str(SPEED), "--model-name", MODEL),
    *("--kv-blocks", str(KV_TOKENS // BLOCK_TOKENS), "--block-size", str(BLOCK_TOKENS)),
)
"""Options of each of the demo's engines."""


@contextlib.asynccontextmanager
async def engines(
    directory: Path, count: int = ENGINES, options: Sequence[str] = SIZE
) -> AsyncIterator[list[str]]:
    """Run fresh engines and yield their addresses; their caches are empty, as each phase must begin."""
    ports = free_ports(count)
    commands = [["engine", "--host", HOST, "--port", str(port), *options] for port in ports]
    async with contextlib.AsyncExitStack() as stack:
        for number, (command, port) in enumerate(zip(commands, ports, strict=True), 1):
            await stack.enter_async_context(_process(f"engine {number}", command, directory, port))
        for number, port in enumerate(ports, 1):
            await _ready(f"engine {number}", port, "/health", directory)
        yield [f"http://{HOST}:{port}" for port in ports]


@contextlib.asynccontextmanager
async def gateway(
    directory: Path,
    workers: Sequence[str],
    options: Sequence[str],
    client_keys: Mapping[str, str],
    weights: Mapping[str, float] = MappingProxyType({}),
) -> AsyncIterator[str]:
    """Run the gateway in front of ``workers`` and yield its address. ``client_keys``: client to API key."""
    (port,) = free_ports(1)
    config = directory / "fairlead.toml"
    config.write_text(
        "".join(
            f"[clients.{name}]\nweight = {weights.get(name, 1.0)}\n"
            f'api_keys = ["sha256:{hashlib.sha256(key.encode()).hexdigest()}"]\n'
            for name, key in client_keys.items()
        )
    )
    command = ["serve", "--host", HOST, "--port", str(port), "--config", str(config), *options]
    command += ["--worker-urls", *workers]
    async with _process("gateway", command, directory, port):
        await _ready("gateway", port, "/ready", directory)
        yield f"http://{HOST}:{port}"


def workspace() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for logs and configuration that goes away with the demo."""
    return tempfile.TemporaryDirectory(prefix="fairlead-demo-")


def _log(name: str, directory: Path) -> Path:
    return directory / f"{name.replace(' ', '-')}.log"


@contextlib.asynccontextmanager
async def _process(name: str, arguments: Sequence[str], directory: Path, port: int) -> AsyncIterator[None]:
    """Run one ``fairlead`` command in a session of its own, so that Ctrl-C reaches only the demo."""
    with _log(name, directory).open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fairlead", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    _RUNNING[port] = process
    try:
        yield
    finally:
        del _RUNNING[port]
        await _stop(process)


_RUNNING: dict[int, asyncio.subprocess.Process] = {}


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End a process: a second SIGTERM tells the gateway not to drain, a kill ends what hangs."""
    for sign, patience in ((signal.SIGTERM, 0.2), (signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(sign)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience)


async def _ready(name: str, port: int, path: str, directory: Path, patience: float = 30.0) -> None:
    """Wait until the process answers; DemoError with the end of its log if it ends or takes too long."""
    pool = Pool(f"http://{HOST}:{port}")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    try:
        while loop.time() < deadline:
            if _RUNNING[port].returncode is not None:
                break
            with contextlib.suppress(UpstreamError):
                status, _, _ = await pool.fetch(b"GET", path.encode(), timeout=1.0)
                if status == 200:
                    return
            await asyncio.sleep(0.05)
    finally:
        await pool.close()
    tail = _log(name, directory).read_text(errors="replace")[-2000:]
    raise DemoError(f"the {name} did not start within {patience:g} s. The end of its log:\n{tail}")
