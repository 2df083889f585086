"""Tree search: every answer is continued in several ways at once."""

from collections.abc import Iterator, Sequence
from itertools import repeat

from fairlead.core.params import Param, Values
from fairlead.trace.generators.base import SPREAD, Generator, arriving
from fairlead.trace.generators.draws import evenly
from fairlead.trace.generators.keys import EMPTY, Prompt
from fairlead.trace.model import Turn


class TreeOfThoughts(Generator):
    """A question is asked ``branching`` times; each answer is followed up ``branching`` times; and so on.

    Follows the GSM8K tree of thoughts of [DLPM], arXiv 2501.14312, in the shape of SGLang's
    ``tree_of_thought_deep`` benchmark: plan, execute, reflect, answer, two branches each, the branches of
    one state sampled from the same prompt. Ours: lengths are drawn, and no branch is cut off early.

    A node's prompt is its parent's prompt, its parent's answer and one more instruction. Nodes are in
    order of depth, so a truncated tree is a tree.
    """

    name = "tree-of-thoughts"
    source = "[DLPM] tree of thoughts (GSM8K)"
    summary = "Trees of requests: each answer releases several follow-ups, which share all of its prompt."
    params = (
        Param("depth", 4, "levels of the tree", low=1, high=12),
        Param("branching", 2, "samples of each state", low=1, high=64),
        Param("question_tokens", 150, "mean length of the question with its instructions", low=1),
        Param("step_tokens", 40, "mean length of the instruction of a further level", low=1),
        Param("output_tokens", 150, "mean length of an answer", low=1),
        SPREAD,
        *arriving(rate=0.5),
    )

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        super().__init__(values, seed, clients)
        spread = values.number("spread")
        self._branching = values.integer("branching")
        self._nodes = sum(self._branching**level for level in range(1, values.integer("depth") + 1))
        self._question = evenly(self.rng("questions"), values.integer("question_tokens"), spread)
        self._step = evenly(self.rng("steps"), values.integer("step_tokens"), spread)
        self._output = evenly(self.rng("outputs"), values.integer("output_tokens"), spread)

    def sizes(self) -> Iterator[int]:
        """Yield the nodes of a full tree."""
        return repeat(self._nodes)

    def conversation(self, client: int, turns: int) -> Sequence[Turn]:  # noqa: ARG002 - clients are alike
        """Return one tree, level by level."""
        grow = self.keys.grow
        nodes: list[Turn] = []
        answered: list[Prompt] = []
        state, parent = grow(EMPTY, next(self._question)), -1
        while len(nodes) < turns:
            for _ in range(min(self._branching, turns - len(nodes))):
                output = next(self._output)
                answer = grow(state, output)
                nodes.append(
                    Turn(state.tokens, output, state.keys, answer.keys[len(state.keys) :], after=parent)
                )
                answered.append(answer)
            parent += 1
            state = grow(answered[parent], next(self._step))
        return nodes
