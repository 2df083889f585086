"""One replay from a workload and an endpoint to the ``Run`` that reports are made from."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from fairlead.core.model import Costs
from fairlead.replay.endpoint import Endpoint
from fairlead.replay.prompts import Prompts
from fairlead.replay.record import fairness, series
from fairlead.replay.sender import Pace, Sender
from fairlead.report.distribution import percentile
from fairlead.report.run import Run
from fairlead.trace.model import Session, Trace
from fairlead.trace.reachable import reach
from fairlead.trace.transform import cap_tokens

LATE_MS = 20.0
"""If the sender's P99 lateness exceeds this, the result says so: the lateness is part of every TTFT."""
MERGED = 1.05
"""With more tokens an event than this, the result says that some times between tokens are not seen."""
_REACH_LIMIT = 50_000
"""Requests that the reachable hit rate is computed on: it remembers every block."""


class Told(NamedTuple):
    """What a report says of the endpoint, and a client cannot see."""

    policy: str = "live"
    order: str = "live"
    engine: str = ""
    """Empty: the model's name."""
    seed: int = 1


def fitting(trace: Trace, max_model_len: int) -> Trace:
    """Return the trace without requests that the endpoint's context cannot hold (0: it holds all).

    Raises ``TraceError`` if none is left.
    """
    return cap_tokens(trace, max_total_tokens=max_model_len) if max_model_len else trace


async def replay(
    trace: Trace,
    endpoint: Endpoint,
    pace: Pace,
    *,
    started: Callable[[Sender], None] = lambda _: None,
    told: Told | None = None,
) -> Run:
    """Send ``trace`` to ``endpoint``, which is open, and return what its clients saw.

    ``started`` is given the sender, to watch it or to interrupt it. Raises ReplayError if the
    endpoint takes no prompt, and what the trace raises while it is read.
    """
    prompts = await endpoint.prompts(next(iter(trace.clients)), trace.block_tokens)
    sender = Sender(trace, endpoint, prompts, pace)
    started(sender)
    gc.collect()
    gc.freeze()  # what was there before is not looked at again while requests wait
    try:
        await sender.run()
    finally:
        gc.unfreeze()
        await endpoint.pool.close()
    return _run(trace, endpoint, prompts, pace, sender, told or Told())


def _run(
    trace: Trace,
    endpoint: Endpoint,
    prompts: Prompts,
    pace: Pace,
    sender: Sender,
    told: Told,
) -> Run:
    record, clients = sender.record, list(trace.clients)
    weights = [trace.clients[client] for client in clients]
    found = series(record, len(clients), Costs())
    reached = reach(_as_sent(trace), _REACH_LIMIT)
    requests = record.requests
    computed = [p - c for p, c in zip(requests.prompt, requests.cached, strict=True) if c >= 0]
    return Run(
        kind="replay",
        workload=trace.name,
        policy=told.policy,
        order=told.order,
        engine=told.engine or endpoint.model,
        workers=0,
        topology="live",
        seed=told.seed,
        load=0.0,
        clients=clients,
        weights=weights,
        misbehaving=sorted(trace.misbehaving),
        labels=[*trace.labels, *endpoint.notes, *_notes(trace, sender, pace)],
        requests=requests,
        series=found,
        fairness=fairness(found, clients, weights),
        duration_us=record.duration_us(),
        reachable_hit_rate=reached.hit_rate,
        itl=record.itl.close(),
        computed_tokens=sum(computed),
        settings=_settings(trace, endpoint, prompts, pace, sender),
    )


def _as_sent(trace: Trace) -> Trace:
    """Return the trace as an engine sees it: its own answers are never part of a later prompt."""

    def sessions() -> Iterator[Session]:
        for session in trace.sessions():
            yield session._replace(turns=[turn._replace(output_keys=()) for turn in session.turns])

    return replace(trace, sessions=sessions)


def lateness_ms(sender: Sender) -> dict[str, float]:
    """Return how late requests were taken up on the sender's own account; empty for none."""
    ordered = sorted(sender.late_us)
    if not ordered:
        return {}
    points = {"p50": 50.0, "p99": 99.0, "max": 100.0}
    return {name: round(percentile(ordered, at) / 1000, 3) for name, at in points.items()}


def _notes(trace: Trace, sender: Sender, pace: Pace) -> list[str]:
    """Return the labels: what a reader of the figures must know."""
    tally, notes = sender.tally, []
    if sender.interrupted:
        notes.append(f"interrupted after {tally.arrived:,} of {trace.requests:,} requests")
    if pace.speed != 1:
        notes.append(f"arrivals and pauses {pace.speed:g} times as fast")
    if tally.abandoned:
        notes.append(f"{tally.abandoned:,} turns never came: the one before them had no answer")
    if tally.other_length:
        notes.append(f"{tally.other_length:,} answers were not as long as the workload's")
    if tally.other_prompt:
        notes.append(f"{tally.other_prompt:,} prompts were not as long as the workload's")
    if tally.tokens > MERGED * tally.events:
        each = tally.tokens / tally.events
        notes.append(f"{each:.3g} tokens came in an event: ITL is the time between events")
    late = lateness_ms(sender).get("p99", 0.0)
    if late > LATE_MS:
        notes.append(f"the sender itself was late (p99 {late:,.0f} ms), which TTFT includes")
    return notes


def _settings(
    trace: Trace, endpoint: Endpoint, prompts: Prompts, pace: Pace, sender: Sender
) -> dict[str, Any]:
    """Return every option that shaped the run, and what the sender says of itself. No API keys."""
    asking, tally = endpoint.asking, sender.tally
    return {
        "url": endpoint.url,
        "model": endpoint.model,
        "max_model_len": endpoint.max_model_len,
        "prompt_form": prompts.form,
        "vocabulary": list(asking.vocabulary),
        "exact_lengths": asking.exact_lengths,
        "client_header": asking.client_header,
        "salt": asking.salt,
        **asdict(pace),
        "max_concurrency": pace.max_concurrency or None,
        "identity": trace.identity,
        "repairs": [{"rule": r.rule, "count": r.count, "example": r.example} for r in trace.repairs],
        "interrupted": sender.interrupted,
        "requests_of_workload": trace.requests,
        "abandoned_turns": tally.abandoned,
        "other_output_length": tally.other_length,
        "other_prompt_length": tally.other_prompt,
        "tokens_an_event": round(tally.tokens / tally.events, 4) if tally.events else None,
        "errors": dict(tally.reasons.most_common()),
        "sender_late_ms": lateness_ms(sender),
        "stale_connections": endpoint.pool.stale_retries,
    }
