"""Chats: the conversation so far, and one more message."""

from collections.abc import Iterator, Sequence

from fairlead.core.params import Param, Values
from fairlead.trace.generators.base import LENGTH_CV, Generator, arriving
from fairlead.trace.generators.draws import evenly, pauses, skewed
from fairlead.trace.generators.keys import EMPTY
from fairlead.trace.model import Turn


class MultiTurn(Generator):
    """Conversations whose every prompt holds all messages and answers before it.

    Follows the multi-turn chats of [DLPM], arXiv 2501.14312. Ours: the number of turns is spread evenly
    around its mean, lengths are lognormal, think times exponential, and each client has a system prompt.
    """

    name = "multi-turn"
    source = "[DLPM] multi-turn chat"
    summary = "Chats that grow turn by turn; the user thinks, then writes on."
    params = (
        Param("system_tokens", 400, "length of a client's system prompt", low=0),
        Param("turns", 6, "mean turns of a conversation (from 1 to twice as many less 1)", low=1),
        Param("user_tokens", 100, "mean length of a message", low=1),
        Param("output_tokens", 200, "mean length of an answer", low=1),
        LENGTH_CV,
        *arriving(rate=1.0, think_s=10.0),
    )

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        super().__init__(values, seed, clients)
        cv = values.number("length_cv")
        self._message = skewed(self.rng("messages"), values.integer("user_tokens"), cv)
        self._output = skewed(self.rng("outputs"), values.integer("output_tokens"), cv)
        self._pause = pauses(self.rng("pauses"), values.number("think_s"))
        system = values.integer("system_tokens")
        self._systems = [self.keys.grow(EMPTY, system) for _ in range(clients)]

    def sizes(self) -> Iterator[int]:
        """Yield turns a conversation."""
        mean = self.values.integer("turns")
        return evenly(self.rng("turns"), mean, 1 - 1 / mean)

    def conversation(self, client: int, turns: int) -> Sequence[Turn]:
        """Return one chat."""
        grow = self.keys.grow
        said: list[Turn] = []
        text = self._systems[client]
        for number in range(turns):
            prompt = grow(text, next(self._message))
            output = next(self._output)
            text = grow(prompt, output)
            pause = next(self._pause) if number else 0
            answer = text.keys[len(prompt.keys) :]
            said.append(Turn(prompt.tokens, output, prompt.keys, answer, number - 1, pause))
        return said
