"""Shared system prompts: the plainest workload with something to cache, and the yardstick for speed."""

from collections.abc import Sequence

from fairlead.core.params import Param, Values
from fairlead.trace.generators.base import SPREAD, Generator, arriving
from fairlead.trace.generators.draws import evenly
from fairlead.trace.generators.keys import EMPTY, Prompt
from fairlead.trace.model import Turn


class SharedPrefix(Generator):
    """Groups of prompts that start with the same system prompt and end with a question of their own.

    Follows the ``generated-shared-prefix`` data set of SGLang's serving benchmark, which has groups of
    equal size and fixed lengths. Ours: groups belong to clients, a request's group is drawn at random,
    and the lengths of question and answer are spread.
    """

    name = "shared-prefix"
    source = "SGLang `bench_serving --dataset-name generated-shared-prefix`"
    summary = "Single requests: one of many shared system prompts, then a question of its own."
    params = (
        Param("groups", 64, "different system prompts", low=1),
        Param("shared_tokens", 800, "length of a system prompt", low=0),
        Param("unique_tokens", 200, "mean length of what only this request says", low=1),
        Param("output_tokens", 200, "mean length of an answer", low=1),
        SPREAD,
        Param("own_groups", True, "each client has groups of its own (at least one); off: all use all"),
        *arriving(rate=10.0),
    )

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        super().__init__(values, seed, clients)
        spread = values.number("spread")
        self._shared = values.integer("shared_tokens")
        self._unique = evenly(self.rng("prompts"), values.integer("unique_tokens"), spread)
        self._output = evenly(self.rng("outputs"), values.integer("output_tokens"), spread)
        self._pick = self.rng("groups").random
        self._groups = self._deal(values.integer("groups"), values.flag("own_groups"))

    def _deal(self, groups: int, own: bool) -> list[list[Prompt]]:
        """Return the system prompts of each client."""
        if not own:
            return [[self._system_prompt() for _ in range(groups)]] * self.count
        dealt: list[list[Prompt]] = [[] for _ in range(self.count)]
        for number in range(max(groups, self.count)):
            dealt[number % self.count].append(self._system_prompt())
        return dealt

    def _system_prompt(self) -> Prompt:
        return self.keys.grow(EMPTY, self._shared)

    def conversation(self, client: int, turns: int) -> Sequence[Turn]:  # noqa: ARG002 - always one turn
        """Return a request of one of the client's groups."""
        groups = self._groups[client]
        shared, head = groups[int(self._pick() * len(groups))]
        tokens = shared + next(self._unique)
        # What Keys.grow does, without its tuple: this is the yardstick's hot path.
        new = self.keys.fresh(tokens // self.keys.block_tokens - len(head))
        return (Turn(tokens, next(self._output), (*head, *new)),)
