"""Traces made of traces: fewer requests, another load, other arrivals, two parts. All of them stay lazy.

Each one adjusts requests, duration, clients, labels and identity; to count what is left, the source is
walked once when the transform is made.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

from fairlead.core.model import ClientId
from fairlead.trace.arrivals import arrivals, gamma_gap
from fairlead.trace.model import Repair, Session, Trace, TraceError, Turn

Sessions = Callable[[], Iterator[Session]]


def derived_identity(trace: Trace, change: str) -> str:
    """Return the identity of ``trace`` after ``change``, which names the transform and its parameters."""
    return hashlib.blake2b(f"{trace.identity} {change}".encode(), digest_size=16).hexdigest()


def surveyed(trace: Trace, sessions: Sessions, change: str, *labels: str) -> Trace:
    """Return ``trace`` with ``sessions`` in place of its own, counted.

    Raises ``TraceError`` if none is left.
    """
    requests = 0
    start: int | None = None
    end = 0
    seen: dict[ClientId, None] = {}
    for session in sessions():
        requests += len(session.turns)
        start = session.at if start is None else start
        end = session.at
        seen[session.client] = None
    if start is None:
        raise TraceError(f"{trace.name}: no request is left after: {change}")
    return replace(
        trace,
        sessions=sessions,
        requests=requests,
        duration_us=end - start,
        clients={client: trace.clients.get(client, 1.0) for client in seen},
        misbehaving=trace.misbehaving.intersection(seen),
        labels=(*trace.labels, *labels),
        identity=derived_identity(trace, change),
    )


def limit(trace: Trace, requests: int) -> Trace:
    """Return the first ``requests`` turns by arrival of their sessions; the last one may lose its end."""
    if requests < 1:
        raise TraceError(f"a trace has at least 1 request, not {requests}")
    if requests >= trace.requests:
        return trace

    def sessions() -> Iterator[Session]:
        left = requests
        for session in trace.sessions():
            size = len(session.turns)
            yield session if size <= left else session._replace(turns=session.turns[:left])
            left -= size
            if left <= 0:
                return

    return surveyed(trace, sessions, f"limit {requests}", f"first {requests} of {trace.requests} requests")


def stretch(trace: Trace, factor: float) -> Trace:
    """Return the trace with all session starts ``factor`` times as late: 0.5 doubles the load.

    Think times stay: they are the users', not the load's.
    """
    if not 0 < factor < float("inf"):
        raise TraceError(f"arrival times can be stretched by a positive factor, not {factor:g}")
    if factor == 1:
        return trace

    def sessions() -> Iterator[Session]:
        for session in trace.sessions():
            yield session._replace(at=round(session.at * factor))

    return replace(
        trace,
        sessions=sessions,
        duration_us=round(trace.duration_us * factor),
        labels=(*trace.labels, f"arrival times times {factor:g}"),
        identity=derived_identity(trace, f"stretch {factor!r}"),
    )


def gamma_arrivals(trace: Trace, rate_per_s: float, burstiness_cv: float = 1.0, seed: int = 1) -> Trace:
    """Return the same sessions in the same order, ``rate_per_s`` of them starting a second, with gamma gaps.

    ``burstiness_cv`` is the gaps' coefficient of variation: 1 is Poisson, 0 evenly spaced.
    """
    if not (0 < rate_per_s < float("inf") and 0 <= burstiness_cv < float("inf")):
        raise TraceError(
            f"no arrivals at {rate_per_s:g} sessions/s with coefficient of variation {burstiness_cv:g}"
        )

    def sessions() -> Iterator[Session]:
        times = arrivals(Random(f"gamma arrivals/{seed}"), rate_per_s, gamma_gap(burstiness_cv))
        for session, at in zip(trace.sessions(), times, strict=False):
            yield session._replace(at=at)

    return surveyed(
        trace,
        sessions,
        f"gamma {rate_per_s!r} {burstiness_cv!r} {seed}",
        f"arrivals are synthetic: gamma gaps, {rate_per_s:g} sessions/s, "
        f"coefficient of variation {burstiness_cv:g}, seed {seed}",
    )


def split(trace: Trace, share: float, seed: int = 1) -> tuple[Trace, Trace]:
    """Return two parts without a session in common: about ``share`` to tune on, and the rest kept aside.

    Sessions keep their times, so each part has its share of the load. Which part a session is in depends on
    its place and the seed only. Raises ``TraceError`` if a part is empty.
    """
    if not 0 < share < 1:
        raise TraceError(f"a part is a share between 0 and 1, not {share:g}")

    def part(first: bool) -> Trace:
        def sessions() -> Iterator[Session]:
            rng = Random(f"split/{seed}")
            for session in trace.sessions():
                if (rng.random() < share) is first:
                    yield session

        which = "tuning" if first else "kept aside"
        size = share if first else 1 - share
        label = f"part: {which}, about {size:.0%} of the sessions, seed {seed}"
        return surveyed(trace, sessions, f"split {share!r} {seed} {first}", label)

    return part(True), part(False)


def cap_tokens(
    trace: Trace, *, max_prompt_tokens: int | None = None, max_total_tokens: int | None = None
) -> Trace:
    """Leave out requests with more tokens than given, and the turns that follow from them.

    ``max_total_tokens`` caps prompt and output together: what an engine must be able to hold. What was
    left out is counted in ``repairs``.
    """
    for name, value in (("max_prompt_tokens", max_prompt_tokens), ("max_total_tokens", max_total_tokens)):
        if value is not None and value < 1:
            raise TraceError(f"{name} is at least 1, not {value}")
    top, total = max_prompt_tokens or float("inf"), max_total_tokens or float("inf")

    def fits(turn: Turn) -> bool:
        return turn.prompt_tokens <= top and turn.prompt_tokens + turn.output_tokens <= total

    def sessions() -> Iterator[Session]:
        for session in trace.sessions():
            kept = _closed(session.turns, fits)
            if len(kept) == len(session.turns):
                yield session
            elif kept:
                yield session._replace(turns=_picked(session.turns, kept))

    change = f"cap {max_prompt_tokens} {max_total_tokens}"
    capped = surveyed(trace, sessions, change)
    left_out = trace.requests - capped.requests
    if not left_out:
        return trace
    limits = [
        f"{size} tokens of {what}"
        for size, what in ((max_prompt_tokens, "prompt"), (max_total_tokens, "prompt and output"))
        if size
    ]
    example = next(
        f"session {number} at {session.at / 1e6:g} s, turn {index}: "
        f"{turn.prompt_tokens} tokens of prompt, {turn.output_tokens} of output"
        for number, session in enumerate(trace.sessions())
        for index, turn in enumerate(session.turns)
        if not fits(turn)
    )
    rule = f"requests beyond {' or '.join(limits)}, and turns that follow from them: left out"
    label = f"without requests beyond {' or '.join(limits)}: {left_out} of {trace.requests} left out"
    return replace(
        capped, labels=(*capped.labels, label), repairs=(*capped.repairs, Repair(rule, left_out, example))
    )


def _closed(turns: Sequence[Turn], fits: Callable[[Turn], bool]) -> list[int]:
    """Return the turns that fit and whose ancestors all fit."""
    kept: list[int] = []
    alive: set[int] = {-1}
    for index, turn in enumerate(turns):
        if turn.after in alive and fits(turn):
            alive.add(index)
            kept.append(index)
    return kept


def _picked(turns: Sequence[Turn], kept: Sequence[int]) -> Sequence[Turn]:
    """Return turns ``kept``, pointing at each other's new places."""
    if kept[-1] == len(kept) - 1:
        return turns[: len(kept)]
    place = {-1: -1} | {index: new for new, index in enumerate(kept)}
    return tuple(turn._replace(after=place[turn.after]) for turn in map(turns.__getitem__, kept))
