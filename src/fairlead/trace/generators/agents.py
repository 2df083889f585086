"""Coding agents: long contexts that grow by one tool call after the other."""

from collections.abc import Iterator, Sequence

from fairlead.core.params import Param, Values
from fairlead.trace.generators.base import LENGTH_CV, Generator, arriving
from fairlead.trace.generators.draws import evenly, pauses, skewed
from fairlead.trace.generators.keys import EMPTY
from fairlead.trace.model import Turn


class Agents(Generator):
    """Tasks of many steps. Each step's prompt is all that came before, and what the last tool returned.

    The shape is that of public traces of coding agents (long shared instructions and tool definitions,
    short answers, tool results of very different length); the figures are ours, and no trace is read.
    A context that would pass ``context_tokens`` is compacted, as such agents do: it starts again from
    the instructions and a new summary, so a prompt is never longer than that unless a single tool result
    is.
    """

    name = "agents"
    source = "ours, after public traces of coding agents"
    summary = "Coding agents: one long prompt of instructions for all, contexts that grow by tool results."
    params = (
        Param("system_tokens", 8_000, "instructions and tool definitions, the same for everyone", low=0),
        Param("task_tokens", 2_000, "mean length of a task, or of the summary after a compaction", low=1),
        Param("steps", 20, "mean requests a task (from 1 to twice as many less 1)", low=1),
        Param("tool_tokens", 1_200, "mean length of a tool's result", low=1),
        Param("output_tokens", 150, "mean length of an answer", low=1),
        Param("tool_s", 2.0, "mean run time of a tool in seconds, exponential", low=0),
        Param("context_tokens", 100_000, "a longer context is compacted", low=1),
        LENGTH_CV,
        *arriving(rate=0.1, think_s=30.0),
    )
    requests = 1_000

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        super().__init__(values, seed, clients)
        cv = values.number("length_cv")
        self._task = skewed(self.rng("tasks"), values.integer("task_tokens"), cv)
        self._tool = skewed(self.rng("tools"), values.integer("tool_tokens"), cv)
        self._output = skewed(self.rng("outputs"), values.integer("output_tokens"), cv)
        self._run = pauses(self.rng("runs"), values.number("tool_s"))
        self._limit = values.integer("context_tokens")
        self._system = self.keys.grow(EMPTY, values.integer("system_tokens"))

    def sizes(self) -> Iterator[int]:
        """Yield requests a task."""
        mean = self.values.integer("steps")
        return evenly(self.rng("steps"), mean, 1 - 1 / mean)

    def conversation(self, client: int, turns: int) -> Sequence[Turn]:  # noqa: ARG002 - clients are alike
        """Return one task."""
        grow = self.keys.grow
        steps: list[Turn] = []
        prompt = grow(self._system, next(self._task))
        for number in range(turns):
            output = next(self._output)
            answered = grow(prompt, output)
            run = next(self._run) if number else 0
            answer = answered.keys[len(prompt.keys) :]
            steps.append(Turn(prompt.tokens, output, prompt.keys, answer, number - 1, run))
            result = next(self._tool)
            if answered.tokens + result > self._limit:
                answered = grow(self._system, next(self._task))
            prompt = grow(answered, result)
        return steps
