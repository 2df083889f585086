"""Closed loops by option: which clients keep how many sessions open, and where they take them from.

A looping client takes its sessions in the trace's order. When they run out it begins again from the first
one, with other keys: the sizes repeat, and nothing is found in a cache that was computed in another pass.
What sessions of one pass share, with their own client and with others, they share in every pass.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from random import Random
from typing import Final

from fairlead.core.model import BLOCK_KEY_BITS, BlockKey, ClientId
from fairlead.core.params import nearest
from fairlead.trace.model import Loop, Session, Trace, TraceError, Turn

EVERYONE: Final = "*"
MOST_OPEN: Final = 100_000
_SHOWN: Final = 8
_LONGEST_THINK_S: Final = 1e6


def parse_loops(told: Iterable[str]) -> dict[ClientId, Loop]:
    """Read ``CLIENT=N[@SECONDS][,...]``, each part of ``told`` one value of the option.

    Raises ``TraceError`` naming the part that is not one, or a client that is named twice.
    """
    found: dict[ClientId, Loop] = {}
    for part in (part.strip() for value in told for part in value.split(",")):
        if not part:
            continue
        client, equals, amount = part.rpartition("=")  # a client's name may hold one
        if not equals or not client:
            raise TraceError(
                f"--concurrency: '{part}' is not of the form CLIENT=N or CLIENT=N@SECONDS, such as client-0=8"
                f" or {EVERYONE}=2@1.5"
            )
        if client in found:
            raise TraceError(f"--concurrency: the client '{client}' is named twice")
        found[client] = _loop(client, amount)
    return found


def _loop(client: ClientId, told: str) -> Loop:
    count, at, pause = told.partition("@")
    try:
        sessions = int(count)
    except ValueError:
        sessions = 0
    if not 1 <= sessions <= MOST_OPEN:
        raise TraceError(
            f"--concurrency: '{client}' can keep 1 to {MOST_OPEN:,} requests open, a whole number,"
            f" not '{count}'"
        )
    try:
        think_s = float(pause) if at else 0.0
    except ValueError:
        think_s = math.nan
    if not 0 <= think_s <= _LONGEST_THINK_S:
        raise TraceError(
            f"--concurrency: '{client}' can think for 0 to {_LONGEST_THINK_S:,.0f} seconds, not '{pause}'"
        )
    return Loop(sessions, round(think_s * 1e6))


def loops_of(concurrency: Mapping[ClientId, Loop], clients: Iterable[ClientId]) -> dict[ClientId, Loop]:
    """Return the loop of each of ``clients`` that has one, in their order, ``*`` spelled out.

    Raises ``TraceError`` for a client that is not there.
    """
    known = list(clients)
    for client in concurrency:
        if client != EVERYONE and client not in known:
            more = ", ..." if len(known) > _SHOWN else ""
            raise TraceError(
                f"--concurrency: there is no client '{client}' (there are: {', '.join(known[:_SHOWN])}{more};"
                f" {EVERYONE} stands for all){nearest(client, known)}"
            )
    everyone = concurrency.get(EVERYONE)
    found = ((client, concurrency.get(client, everyone)) for client in known)
    return {client: loop for client, loop in found if loop is not None}


def with_loops(trace: Trace, concurrency: Mapping[ClientId, Loop]) -> Trace:
    """Return ``trace`` with these clients as closed loops. Raises ``TraceError`` for an unknown one."""
    loops = loops_of(concurrency, trace.clients)
    if not loops:
        return trace
    told = ", ".join(f"{client} {_said(loop)}" for client, loop in list(loops.items())[:_SHOWN])
    more = f" and {len(loops) - _SHOWN} more" if len(loops) > _SHOWN else ""
    identity = f"{trace.identity}/loops/{sorted(loops.items())!r}"
    return replace(
        trace,
        loops=loops,
        labels=(*trace.labels, f"closed loops (synthetic): {told}{more}"),
        identity=blake2b(identity.encode(), digest_size=16).hexdigest(),
    )


def _said(loop: Loop) -> str:
    think = f", thinking {loop.think_us / 1e6:g} s" if loop.think_us else ""
    return f"keeps {loop.open:,} open{think}"


class LoopStreams:
    """The sessions of looping clients, each client's in the trace's order and without an end.

    The trace is walked once a pass for all of them. What one client has not taken yet waits in memory, so
    that grows with how far the clients are apart. Raises ``TraceError`` for a client without sessions.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._passes: dict[int, _Pass] = {}
        self._at = dict.fromkeys(trace.loops, 0)
        """The pass that each client is in."""
        self._taken = dict.fromkeys(trace.loops, 0)
        """Sessions that each client took of the pass it is in."""

    def take(self, client: ClientId) -> Session:
        """Return the client's next session. Its ``at`` is the trace's."""
        number = self._at[client]
        session = self._pass(number).take(client)
        if session is None:
            if not self._taken[client]:
                raise TraceError(
                    f"{self._trace.name}: no request is of client '{client}', which is to be a closed loop;"
                    " take more requests, or another client"
                )
            self._at[client], self._taken[client] = number + 1, 0
            self._drop(number)
            return self.take(client)
        self._taken[client] += 1
        return session

    @property
    def passes(self) -> int:
        """How many passes over the trace have begun."""
        return max(self._at.values(), default=0) + 1

    def _pass(self, number: int) -> "_Pass":
        found = self._passes.get(number)
        if found is None:
            found = self._passes[number] = _Pass(self._trace, number)
        return found

    def _drop(self, number: int) -> None:
        if min(self._at.values()) > number:
            self._passes.pop(number, None)


class _Pass:
    """One walk over the trace for all looping clients."""

    def __init__(self, trace: Trace, number: int) -> None:
        self._source = trace.sessions()
        self._waiting: dict[ClientId, deque[Session]] = {client: deque() for client in trace.loops}
        self._number = number
        self._mask = _mask(trace, number)

    def take(self, client: ClientId) -> Session | None:
        """Return the client's next session; None at the end."""
        mine = self._waiting[client]
        if mine:
            return self._renamed(mine.popleft())
        for session in self._source:
            if session.client == client:
                return self._renamed(session)
            others = self._waiting.get(session.client)
            if others is not None:
                others.append(session)
        return None

    def _renamed(self, session: Session) -> Session:
        """Return the session with keys of its pass; the first pass is the trace itself."""
        if not self._mask:
            return session
        name = f"{session.name}/{self._number}" if session.name else ""
        return session._replace(turns=[self._masked(turn) for turn in session.turns], name=name)

    def _masked(self, turn: Turn) -> Turn:
        return turn._replace(keys=self._flipped(turn.keys), output_keys=self._flipped(turn.output_keys))

    def _flipped(self, keys: Iterable[BlockKey]) -> tuple[BlockKey, ...]:
        mask = self._mask
        return tuple([key ^ mask for key in keys])


def _mask(trace: Trace, number: int) -> int:
    """Return the bits that are flipped in the keys of a pass: chains stay chains, and different ones differ.

    Keys of two passes are equal by a chance of one in some 10 ** 18 a pair.
    """
    return Random(f"{trace.identity}/pass/{number}").getrandbits(BLOCK_KEY_BITS) if number else 0


def without_loops(trace: Trace) -> Iterator[Session]:
    """Yield the sessions that keep their times."""
    if not trace.loops:
        return trace.sessions()
    return (session for session in trace.sessions() if session.client not in trace.loops)
