"""Requests of known lengths and blocks: sent to a real engine, and put through its model step by step."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fairlead.core.model import Request
from fairlead.engine.model import Engine as Model
from fairlead.engine.step_log import LoggedStep
from fairlead.replay.endpoint import Asking, Endpoint
from fairlead.replay.prompts import TokenPrompts, Vocabulary
from fairlead.replay.sender import Pace, Sender
from fairlead.report.run import DONE, Requests
from fairlead.trace.model import Session, Trace, Turn
from tests.engines.servers import MODEL

VOCABULARY = Vocabulary(300, 1999)
_FAMILY = 1 << 40
"""Each workload's keys are moved by a multiple of it, so that no two share a block."""


def named(trace: Trace, name: str, number: int) -> Trace:
    """Return an open-loop workload whose requests are clients of their own, ``name-0`` and so on.

    The client's name becomes the request's id, which the engine's log of its steps has.
    """

    def sessions() -> Iterator[Session]:
        for i, session in enumerate(trace.sessions()):
            (turn,) = session.turns
            turn = turn._replace(keys=[key + number * _FAMILY for key in turn.keys])
            yield session._replace(client=f"{name}-{i}", turns=[turn])

    names = dict.fromkeys((f"{name}-{i}" for i in range(trace.requests)), 1.0)
    return replace(trace, name=name, sessions=sessions, clients=names)


def at_once(trace: Trace) -> Trace:
    """Return the workload with all requests at its start."""

    def sessions() -> Iterator[Session]:
        for session in trace.sessions():
            yield session._replace(at=0)

    return replace(trace, sessions=sessions, duration_us=0)


def arriving(trace: Trace, at_us: Mapping[str, float]) -> Trace:
    """Return the workload with its requests at these moments by their names, and in that order."""
    start = min(at_us[session.client] for session in trace.sessions())
    moved = [session._replace(at=round(at_us[session.client] - start)) for session in trace.sessions()]
    moved.sort(key=lambda session: session.at)  # equal moments stay in order
    return replace(trace, sessions=lambda: iter(moved), duration_us=moved[-1].at)


def send(url: str, trace: Trace) -> Requests:
    """Send a workload of ``named`` and return what its clients saw."""

    async def run() -> Requests:
        endpoint = Endpoint(url, Asking(model=MODEL, client_header="x-request-id", vocabulary=VOCABULARY))
        sender = Sender(trace, endpoint, TokenPrompts(trace.block_tokens, VOCABULARY, ""), Pace())
        try:
            await sender.run()
        finally:
            await endpoint.pool.close()
        assert set(sender.record.requests.outcome) == {DONE}, sender.tally.reasons
        assert not sender.tally.other_length + sender.tally.other_prompt
        return sender.record.requests

    return asyncio.run(run())


def name_of(logged: str) -> str:
    """Return the request's id as its client gave it: vLLM puts something before and behind it."""
    return "-".join(logged.split("-")[1:3])


class Difference(NamedTuple):
    """What the model did otherwise than the engine in a step."""

    step: int
    what: str
    real: object
    modelled: object


class Follower:
    """A model that is given the same arrivals before the same steps as a real engine had."""

    def __init__(self, model: Model, traces: Sequence[Trace]) -> None:
        self.model = model
        self.turns: Mapping[str, Turn] = {s.client: s.turns[0] for t in traces for s in t.sessions()}
        self.names = list(self.turns)
        self.hits: dict[str, int] = {}
        """Cached tokens by request, when it was first admitted; in order of admission."""
        self.arrived_us: dict[str, float] = {}
        """When the real engine had each request, on its clock; likewise the next two."""
        self.first_us: dict[str, float] = {}
        self.ended_us: dict[str, float] = {}
        self.evicted = self.preempted = 0
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def follow(self, steps: Sequence[LoggedStep]) -> list[Difference]:
        """Return all differences of the first step that has one; nothing if the model did the same."""
        for index, step in enumerate(steps):
            found = [Difference(index, *pair) for pair in self._step(step)]
            if found:
                return found
        return []

    def _step(self, step: LoggedStep) -> Iterator[tuple[str, object, object]]:
        for logged, at_us in step.arrived:
            name = name_of(logged)
            self.arrived_us[name] = at_us
            turn = self.turns[name]
            request = Request(self._numbers[name], "", turn.prompt_tokens, turn.keys)
            self.model.submit(request, turn.output_tokens)
        result = self.model.step(0)
        assert result is not None, "the engine made a step, and the model has nothing to do"
        names = self.names
        admitted = [(names[a.rid], a.cached_tokens) for a in result.admitted]
        for name, cached in admitted:
            self.hits.setdefault(name, cached)
        end_us = step.begin_us + step.step_us
        self.first_us |= dict.fromkeys((names[rid] for rid in result.first), end_us)
        self.ended_us |= dict.fromkeys((names[rid] for rid in result.finished), end_us)
        self.evicted += len(result.evicted)
        self.preempted += len(result.preempted)
        pairs = {
            "work": (step.work, result.work),
            "admitted": ([(name_of(rid), cached) for rid, cached in step.admitted], admitted),
            "preempted": ([name_of(rid) for rid in step.preempted], [names[rid] for rid in result.preempted]),
            "finished": (set(map(name_of, step.finished)), {names[rid] for rid in result.finished}),
        }
        for what, (real, modelled) in pairs.items():
            if real != modelled:
                yield what, real, modelled
