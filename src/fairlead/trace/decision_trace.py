"""A decision log as a workload: what was asked in production, to be simulated under another policy."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fairlead.core import events as ev
from fairlead.core.model import ClientId, Request, RequestId
from fairlead.core.params import Values
from fairlead.trace.decision_reader import LogReader
from fairlead.trace.decisions import MARK
from fairlead.trace.files import content_hash
from fairlead.trace.model import Repair, Session, Trace, TraceError, Turn
from fairlead.trace.reader import Reader

_CUT_OFF = "requests that did not end with an answer: as long as the output that was seen"
_UNKNOWN = "requests without any output that is known (rejected, failed, left, or no usage): left out"


class _Lengths(NamedTuple):
    """Of one request, as the worker counted them."""

    prompt: int
    output: int


def read_decision_log(path: Path, values: Values) -> Trace:  # noqa: ARG001 - what every reader is given
    """Read the log that ``path`` is a file of: each arrival becomes a session of one turn, at its time.

    The output's length is what the worker reported, else the tokens that were seen. The log is read
    again whenever sessions are asked for; in memory is only how long each request was. Raises
    ``TraceError`` if no request has an output of known length, ``LogError`` for a damaged log.
    """
    survey = _Survey(LogReader(path))
    log, block_tokens = survey.log, survey.block_tokens()
    lengths = survey.lengths
    if not lengths:
        raise TraceError(f"{path}: no request in this log has an output of known length")
    weights = log.header.setup.weights

    def sessions() -> Iterator[Session]:
        for entry in LogReader(path).records(ev.Arrived):
            assert isinstance(entry.event, ev.Arrived)
            request = entry.event.request
            found = lengths.get(request.rid)
            if found is not None:
                turn = _turn(request, found, block_tokens)
                yield Session(entry.event.at - survey.first_us, request.client, (turn,), request.session)

    return Trace(
        name=path.name,
        block_tokens=block_tokens,
        sessions=sessions,
        requests=len(lengths),
        duration_us=survey.last_us - survey.first_us,
        clients={client: weights.get(client, 1.0) for client in survey.clients},
        labels=survey.labels(),
        repairs=survey.repairs(),
        identity=_identity(log),
    )


def _turn(request: Request, lengths: _Lengths, block_tokens: int) -> Turn:
    keys = request.keys[: lengths.prompt // block_tokens]
    return Turn(lengths.prompt, lengths.output, keys, max_tokens=request.max_tokens)


def _identity(log: LogReader) -> str:
    state = f"decision-log {[content_hash(path) for path in log.paths]}"
    return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()


class _Survey:
    """The first pass: how long each request turned out to be, and who asked."""

    def __init__(self, log: LogReader) -> None:
        self.log = log
        self.lengths: dict[RequestId, _Lengths] = {}
        """Of the requests that are kept."""
        self.clients: dict[ClientId, None] = {}
        """In order of appearance; of kept requests only."""
        self.first_us = -1
        self.last_us = 0
        """When the first and the last kept request arrived."""
        self._seen: dict[RequestId, int] = {}
        """Output tokens so far of requests that arrived and did not finish."""
        self._blocks = 0
        self._block_tokens = 0.0
        """Blocks of all prompts, and the tokens that they stand for."""
        self._exact = True
        self._cut_off: list[RequestId] = []
        self._unknown = 0
        self._unknown_example = ""
        for entry in log.records(ev.Arrived, ev.Progressed, ev.Finished):
            self._note(entry.event)
        self._settle()

    def _note(self, event: ev.Event) -> None:
        seen = self._seen
        if isinstance(event, ev.Arrived):
            seen[event.request.rid] = 0
            self._count_blocks(event.request)
        elif isinstance(event, ev.Progressed):
            if event.rid in seen:
                seen[event.rid] += event.tokens
        elif isinstance(event, ev.Finished) and event.rid in seen:
            output = event.output_tokens or seen[event.rid]
            if output:
                del seen[event.rid]
                self.lengths[event.rid] = _Lengths(event.prompt_tokens or 0, output)

    def _count_blocks(self, request: Request) -> None:
        blocks = len(request.keys)
        self._blocks += blocks
        self._block_tokens += blocks * request.block_tokens
        self._exact = self._exact and request.block_tokens == int(request.block_tokens)

    def _settle(self) -> None:
        """Decide on the requests that did not finish, and see who is left."""
        lengths, seen = self.lengths, self._seen
        for entry in self.log.records(ev.Arrived):
            assert isinstance(entry.event, ev.Arrived)
            request = entry.event.request
            rid = request.rid
            known = lengths.get(rid)
            if known is None:
                output = seen[rid]
                if not output:
                    self._unknown += 1
                    self._unknown_example = self._unknown_example or f"request {rid} of {request.client}"
                    continue
                self._cut_off.append(rid)
                known = _Lengths(0, output)
            lengths[rid] = _Lengths(max(1, known.prompt or request.prompt_tokens), known.output)
            self.clients[request.client] = None
            self.last_us = entry.event.at
            if self.first_us < 0:
                self.first_us = entry.event.at

    def block_tokens(self) -> int:
        """Return the tokens that a block stands for, a whole number."""
        return max(1, round(self._block_tokens / self._blocks)) if self._blocks else 16

    def labels(self) -> list[str]:
        """Return what a reader of results must know."""
        found = ["arrivals as recorded: later turns of a conversation do not wait for earlier answers"]
        if self._blocks:
            found.append("blocks of answers are unknown: a later turn finds the earlier prompt cached only")
        if not self._exact:
            mean = self._block_tokens / self._blocks
            found.append(
                f"prompts are known by blocks of bytes, {mean:.1f} tokens on average, taken for"
                f" {self.block_tokens()}"
            )
        if self.log.missing:
            found.append(f"the run's first {self.log.missing} records were rotated away")
        return found

    def repairs(self) -> list[Repair]:
        """Return what was mended or left out."""
        found = []
        if self._cut_off:
            found.append(Repair(_CUT_OFF, len(self._cut_off), f"request {self._cut_off[0]}"))
        if self._unknown:
            found.append(Repair(_UNKNOWN, self._unknown, self._unknown_example))
        if self.log.truncated:
            found.append(Repair("a last record that breaks off: left out", 1, self.log.truncated))
        return found


READERS = (
    Reader(
        "decision-log",
        "written by fairlead serve --decision-log: a header, then one event with its decisions a line",
        lambda sample: sample.head.startswith(MARK),
        read_decision_log,
    ),
)
