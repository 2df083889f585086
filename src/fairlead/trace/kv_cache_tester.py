"""kv-cache-tester's recorded sessions of coding agents: a JSON file a session.

A session has ``block_size``, ``tool_tokens``, ``system_tokens`` and ``requests``, each with ``t`` (seconds),
``in``, ``out``, ``hash_ids`` and, if known, ``think_time`` and ``api_time``. Ids are local to the session.

- Closed loop: a request follows the answer before it by its think time; where that is missing, by the
  recorded time between the two.
- Sessions with equal ``tool_tokens`` share these leading blocks; with equal ``system_tokens`` too, those
  after them.
- Where the next prompt continues this one and grows by at least the answer's length, the answer is taken to
  stand there word for word: its blocks are this request's ``output_keys``.
- A sub-agent starts after the request before it and runs beside its parent.
- Sessions have no start times: they are made up, as the label says.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec

from fairlead.core.params import Param, Values
from fairlead.trace.arrivals import session_starts, start_params
from fairlead.trace.chains import BROKEN_CHAIN, Chain
from fairlead.trace.decoding import decode
from fairlead.trace.faults import Faults, microseconds
from fairlead.trace.files import Member, Sample, is_tar, members, whole_text
from fairlead.trace.model import Trace, TraceError
from fairlead.trace.reader import NO_CLIENTS, ONE_CLIENT, Reader, identify
from fairlead.trace.spans import common_prefix, cut_spans
from fairlead.trace.store import Span, Store

_FORM = "kv-cache-tester"
_REMEDY = "mend or remove those requests"


class _Request(msgspec.Struct):
    """A request, or a sub-agent with requests of its own."""

    t: float
    prompt: int | None = msgspec.field(name="in", default=None)
    out: int | None = None
    hash_ids: list[int] | None = None
    think_time: float | None = None
    api_time: float | None = None
    tool_tokens: int = 0
    system_tokens: int = 0
    requests: "list[_Request] | None" = None


class _File(msgspec.Struct):
    block_size: int
    requests: list[_Request]
    tool_tokens: int = 0
    system_tokens: int = 0
    hash_id_scope: str = "local"


@dataclass(slots=True)
class _Call:
    """A request with its keys in the store, or the start of a sub-agent."""

    request: _Request
    delay: int
    subagent: "list[_Call] | None" = None
    prompt: int = 0
    output: int = 0
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    output_spans: list[Span] = field(default_factory=list)


class _SessionReader:
    """Reads one session's file, then writes the session into the store."""

    def __init__(self, name: str, source: _File, faults: Faults, store: Store, max_think_us: int) -> None:
        self._name = name
        self._local = source.hash_id_scope != "global"
        self._block = source.block_size
        self._faults = faults
        self._store = store
        self._max_think = max_think_us
        self._chain = Chain(name if self._local else "")
        self.requests = 0
        self.cut_thinks = 0
        self.calls = self._agent("", source.requests, source.tool_tokens, source.system_tokens)

    def _agent(self, under: str, requests: list[_Request], tools: int, system: int) -> list[_Call]:
        """Return the usable calls of the session, or of a sub-agent, in order of time."""
        calls: list[_Call] = []
        previous: _Call | None = None
        labels: dict[int, str] = {}
        for number, request in self._sorted(under, requests):
            where = f"{self._name}: {under}request {number}"
            if request.requests is not None:
                inner = f"{under}sub-agent {number}, "
                delay = self._pause(request, previous)
                subagent = self._agent(inner, request.requests, request.tool_tokens, request.system_tokens)
                calls.append(_Call(request, delay, subagent))
                continue
            self.requests += 1
            try:
                call = self._call(where, request, previous)
            except ValueError as error:
                self._faults.broken(where, str(error))
                continue
            if previous is None and self._local:
                labels = self._shared(call.ids, tools, system)
            self._place(where, call, previous, labels)
            calls.append(call)
            previous = call
        return calls

    def _sorted(self, under: str, requests: list[_Request]) -> list[tuple[int, _Request]]:
        numbered = list(enumerate(requests))
        for (_, before), (number, after) in pairwise(numbered):
            if after.t < before.t:
                where = f"{self._name}: {under}request {number}"
                self._faults.mended(
                    "requests out of order: sorted",
                    f"{where}: {before.t - after.t:g} s before its predecessor",
                )
        return sorted(numbered, key=lambda item: item[1].t)

    def _call(self, where: str, request: _Request, previous: _Call | None) -> _Call:
        if request.prompt is None or request.out is None or request.hash_ids is None:
            missing = "in" if request.prompt is None else "out" if request.out is None else "hash_ids"
            raise ValueError(f"{missing} is missing")
        call = _Call(request, self._pause(request, previous))
        call.prompt = self._faults.at_least_one(where, "in", request.prompt)
        call.output = self._faults.at_least_one(where, "out", request.out)
        call.ids = list(self._chain.fit(self._faults, where, call.prompt, self._block, request.hash_ids))
        return call

    def _pause(self, request: _Request, previous: _Call | None) -> int:
        """Return the time in microseconds from the answer of ``previous`` to this request."""
        microseconds("t", request.t, 1e6)
        if previous is None:
            return 0
        before = previous.request
        pause = request.think_time
        if pause is None:
            pause = max(0.0, request.t - before.t - (before.api_time or 0.0))
        think = microseconds("think_time", pause, 1e6)
        if self._max_think and think > self._max_think:
            self.cut_thinks += 1
            return self._max_think
        return think

    def _shared(self, ids: list[int], tools: int, system: int) -> dict[int, str]:
        """Return what sessions with these counts have in common, by the first prompt's ids."""
        in_tools = max(0, tools) // self._block
        in_both = (max(0, tools) + max(0, system)) // self._block
        return {
            block: f"tools {tools} {at}" if at < in_tools else f"tools {tools} system {system} {at}"
            for at, block in enumerate(ids[:in_both])
        }

    def _place(self, where: str, call: _Call, previous: _Call | None, labels: dict[int, str]) -> None:
        """Give ``call`` its keys, and ``previous`` those of its output if this prompt continues it."""
        common = 0
        before = self._chain.root
        if previous is not None:
            common = common_prefix(call.ids, previous.ids)
            call.spans = cut_spans(previous.spans, 0, common)
        if common:
            before = self._store.key(call.spans[-1][1] - 1)
        keys, broken = self._chain.extend(before, call.ids[common:], labels)
        if broken:
            self._faults.mended(BROKEN_CHAIN, f"{where}: {self._chain.example}", broken)
        if keys:
            _append(call.spans, self._store.add_keys(keys))
        if previous is not None and common == len(previous.ids):
            total = previous.prompt + previous.output
            if call.prompt >= total:
                previous.output_spans = cut_spans(call.spans, common, total // self._block)

    def write(self) -> bool:
        """Append the session to the store; return whether it has any request."""
        if not any(call.subagent is None or call.subagent for call in self.calls):
            return False
        self._store.add_session(0, ONE_CLIENT, self._name)
        self._write(self.calls, -1, 0, 0)
        return True

    def _write(self, calls: list[_Call], after: int, delay: int, turn: int) -> int:
        """Write ``calls``, the first of which follows turn ``after``; return the next turn's number."""
        for call in calls:
            if call.subagent is not None:
                turn = self._write(call.subagent, after, call.delay, turn)
                continue
            wait = call.delay + delay
            self._store.add_turn(call.prompt, call.output, call.spans, call.output_spans, after, wait)
            after, delay, turn = turn, 0, turn + 1
        return turn


def _append(spans: list[Span], span: Span) -> None:
    if spans and spans[-1][1] == span[0]:
        spans[-1] = (spans[-1][0], span[1])
    else:
        spans.append(span)


def _files(path: Path) -> Iterator[Member]:
    """Yield the session files of a folder or an archive, or the one file that ``path`` is."""
    if path.is_dir() or is_tar(path):
        yield from (member for member in members(path) if member.name.endswith(".json"))
    else:
        yield Member(path.name, lambda: whole_text(path))


def _read(path: Path, values: Values) -> Trace:
    files, faults = Faults(path, "session"), Faults(path, "request")
    max_think = round(values.number("max_think_s") * 1e6)
    store = Store()
    names: list[str] = []
    block = count = requests = cut_thinks = 0
    for member in _files(path):
        count += 1
        try:
            source = decode(member.read(), _File)
        except ValueError as error:
            files.broken(member.name, str(error))
            continue
        block = block or source.block_size
        if source.block_size != block or block < 1:
            raise TraceError(
                f"{path}: {member.name}: block_size is {source.block_size}, other sessions have {block}; "
                "a trace has one: keep them apart"
            )
        session = _SessionReader(member.name.removesuffix(".json"), source, faults, store, max_think)
        requests += session.requests
        cut_thinks += session.cut_thinks
        if session.write():
            names.append(member.name)
    repairs = files.finish(count, "mend or remove those files") + faults.finish(requests, _REMEDY)
    starts, label = session_starts(values)
    by_name = dict(zip(sorted(names), starts, strict=False))
    store.retime(array("q", (by_name[name] for name in names)))
    labels = [label, NO_CLIENTS, "sessions with equal counts of tool and system tokens share these blocks"]
    if cut_thinks:
        labels.append(f"think times cut at {values.number('max_think_s'):g} s ({cut_thinks} of {requests})")
    return store.trace(path.name, block, identify(_FORM, path, values), labels, repairs)


def _sniff(sample: Sample) -> bool:
    return all(f'"{field}"'.encode() in sample.head for field in ("block_size", "requests", "hash_ids"))


READERS = (
    Reader(
        _FORM,
        "a tar archive, folder or file of JSON sessions with block_size, requests and hash_ids",
        _sniff,
        _read,
        (
            *start_params(0.1),
            Param("max_think_s", 60.0, "longest think time in seconds; 0: as recorded", low=0, high=1e6),
        ),
    ),
)
