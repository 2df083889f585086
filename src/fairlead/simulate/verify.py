"""Replays a decision log and compares every decision (invariant 6).

A fresh dispatcher is made from what the log's header says and is given the log's events. Each must
lead to the commands in the log, with the same reasons: scores, candidates, matched tokens, credit.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fairlead.core import events as ev
from fairlead.core.dispatcher import Dispatcher
from fairlead.trace.decision_reader import LogReader, LogRecord
from fairlead.trace.decisions import LogError, Outcome, decode_outcome, encode_outcome, refusal, same_outcome

_REPORT_EVERY = 2_000
_SHOWN_KEYS = 2


@dataclass(frozen=True, slots=True)
class Difference:
    """The first record whose decision came out differently."""

    record: int
    """Number in the run, from 0."""
    where: str
    """File and line."""
    event: str
    fields: tuple[str, ...]
    """What differs, such as ``[0].reasons.scores[1]: 4.0, now 5.0``; the log's value first."""
    expected: str
    got: str


@dataclass(slots=True)
class Verdict:
    """The result of a replay."""

    events: Counter[str] = field(default_factory=Counter)
    """Replayed, by name."""
    commands: Counter[str] = field(default_factory=Counter)
    """Made by the replay, by name; events that were refused count as ``refused``."""
    difference: Difference | None = None
    """None if all decisions are identical."""
    truncated: str = ""
    """Where the log breaks off within a record, if it does; the records before count."""

    @property
    def identical(self) -> bool:
        """Whether every decision was the same."""
        return self.difference is None


def verify(log: LogReader, progress: Callable[[int], None] = lambda _: None) -> Verdict:
    """Replay ``log`` up to the first difference; ``progress`` is told the records so far now and then.

    Raises ``LogError`` if it cannot be replayed: damaged, or its beginning was rotated away;
    ``PolicyError`` if it names a policy or parameter that this version does not have.
    """
    if log.missing:
        raise LogError(
            f"{log.paths[0]}: the first {log.missing} records of this run were rotated away, so its state is"
            " not known and nothing can be verified. It still serves as a workload. To keep runs whole, raise"
            " decision_log_max_bytes or decision_log_files"
        )
    dispatcher = log.header.setup.dispatcher()
    verdict = Verdict()
    for entry in log:
        outcome = _outcome(dispatcher, entry.event)
        verdict.events[type(entry.event).__name__] += 1
        if outcome:
            names = ["refused"] if isinstance(outcome, str) else [type(c).__name__ for c in outcome]
            verdict.commands.update(names)
        if not same_outcome(encode_outcome(outcome), entry.outcome):
            verdict.difference = _difference(entry, outcome)
            break
        if not entry.number % _REPORT_EVERY:
            progress(entry.number)
    verdict.truncated = log.truncated
    return verdict


def _outcome(dispatcher: Dispatcher, event: ev.Event) -> Outcome:
    try:
        return dispatcher.step(event)
    except Exception as error:  # noqa: BLE001 - whatever was raised then has to be raised again
        return refusal(error)


# --- explaining a difference -----------------------------------------------------------------------


def _difference(entry: LogRecord, got: Outcome) -> Difference:
    try:
        expected: object = decode_outcome(entry.outcome)
    except ValueError as error:
        raise LogError(f"{entry.path} line {entry.line}: the commands cannot be read: {error}") from None
    return Difference(
        entry.number,
        f"{entry.path} line {entry.line}",
        _shown(entry.event),
        tuple(_fields("", expected, got)),
        _shown(expected),
        _shown(got),
    )


def _fields(name: str, expected: object, got: object) -> Iterator[str]:
    """Yield the innermost fields that differ."""
    if isinstance(expected, (tuple, list)) and isinstance(got, (tuple, list)) and len(expected) == len(got):
        names = getattr(expected, "_fields", None)
        if names == getattr(got, "_fields", None) or names is None:
            for at, pair in enumerate(zip(expected, got, strict=True)):
                yield from _fields(f"{name}.{names[at]}" if names else f"{name}[{at}]", *pair)
            return
    if expected != got:
        yield f"{name.lstrip('.') or 'commands'}: {_shown(expected)}, now {_shown(got)}"


def _shown(value: object) -> str:
    """Return ``value`` as text, without the many keys of a prompt."""
    if isinstance(value, ev.Arrived):
        keys = value.request.keys
        if len(keys) > _SHOWN_KEYS:
            shown = [*keys[:_SHOWN_KEYS], f"... {len(keys)} in all"]
            return repr(value._replace(request=value.request._replace(keys=shown)))  # type: ignore[arg-type] # text
    if value in ((), []):
        return "no command"
    return value if isinstance(value, str) else repr(value)
