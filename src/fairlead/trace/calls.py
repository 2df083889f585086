"""Requests of a log, in the order of the log, made into sessions.

Logs name a request's session, if at all, by an id, and requests of many sessions lie among each other. Here
the requests of a session are brought together, in order of arrival:

- A request follows the one it names as its parent, or else the answer before it: the latest one that had
  ended when it came, if the log has ends, or else its predecessor. Requests that came before any answer had
  ended start with the session and run side by side.
- It waits for that answer and then for the delay that the log states; where it states none, for the time
  from that answer's end, or, without ends, from its predecessor's arrival.
- Where prompts are known by keys, the answer is taken to be part of the next prompt if that one begins with
  this prompt and is at least as long as prompt and answer. Its blocks are then ``output_keys``.
- Where a source states of later turns only what is new, prompts are made whole: all prompts and answers of
  the session before them come first. Such turns follow each other.
- Where only lengths are known, ``history`` decides: a prompt that is at least as long as the prompt and
  answer that it follows is taken to begin with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from typing import TypeAlias

from xxhash import xxh3_64_intdigest

from fairlead.core.model import BLOCK_KEY_BITS, BlockKey, ClientId
from fairlead.core.params import Param, Values
from fairlead.trace.faults import MAX_TIME_US, MAX_TOKENS
from fairlead.trace.spans import cut_spans
from fairlead.trace.store import Span, Store

_MASK = (1 << BLOCK_KEY_BITS) - 1

HISTORY = "prompts of a session are taken to begin with the prompt and answer before them if they are as long"
"""The label of traces whose prefixes are made by ``history``."""

SESSIONS = Param(
    "sessions", "closed", "closed: turns wait for the answer before them; open: they come as recorded",
    choices=("closed", "open"),
)  # fmt: skip
HISTORY_PARAM = Param(
    "history", True, "prompts of a session begin with the prompt and answer before them, if they are as long"
)


@dataclass(slots=True)
class Call:
    """One request of a log."""

    at: int
    """Arrival in microseconds; -1 where the source has none and the request follows an answer."""
    prompt: int
    output: int
    client: ClientId
    session: str = ""
    """The source's id of its session, within the client's; empty: it stands alone."""
    parent: int = -1
    """Number of the call that it follows, among those added; -1: decided by times."""
    delay: int = -1
    """Microseconds from the parent's answer; -1: not known."""
    end: int = -1
    """When its answer had ended, in microseconds; -1: not known."""
    spans: Sequence[Span] | None = None
    """Keys of the prompt's full blocks in the store; None: not known."""
    output_spans: Sequence[Span] = field(default=())


_Session: TypeAlias = tuple[ClientId, str]


class Calls:
    """Takes the requests of a log and puts them into a store."""

    def __init__(
        self, store: Store, block: int, *, closed: bool = True, history: bool = False, new: bool = False
    ) -> None:
        self._store = store
        self._block = block
        self._closed = closed
        self._history = history
        self._new = new  # prompts of later turns are only what they add to their session
        self.added = 0
        """Requests so far."""
        self._sessions: dict[_Session, list[tuple[int, Call]]] = {}
        self.turns = 0
        """Requests that follow an answer; after ``finish``."""

    def add(self, call: Call) -> int:
        """Take the next request and return its number."""
        number = self.added
        self.added += 1
        if call.session:
            self._sessions.setdefault((call.client, call.session), []).append((number, call))
        else:
            self._alone(call)
        return number

    def finish(self) -> None:
        """Put the sessions into the store."""
        for (_, name), numbered in self._sessions.items():
            calls = _by_arrival(numbered)
            if self._new:
                self._whole(name, [call for _, call in calls])
            if self._closed:
                self._session(name, calls)
                continue
            for _, call in calls:
                self._alone(call, name)
        self._sessions.clear()

    def _alone(self, call: Call, name: str = "") -> None:
        self._store.add_session(max(0, call.at), call.client, name)
        self._store.add_turn(call.prompt, call.output, call.spans or ())

    def _session(self, name: str, numbered: list[tuple[int, Call]]) -> None:
        calls = [call for _, call in numbered]
        place = {number: index for index, (number, _) in enumerate(numbered)}
        parents, delays = _order(calls, place)
        if self._history and all(call.spans is None for call in calls):
            self._continue(name, calls, parents)
        elif not self._new:
            self._answers(calls, parents)
        first = calls[0]
        self._store.add_session(max(0, first.at), first.client, name)
        for call, parent, delay in zip(calls, parents, delays, strict=True):
            self._store.add_turn(call.prompt, call.output, call.spans or (), call.output_spans, parent, delay)
            self.turns += parent >= 0

    def _answers(self, calls: Sequence[Call], parents: Sequence[int]) -> None:
        """Give each request whose answer stands in a later prompt the keys of that answer's blocks."""
        for call, parent in zip(calls, parents, strict=True):
            if parent < 0 or call.spans is None:
                continue
            before = calls[parent]
            if before.spans is None or before.output_spans:
                continue
            full, total = before.prompt // self._block, before.prompt + before.output
            if call.prompt >= total and self._begins(call.spans, before.spans, full):
                before.output_spans = cut_spans(call.spans, full, total // self._block)

    def _begins(self, spans: Sequence[Span], prefix: Sequence[Span], blocks: int) -> bool:
        """Whether the keys in ``spans`` begin with all ``blocks`` of ``prefix``: the last of them says so."""
        if not blocks:
            return True
        mine, other = cut_spans(spans, blocks - 1, blocks), cut_spans(prefix, blocks - 1, blocks)
        return bool(mine) and bool(other) and self._store.key(mine[0][0]) == self._store.key(other[0][0])

    def _whole(self, name: str, calls: Sequence[Call]) -> None:
        """Put before each prompt all that was said: only the first one keeps the keys of its source."""
        for before, call in pairwise(calls):
            call.prompt = min(MAX_TOKENS, call.prompt + before.prompt + before.output)
            call.spans = None
        self._continue(name, calls, range(-1, len(calls) - 1))

    def _continue(self, name: str, calls: Sequence[Call], parents: Sequence[int]) -> None:
        """Give the requests of one session keys by their lengths: new ones where they do not continue."""
        block = self._block
        followed = set(parents)
        for index, (call, parent) in enumerate(zip(calls, parents, strict=True)):
            before = calls[parent] if parent >= 0 else None
            spans = list(call.spans or ())
            if before is not None and call.prompt >= before.prompt + before.output:
                whole = [*(before.spans or ()), *before.output_spans]
                spans = cut_spans(whole, 0, (before.prompt + before.output) // block)
            known = sum(stop - start for start, stop in spans)
            full, total = call.prompt // block, (call.prompt + call.output) // block
            stop = total if index in followed else full
            new = self._store.add_keys(_new_keys(f"{call.client}\0{name}\0{index}", stop - known))
            whole = [*spans, new] if new[1] > new[0] else spans
            call.spans = cut_spans(whole, 0, full)
            call.output_spans = cut_spans(whole, full, stop)


def _by_arrival(numbered: list[tuple[int, Call]]) -> list[tuple[int, Call]]:
    """Return the requests in order of arrival; one without a time stays behind the one before it."""
    latest = 0
    times = []
    for number, call in numbered:
        latest = call.at if call.at >= 0 else latest
        times.append((latest, number, call))
    times.sort(key=lambda item: item[:2])
    return [(number, call) for _, number, call in times]


def _order(calls: Sequence[Call], place: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Return what each request of a session follows (an index, or -1 for its start), and by what delay."""
    parents, delays = [-1], [0]
    running = [(calls[0].end, 0)] if calls[0].end >= 0 else []
    latest = -1  # of those that had ended when the current request came, the one that ended last
    for index in range(1, len(calls)):
        call = calls[index]
        parent = place.get(call.parent, index - 1) if call.parent >= 0 else index - 1
        parent = min(parent, index - 1)
        while running and call.at >= running[0][0]:
            latest = heappop(running)[1]
        if call.parent < 0 and call.delay < 0 and call.at >= 0 and calls[parent].end >= 0:
            parent = latest
        if call.end >= 0:
            heappush(running, (max(call.end, call.at), index))
        parents.append(parent)
        delays.append(_delay(calls, call, parent))
    return parents, delays


def _delay(calls: Sequence[Call], call: Call, parent: int) -> int:
    if call.delay >= 0:
        return call.delay
    before = calls[max(0, parent)]
    start = before.end if parent >= 0 and before.end >= 0 else before.at
    return min(MAX_TIME_US, max(0, call.at - start)) if call.at >= 0 and start >= 0 else 0


def _new_keys(seed: str, count: int) -> list[BlockKey]:
    """Return ``count`` chained keys that no other prompt has."""
    key = xxh3_64_intdigest(seed.encode("utf-8", "surrogatepass"))
    keys = []
    for _ in range(count):
        key = xxh3_64_intdigest(key.to_bytes(8, "little")) & _MASK
        keys.append(key)
    return keys


def closed(values: Values) -> bool:
    """Whether the option ``sessions`` asks for closed loops."""
    return values.word("sessions") == "closed"


def gaps_label(*, ends: bool) -> str:
    """Return what results of closed-loop sessions must say about their think times."""
    if ends:
        return "closed loop: turns follow the answer before them after the recorded pause"
    return (
        "closed loop: turns follow the answer before them after the recorded time between arrivals,"
        " which holds the recorded answer too"
    )
