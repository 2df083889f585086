"""Sessions in columns: what readers fill, and what makes a ``Trace`` of it.

A request takes some 60 bytes and its keys 8 bytes a block; turns that share a prefix share its keys.
Turns are made when they are looked at, so a long conversation holds only the prompt in hand.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, overload

from fairlead.core.model import BlockKey, ClientId
from fairlead.trace.model import ONE_CLIENT, Repair, Session, Trace, TraceError, Turn

Span: TypeAlias = tuple[int, int]
"""Start and stop of a stretch of keys in the store."""


class Store:
    """Columns of sessions and turns. Append a session, then its turns, then the next session."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._spans = array("q")  # start and stop alternate
        self._prompt_spans = array("q")  # a turn: end of its prompt's spans in _spans
        self._output_spans = array("q", [0])  # and of its output's; the one before is where the turn starts
        self._prompt = array("i")
        self._output = array("i")
        self._after = array("i")
        self._delay = array("q")
        self._at = array("q")
        self._first = array("q")  # a session: its first turn
        self._client = array("i")
        self._clients: dict[ClientId, int] = {}
        self._names: list[str] = []

    def add_keys(self, keys: Iterable[BlockKey]) -> Span:
        """Keep ``keys`` and return where they lie."""
        start = len(self._keys)
        self._keys.extend(keys)
        return start, len(self._keys)

    def key(self, position: int) -> BlockKey:
        """Return the key at ``position`` of the store."""
        return self._keys[position]

    def add_session(self, at: int, client: ClientId, name: str = "") -> None:
        """Begin a session; the turns that follow belong to it."""
        self._at.append(at)
        self._first.append(len(self._prompt))
        self._client.append(self._clients.setdefault(client, len(self._clients)))
        if name and not self._names:
            self._names = [""] * (len(self._at) - 1)
        if self._names or name:
            self._names.append(name)

    def add_turn(
        self,
        prompt_tokens: int,
        output_tokens: int,
        keys: Iterable[Span] = (),
        output_keys: Iterable[Span] = (),
        after: int = -1,
        delay_us: int = 0,
    ) -> None:
        """Append a turn to the latest session; the fields are those of ``Turn``."""
        self._prompt.append(prompt_tokens)
        self._output.append(output_tokens)
        self._after.append(after)
        self._delay.append(delay_us)
        for span in keys:
            self._spans.extend(span)
        self._prompt_spans.append(len(self._spans))
        for span in output_keys:
            self._spans.extend(span)
        self._output_spans.append(len(self._spans))

    def retime(self, at: "array[int]") -> None:
        """Replace the arrival of every session, in the order they were added."""
        if len(at) != len(self._at):
            raise ValueError(f"{len(at)} times for {len(self._at)} sessions")
        self._at = at

    def rename_client(self, old: ClientId, new: ClientId) -> None:
        """Call client ``old`` ``new``, or ``new-``, ``new--`` if another is called so."""
        while new in self._clients:
            new += "-"
        self._clients = {new if name == old else name: number for name, number in self._clients.items()}

    def turn(self, index: int) -> Turn:
        """Return turn ``index``, counted over all sessions."""
        start, middle, end = (
            self._output_spans[index],
            self._prompt_spans[index],
            self._output_spans[index + 1],
        )
        return Turn(
            self._prompt[index],
            self._output[index],
            self._gather(start, middle),
            self._gather(middle, end),
            self._after[index],
            self._delay[index],
        )

    def _gather(self, start: int, stop: int) -> Sequence[BlockKey]:
        if start == stop:
            return ()
        spans = self._spans
        keys = self._keys[spans[start] : spans[start + 1]]
        for at in range(start + 2, stop, 2):
            keys += self._keys[spans[at] : spans[at + 1]]
        return keys

    def trace(
        self,
        name: str,
        block_tokens: int,
        identity: str,
        labels: Sequence[str] = (),
        repairs: Sequence[Repair] = (),
        weights: Mapping[ClientId, float] | None = None,
        facts: Sequence[str] = (),
    ) -> Trace:
        """Return the store as a trace, sessions in order of arrival, the first one at time 0.

        ``facts`` are what only the reader knows of its source, such as "3 models" or "arrivals in seconds".
        Raises ``TraceError`` if there is none. The store must not be filled further.
        """
        at = self._at
        if not at:
            raise TraceError(f"{name}: no request is left")
        order = array("q", sorted(range(len(at)), key=at.__getitem__))
        start = at[order[0]]
        clients = list(self._clients)
        first = self._first
        first.append(len(self._prompt))

        def sessions() -> Iterator[Session]:
            for number in order:
                turns = StoredTurns(self, first[number], first[number + 1])
                named = self._names[number] if self._names else ""
                yield Session(at[number] - start, clients[self._client[number]], turns, named)

        return Trace(
            name=name,
            block_tokens=block_tokens,
            sessions=sessions,
            requests=len(self._prompt),
            duration_us=at[order[-1]] - start,
            clients={client: (weights or {}).get(client, 1.0) for client in clients},
            labels=tuple(labels),
            repairs=tuple(repairs),
            understood=", ".join(
                (
                    counted(len(self._prompt), "request"),
                    counted(self._sessions(), "session"),
                    "no clients named" if clients == [ONE_CLIENT] else counted(len(clients), "client"),
                    *facts,
                )
            ),
            identity=identity,
        )

    def _sessions(self) -> int:
        """Count the sessions that the source names or that have several turns; other requests stand alone."""
        first = self._first
        names = self._names or [""] * (len(first) - 1)
        return sum(
            bool(name) or after - start > 1
            for name, start, after in zip(names, first, first[1:], strict=False)
        )


def counted(number: int, what: str) -> str:
    """Return such as "1 session" or "1,200 requests"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class StoredTurns(Sequence[Turn]):
    """The turns of one session, each made when it is asked for."""

    __slots__ = ("_start", "_stop", "_store")

    def __init__(self, store: Store, start: int, stop: int) -> None:
        self._store = store
        self._start = start
        self._stop = stop

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> Turn: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Turn]: ...
    def __getitem__(self, index: int | slice) -> Turn | Sequence[Turn]:
        picked = range(self._start, self._stop)[index]
        if isinstance(picked, int):
            return self._store.turn(picked)
        if picked.step == 1:
            return StoredTurns(self._store, picked.start, picked.stop)
        return [self._store.turn(at) for at in picked]

    def __iter__(self) -> Iterator[Turn]:
        return map(self._store.turn, range(self._start, self._stop))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment] # compared by content

    def __repr__(self) -> str:
        return f"<{len(self)} turns>"
