"""Small workloads made by hand, and a way to replay them."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import uvloop

from fairlead.engine.server import EngineConfig, EngineServer
from fairlead.replay.endpoint import Asking, Endpoint
from fairlead.replay.live import replay
from fairlead.replay.sender import Pace, Sender
from fairlead.report.run import Run
from fairlead.trace.model import Session, Trace, Turn

BLOCK = 16


def trace_of(*sessions: Session, **changes: Any) -> Trace:
    clients = {session.client: 1.0 for session in sessions}
    made = Trace(
        name="by hand",
        block_tokens=BLOCK,
        sessions=lambda: iter(sessions),
        requests=sum(len(session.turns) for session in sessions),
        duration_us=sessions[-1].at - sessions[0].at,
        clients=clients,
    )
    return replace(made, **changes)


def single(at: int = 0, client: str = "a", prompt: int = 40, output: int = 3, keys: Sequence[int] = ()):
    return Session(at, client, [Turn(prompt, output, keys)])


def one_after_another(trace: Trace) -> Trace:
    """All requests as one conversation of one client: what is cached no longer depends on timing."""
    turns = [turn for session in trace.sessions() for turn in session.turns]

    def sessions() -> Iterator[Session]:
        yield Session(0, "all", [turn._replace(after=i - 1, delay_us=0) for i, turn in enumerate(turns)])

    return replace(trace, sessions=sessions, clients={"all": 1.0}, duration_us=0)


async def replayed(
    trace: Trace, url: str, asking: Asking | None = None, pace: Pace | None = None, started: Any = None
) -> tuple[Run, Sender]:
    """Replay on the running loop; the sender too, for what it counted."""
    endpoint = Endpoint(url, asking or Asking())
    seen: list[Sender] = []

    def begin(sender: Sender) -> None:
        seen.append(sender)
        if started is not None:
            started(sender)

    try:
        await endpoint.open(next(iter(trace.clients)))
        run = await asyncio.wait_for(replay(trace, endpoint, pace or Pace(), started=begin), 60)
    finally:
        await endpoint.pool.close()
    return run, seen[0]


def on_engine(
    trace: Trace, asking: Asking | None = None, pace: Pace | None = None, started: Any = None, **config: Any
) -> tuple[Run, Sender]:
    """Replay against a fresh engine, much faster than real hardware."""

    async def body() -> tuple[Run, Sender]:
        server = EngineServer(EngineConfig(**({"speed": 1000.0, "model_name": "m"} | config)))
        await server.start()
        try:
            found = await replayed(trace, server.url, asking, pace, started)
        finally:
            await server.stop()
        server.engine.check()
        return found

    return uvloop.run(body())
