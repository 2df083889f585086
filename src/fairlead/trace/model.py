"""What a workload is: sessions of turns, each released by the answer before it.

Every reader and generator yields the same thing, a ``Trace``. It is lazy: ``sessions()`` makes a fresh
iterator, so that a workload of a million requests is never in memory at once.

An open-loop request is a session of one turn. In a conversation turn n is released by the end of turn
n - 1 plus the user's think time, so a slower system sees its next request later (closed loop). In a
tree search several turns are released by the same answer. ``Trace.loops`` names clients that start whole
sessions so: a number of them is always open.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fairlead.core.model import BlockKey, ClientId

ONE_CLIENT = "all"
"""The client of every request where a source names none."""


class Turn(NamedTuple):
    """One request of a session."""

    prompt_tokens: int
    """Prompt tokens, with the conversation so far. At least 1."""
    output_tokens: int
    """Tokens that the model will generate, at least 1. No policy ever sees it."""
    keys: Sequence[BlockKey] = ()
    """Chained keys of the prompt's full blocks, of ``Trace.block_tokens`` tokens each."""
    output_keys: Sequence[BlockKey] = ()
    """Keys of the blocks that the output completes, continuing the chain; the block that prompt and
    output share comes first. They matter only where a later turn's prompt holds this answer."""
    after: int = -1
    """Index of the turn in the session whose answer releases this one; -1: released with the session."""
    delay_us: int = 0
    """From that moment to this turn's arrival: think time, or a tool's run."""
    max_tokens: int | None = None
    """The limit that the request states, if any; policies may see it."""


class Session(NamedTuple):
    """Turns that depend on each other. Every ``after`` points at an earlier turn of the same session."""

    at: int
    """Microseconds from the start of the trace."""
    client: ClientId
    turns: Sequence[Turn]
    name: str = ""
    """How the source calls it; also what session affinity sees. May be empty."""


class Loop(NamedTuple):
    """A client that keeps sessions open, instead of sending when the trace says: a closed loop."""

    open: int
    """Sessions under way at any time but for think times. At least 1."""
    think_us: int = 0
    """Mean of the exponential think time between the end of a session and the start of the next."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One kind of fault that a reader mended or left out, by a stated rule."""

    rule: str
    """What was done, such as "requests longer than the limit: left out"."""
    count: int
    example: str
    """Where it was first seen and what it said, such as "line 17: input_length is -3"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A workload that can be replayed any number of times."""

    name: str
    block_tokens: int
    """Tokens that a block key stands for; the simulated engine uses blocks of this size."""
    sessions: Callable[[], Iterator[Session]]
    """Makes a fresh iterator over all sessions, in order of ``at``."""
    requests: int
    """Turns in all sessions."""
    duration_us: int
    """From the first session's start to the last one's. 0 if all start at once."""
    clients: Mapping[ClientId, float] = field(default_factory=dict)
    """Every client that occurs and its weight (1 unless stated)."""
    misbehaving: frozenset[ClientId] = frozenset()
    """Clients that a workload makes send too much on purpose."""
    loops: Mapping[ClientId, Loop] = field(default_factory=dict)
    """Clients whose sessions start when one of theirs ends, in their order, whatever ``at`` says. The others
    keep their times."""
    labels: Sequence[str] = ()
    """What a reader of results must know, such as "clients assigned by prefix chain (synthetic)"."""
    repairs: Sequence[Repair] = ()
    understood: str = ""
    """What a reader made of its source, in a line: format, requests, sessions, clients, units."""
    identity: str = ""
    """Names the content: equal identities mean equal sessions. A hash of the source and all options."""


class TraceError(ValueError):
    """A trace that cannot be used. The text names the file, the line and the remedy."""
