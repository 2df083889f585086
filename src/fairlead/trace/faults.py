"""What readers do about faults in a trace: one place for the rules, the counts and the limit.

- *Broken* lines (not JSON, a field missing or of the wrong type, a negative time or length) are left out.
- Lines with a *doubtful* field (hash ids that do not fit the prompt's length) are mended.
- If more than 1% of the lines are broken or doubtful, the trace is refused: then it is probably not what it
  seems to be, and leaving lines out would change the workload.
- A last line that breaks off is left out and does not count towards the limit.
- What has one sensible reading (unsorted arrivals, a length of 0) is mended however often it occurs.

Every rule that was applied becomes a ``Repair`` with a count and the first example.
"""

from pathlib import Path

from fairlead.trace.model import Repair, TraceError

BROKEN_SHARE = 0.01
"""Share of the lines that may be broken or doubtful before the whole trace is refused."""

MESSAGE_LENGTH = 300
"""Characters of a line's fault that are shown."""

MAX_TOKENS = (1 << 24) - 1
"""More than any model's context. A line with 2 billion tokens would take as many keys."""
MAX_TIME_US = 1 << 60


class Faults:
    """Collects the faults of one source while it is read."""

    def __init__(self, path: Path, unit: str = "line") -> None:
        self.path = path
        self.unit = unit
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}
        self._suspicious = 0
        self._first = ""
        self._last_where = ""
        self._latest = 0

    def mended(self, rule: str, example: str, count: int = 1) -> None:
        """Count a fault that was mended and is harmless however often it occurs."""
        self._counts[rule] = self._counts.get(rule, 0) + count
        if rule not in self._examples:
            self._examples[rule] = _shortened(example)

    def doubtful(self, where: str, rule: str, problem: str) -> None:
        """Count a mended fault that counts towards the limit, once for each ``where``."""
        self.mended(rule, f"{where}: {problem}")
        self._first = self._first or _shortened(f"{where}: {problem}")
        if where != self._last_where:
            self._suspicious += 1
            self._last_where = where

    def broken(self, where: str, problem: str) -> None:
        """Count a line, or another item, that is left out."""
        self.doubtful(where, f"broken {self.unit}s: left out", problem)

    def arrival(self, where: str, at_us: int) -> None:
        """Note the arrival of the next request in the source's order, to count those out of order."""
        if at_us < self._latest:
            self.mended(
                "arrivals out of order: sorted",
                f"{where}: {(self._latest - at_us) / 1e6:g} s before its predecessor",
            )
        self._latest = max(self._latest, at_us)

    def at_least_one(self, where: str, field: str, tokens: int) -> int:
        """Return ``tokens``, or 1 for 0: no engine takes an empty prompt or stops before its first token.

        Raises ValueError if it is negative or absurdly large.
        """
        if tokens > 0:
            if tokens > MAX_TOKENS:
                raise ValueError(f"{field} is {tokens}, beyond any context length")
            return tokens
        if tokens < 0:
            raise ValueError(f"{field} is {tokens}, negative")
        self.mended("lengths of 0: counted as 1 token", f"{where}: {field} is 0")
        return 1

    def finish(self, items: int, remedy: str) -> tuple[Repair, ...]:
        """Return all repairs. Raises ``TraceError`` beyond the limit; ``items`` counts broken ones too."""
        if self._suspicious > BROKEN_SHARE * items:
            raise TraceError(
                f"{self.path}: {self._first} ({self._suspicious} of {items} {self.unit}s have such faults; "
                f"a trace with more than {BROKEN_SHARE:.0%} is refused): {remedy}"
            )
        return tuple(Repair(rule, count, self._examples[rule]) for rule, count in self._counts.items())


def _shortened(text: str) -> str:
    """Return what a line says as a message can show it: a file may hold a number of thousands of digits."""
    return text if len(text) <= MESSAGE_LENGTH else f"{text[: MESSAGE_LENGTH - 3]}..."


def microseconds(field: str, value: float, per_unit: float) -> int:
    """Return a time in microseconds. Raises ValueError if it is negative or out of range."""
    if not 0 <= value * per_unit <= MAX_TIME_US:
        raise ValueError(f"{field} is {value:g}, " + ("negative" if value < 0 else "out of range"))
    return round(value * per_unit)
