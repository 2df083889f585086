"""Questions on long documents."""

from collections.abc import Sequence

from fairlead.core.params import Param, Values
from fairlead.trace.generators.base import SPREAD, Generator, arriving
from fairlead.trace.generators.draws import evenly
from fairlead.trace.generators.keys import EMPTY, Prompt
from fairlead.trace.model import Turn


class DocQa(Generator):
    """Each request is a document and a question; the same document is asked about many times.

    Follows the long-document question answering of [DLPM], arXiv 2501.14312, which takes its documents
    from LooGLE (arXiv 2311.04939). Ours: lengths are drawn and no text is read. A client has a few
    documents open at a time, each question goes to one of them at random, and a document whose
    questions are all asked makes place for a new one, so a long run needs no more memory than a short one.
    """

    name = "doc-qa"
    source = "[DLPM] long-document QA (LooGLE)"
    summary = "Single requests: a long document of the client's own, then one of several questions on it."
    params = (
        Param("doc_tokens", 20_000, "mean length of a document", low=1),
        Param("documents", 4, "documents that a client has open at a time", low=1),
        Param("questions", 10, "questions on each document", low=1),
        Param("question_tokens", 50, "mean length of a question", low=1),
        Param("output_tokens", 100, "mean length of an answer", low=1),
        SPREAD,
        *arriving(rate=2.0),
    )

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        super().__init__(values, seed, clients)
        spread = values.number("spread")
        self._lengths = evenly(self.rng("documents"), values.integer("doc_tokens"), spread)
        self._question = evenly(self.rng("questions"), values.integer("question_tokens"), spread)
        self._output = evenly(self.rng("outputs"), values.integer("output_tokens"), spread)
        self._pick = self.rng("picks").random
        self._questions = values.integer("questions")
        self._places = values.integer("documents")
        self._open: dict[tuple[int, int], tuple[Prompt, int]] = {}
        """By client and place: the document and how many questions on it are left."""

    def conversation(self, client: int, turns: int) -> Sequence[Turn]:  # noqa: ARG002 - always one turn
        """Return a question on one of the client's open documents."""
        place = client, int(self._pick() * self._places)
        document, left = self._open.get(place) or (
            self.keys.grow(EMPTY, next(self._lengths)),
            self._questions,
        )
        if left > 1:
            self._open[place] = document, left - 1
        else:
            self._open.pop(place, None)
        prompt = self.keys.grow(document, next(self._question))
        return (Turn(prompt.tokens, next(self._output), prompt.keys),)
