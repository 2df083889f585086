"""LLM as a judge: several questions on the same article, then a verdict."""

from collections.abc import Iterator, Sequence
from itertools import repeat

from fairlead.core.params import Param, Values
from fairlead.trace.generators.base import SPREAD, Generator, arriving
from fairlead.trace.generators.draws import evenly
from fairlead.trace.generators.keys import EMPTY
from fairlead.trace.model import Turn


class Judge(Generator):
    """An article is judged in several dimensions at once; then one request sums the judgements up.

    Follows LLM-as-a-judge in [DLPM], arXiv 2501.14312, in the shape of SGLang's ``llm_judge`` benchmark:
    the dimensions are asked in parallel, the verdict's prompt quotes every judgement. Ours: a rubric
    comes first that all articles of a client share; lengths are drawn. A turn has one predecessor, so the
    verdict waits for the dimension asked last (a real judge waits for all of them).
    """

    name = "judge"
    source = "[DLPM] LLM-as-a-judge"
    summary = "Bundles: a rubric and an article asked in several dimensions at once, then a verdict on all."
    params = (
        Param("rubric_tokens", 1_000, "length of a client's rubric, shared by all its articles", low=0),
        Param("article_tokens", 3_000, "mean length of an article", low=1),
        Param("dimensions", 5, "questions asked of each article in parallel", low=1, high=1_000),
        Param("question_tokens", 60, "mean length of a question", low=1),
        Param("output_tokens", 150, "mean length of a judgement", low=1),
        SPREAD,
        *arriving(rate=1.0),
    )

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        super().__init__(values, seed, clients)
        spread = values.number("spread")
        self._dimensions = values.integer("dimensions")
        self._article = evenly(self.rng("articles"), values.integer("article_tokens"), spread)
        self._question = evenly(self.rng("questions"), values.integer("question_tokens"), spread)
        self._output = evenly(self.rng("outputs"), values.integer("output_tokens"), spread)
        rubric = values.integer("rubric_tokens")
        self._rubrics = [self.keys.grow(EMPTY, rubric) for _ in range(clients)]

    def sizes(self) -> Iterator[int]:
        """Yield the dimensions and the verdict."""
        return repeat(self._dimensions + 1)

    def conversation(self, client: int, turns: int) -> Sequence[Turn]:
        """Return one article's dimensions and its verdict."""
        grow = self.keys.grow
        article = grow(self._rubrics[client], next(self._article))
        asked: list[Turn] = []
        for _ in range(min(turns, self._dimensions)):
            prompt = grow(article, next(self._question))
            asked.append(Turn(prompt.tokens, next(self._output), prompt.keys))
        if turns > self._dimensions:
            quoted = sum(turn.output_tokens for turn in asked)
            prompt = grow(article, quoted + next(self._question))
            asked.append(Turn(prompt.tokens, next(self._output), prompt.keys, after=len(asked) - 1))
        return asked
