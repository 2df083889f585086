"""The decision log's format: every event that a dispatcher took, and what it decided and why.

A log is JSON, a record a line, in the order in which the dispatcher saw the events:

    {"fairlead_decision_log":1,"software":...,"run":...,"part":0,"first":0,...,"setup":{...}}
    ["Arrived",[81000123,[17,"alice",1003,"<keys>",16.0,200,"",81000123,true,1,true]],[["Dispatch",...]]]
    ["FirstToken",[81020345,17]]
    ["Finished",[81090456,17,1003,512,200]]

First the name of the event, then its fields in their order in ``core.events``, then the commands, each
as its name and fields; none are left out. An event that the dispatcher refused has the error's text
in their place. Block keys are packed, 8 bytes each, little endian, in base64. An infinite score is
``null``. The first line of a file is its header: ``Header``.

The header holds all that made the dispatcher, the records all that reached it since, so that the same
code decides the same again. There is no text of a prompt in either.
"""

import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from math import inf
from random import Random
from typing import Any, Final, NamedTuple, get_args

import msgspec

from fairlead.core import events as ev
from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reasons, Reject
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.model import BlockKey, Request
from fairlead.core.ordering import ORDERINGS, OrderingContext, make_ordering
from fairlead.core.params import RENAMED_PARAMS, Param, Value
from fairlead.core.registry import parse_spec
from fairlead.core.routing import POLICIES, make_routing
from fairlead.core.routing.base import RoutingContext
from fairlead.trace.model import TraceError

VERSION = 1
MARK = b'{"fairlead_decision_log":'
"""How every file of a log begins."""

Outcome = Sequence[Command] | str
"""The commands that an event led to, or the text of the error that refused it."""
Record = tuple[ev.Event, Outcome]


class LogError(TraceError):
    """A decision log that cannot be used. The text names the file, the line and the remedy."""


class Policy(NamedTuple):
    """A policy and every parameter of it, the defaults of that day included."""

    name: str
    params: dict[str, Value]


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a dispatcher is made from."""

    routing: Policy
    ordering: Policy
    seed: int
    """Seed of the routing policy's random stream."""
    settings: dict[str, Any]
    """The fields of ``core.dispatcher.Settings``."""
    weights: dict[str, float]

    @classmethod
    def of(cls, dispatcher: Dispatcher, policy: str, order: str, seed: int) -> "Setup":
        """Describe a dispatcher that has taken no event yet.

        ``policy`` and ``order`` are the specs (``name:key=value,...``) and ``seed`` the seed that it
        was made with.
        """
        routing, ordering = parse_spec(policy), parse_spec(order)
        return cls(
            routing=Policy(routing[0], POLICIES.resolve(*routing)),
            ordering=Policy(ordering[0], ORDERINGS.resolve(*ordering)),
            seed=seed,
            settings=msgspec.to_builtins(dispatcher.settings),
            weights={name: account.weight for name, account in dispatcher.ledger.accounts.items()},
        )

    def dispatcher(self) -> Dispatcher:
        """Make the dispatcher again. Raises ``PolicyError`` or ``LogError`` for what is unknown here."""
        unknown = self.settings.keys() - set(Settings.__dataclass_fields__)
        if unknown:
            raise LogError(f"the log knows settings that this version does not: {', '.join(sorted(unknown))}")
        settings = msgspec.convert(self.settings, Settings)
        routing, ordering = self.routing, self.ordering
        return Dispatcher(
            make_routing(
                routing.name,
                _changed(routing, POLICIES.get(routing.name).params),
                RoutingContext(Random(self.seed), settings.costs),
            ),
            make_ordering(
                ordering.name,
                _changed(ordering, ORDERINGS.get(ordering.name).params),
                OrderingContext(settings.costs),
            ),
            settings,
            self.weights,
        )


_BEFORE: Final[Mapping[tuple[str, str], Value]] = {("dlpm", "light"): False}
"""What was so before there was a parameter for it, by policy and parameter. Logs state every parameter."""


def _changed(policy: Policy, params: Sequence[Param]) -> dict[str, object]:
    """Return what is not today's default: a policy may refuse a parameter that its others idle.

    Parameters of older logs get their present names, and what they do not know is as it was then.
    """
    defaults = {param.name: param.default for param in params}
    unknown = {name: value for (of, name), value in _BEFORE.items() if of == policy.name}
    said = (unknown | policy.params).items()
    now = {name if name in defaults else RENAMED_PARAMS.get(name, name): value for name, value in said}
    return {name: value for name, value in now.items() if defaults.get(name) != value}


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of every file of a log."""

    fairlead_decision_log: int
    """Version of the format."""
    software: str
    """Version of fairlead that wrote it."""
    python: str
    """Version of Python: another one may round sums of fractions differently."""
    run: str
    """Names the life of one dispatcher: the same in all files of it."""
    part: int
    """Number of the file within the run, from 0."""
    first: int
    """Number of the file's first record within the run, from 0."""
    began_unix_us: int
    """When the run began: microseconds since 1970, and by the clock of the events."""
    began_clock_us: int
    setup: Setup


class _Line(NamedTuple):
    kind: str
    event: msgspec.Raw
    outcome: msgspec.Raw = msgspec.Raw(b"")


# --- writing ---------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
_BIG_ENDIAN = sys.byteorder == "big"


def _pack(keys: Sequence[BlockKey]) -> bytes:
    packed = array("Q", keys)
    if _BIG_ENDIAN:
        packed.byteswap()
    return packed.tobytes()


def _of_arrived(event: ev.Arrived) -> tuple[Any, ...]:
    rid, client, prompt_tokens, keys, *rest = event.request
    return event.at, (rid, client, prompt_tokens, _pack(keys), *rest)


def _of_cache(event: ev.CacheStored | ev.CacheEvicted) -> tuple[Any, ...]:
    at, worker, keys, *rest = event
    return at, worker, _pack(keys), *rest


_PACKED: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    ev.Arrived: _of_arrived,
    ev.CacheStored: _of_cache,
    ev.CacheEvicted: _of_cache,
}
_KINDS: dict[type, tuple[str, Callable[[Any], tuple[Any, ...]] | None]] = {
    kind: (kind.__name__, _PACKED.get(kind)) for kind in get_args(ev.Event)
}
"""Name of each kind of event, and what packs its keys."""


def encode(records: Sequence[Record]) -> bytes:
    """Return the lines of ``records``.

    Raises OverflowError for a key that is not an unsigned integer of 64 bits.
    """
    lines: list[tuple[Any, ...]] = []
    for event, outcome in records:
        name, pack = _KINDS[type(event)]
        fields: Any = event if pack is None else pack(event)
        if outcome:
            lines.append((name, fields, _of_outcome(outcome)))
        else:
            lines.append((name, fields))
    return _encoder.encode_lines(lines)


def _of_outcome(outcome: Outcome) -> object:
    return outcome if isinstance(outcome, str) else [(type(c).__name__, *c) for c in outcome]


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the text that an outcome has in a record; nothing for no commands."""
    return _encoder.encode(_of_outcome(outcome)) if outcome else b""


def same_outcome(one: bytes, other: bytes) -> bool:
    """Say whether two texts are of the same outcome.

    Compiled code writes some whole numbers as ``1.0`` that the sources write as ``1``; they are equal.
    """
    if one == other:
        return True
    if not (one and other):
        return False
    try:
        return bool(msgspec.json.decode(one) == msgspec.json.decode(other))
    except msgspec.DecodeError:
        return False


def refusal(error: Exception) -> str:
    """Return the outcome of an event that the dispatcher refused."""
    return f"{type(error).__name__}: {error}"


def encode_header(header: Header) -> bytes:
    """Return the first line of a file."""
    return _encoder.encode(header) + b"\n"


# --- reading ---------------------------------------------------------------------------------------


class _Request(NamedTuple):
    """A ``Request`` with packed keys."""

    rid: int
    client: str
    prompt_tokens: int
    keys: bytes
    block_tokens: int | float
    max_tokens: int | None
    session: str
    arrived_us: int
    streamed: bool
    sequences: int = 1
    reads_cache: bool = True
    """Logs of 0.1 have neither."""


class _Arrived(NamedTuple):
    at: int
    request: _Request


class _CacheStored(NamedTuple):
    at: int
    worker: str
    keys: bytes
    parent: int | None


class _CacheEvicted(NamedTuple):
    at: int
    worker: str
    keys: bytes


class _Reasons(NamedTuple):
    """A ``Reasons`` whose scores may be null."""

    policy: str
    scores: list[int | float | None]
    candidates: list[int]
    matched_tokens: int
    credit: int | float


class _Dispatch(NamedTuple):
    kind: str
    rid: int
    worker: str
    attempt: int
    reasons: _Reasons


def _unpack(packed: bytes) -> list[BlockKey]:
    keys = array("Q", packed)
    if _BIG_ENDIAN:
        keys.byteswap()
    return keys.tolist()


def _arrived(event: _Arrived) -> ev.Arrived:
    said = event.request
    request = Request(
        said.rid, said.client, said.prompt_tokens, _unpack(said.keys), said.block_tokens, said.max_tokens,
        said.session, said.arrived_us, said.streamed, said.sequences,
        said.reads_cache,
    )  # fmt: skip
    return ev.Arrived(event.at, request)


def _cache_stored(event: _CacheStored) -> ev.CacheStored:
    return ev.CacheStored(event.at, event.worker, _unpack(event.keys), event.parent)


def _cache_evicted(event: _CacheEvicted) -> ev.CacheEvicted:
    return ev.CacheEvicted(event.at, event.worker, _unpack(event.keys))


def _decoder(kind: type, finish: Callable[[Any], Any] | None = None) -> Callable[[msgspec.Raw], Any]:
    decode: Callable[[Any], Any] = msgspec.json.Decoder(kind).decode
    return decode if finish is None else lambda raw: finish(decode(raw))


_EVENTS: dict[str, Callable[[msgspec.Raw], ev.Event]] = {
    "Arrived": _decoder(_Arrived, _arrived),
    "CacheStored": _decoder(_CacheStored, _cache_stored),
    "CacheEvicted": _decoder(_CacheEvicted, _cache_evicted),
    **{kind.__name__: _decoder(kind) for kind in _KINDS if kind not in _PACKED},
}
_COMMANDS: dict[str, type[Reject] | type[Fail] | type[Cancel]] = {
    kind.__name__: kind for kind in (Reject, Fail, Cancel)
}
_line = msgspec.json.Decoder(_Line)
_header = msgspec.json.Decoder(Header)
_outcome = msgspec.json.Decoder(list[list[Any]] | str)


def decode(line: bytes) -> tuple[ev.Event, bytes]:
    """Return the event of a record and the text of its outcome, as ``encode_outcome`` gives it.

    Raises ValueError for a line that is no record.
    """
    try:
        kind, event, outcome = _line.decode(line)
        make = _EVENTS.get(kind)
        if make is None:
            raise ValueError(f"there is no event called '{kind}'")
        return make(event), bytes(outcome)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def decode_outcome(text: bytes) -> Outcome:
    """Return what ``encode_outcome`` was given. Raises ValueError for anything else."""
    if not text:
        return ()
    found = _outcome.decode(text)
    return found if isinstance(found, str) else [_command(fields) for fields in found]


def _command(fields: list[Any]) -> Command:
    name, *rest = fields
    if name == "Dispatch":
        _, rid, worker, attempt, reasons = msgspec.convert(fields, _Dispatch)
        scores = [inf if score is None else score for score in reasons.scores]
        return Dispatch(rid, worker, attempt, Reasons(reasons.policy, scores, *reasons[2:]))
    kind = _COMMANDS.get(name)
    if kind is None:
        raise ValueError(f"there is no command called '{name}'")
    return msgspec.convert(rest, kind)


def decode_header(line: bytes) -> Header:
    """Return the header of a file. Raises ``LogError`` if it is none, or of another version."""
    if not line.startswith(MARK):
        raise LogError("this is not a decision log: its first line is not a log's header")
    try:
        version = msgspec.json.decode(line)["fairlead_decision_log"]
        if version != VERSION:
            raise LogError(f"its format is version {version}; this fairlead reads version {VERSION}")
        return _header.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LogError(f"its header cannot be read: {error}") from None
