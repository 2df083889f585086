"""What every generator is: conversations, made one after the other for a client that is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import repeat
from random import Random
from typing import ClassVar

from fairlead.core.params import Param, Values
from fairlead.trace.generators.draws import numbers, picks, times
from fairlead.trace.generators.keys import Keys
from fairlead.trace.model import Turn

BLOCK_TOKENS = Param("block_tokens", 16, "tokens of a KV block", low=1)
WEIGHTS = Param("weights", "1", "weights of the clients, repeated if too few, such as 1/2/4")
SPREAD = Param(
    "spread", 0.5, "lengths are spread evenly from mean * (1 - spread) to mean * (1 + spread)", low=0, high=1
)
LENGTH_CV = Param("length_cv", 1.0, "coefficient of variation of lengths (lognormal)", low=0, high=10)


def arriving(rate: float, think_s: float = 0.0) -> tuple[Param, ...]:
    """Return the parameters of arrival, with a generator's own defaults."""
    return (
        Param(
            "rate", rate, "conversations that start in a second, all clients together (open loop)", low=1e-6
        ),
        Param(
            "burstiness",
            1.0,
            "coefficient of variation of the gaps: 1 Poisson, above 1 gamma bursts, 0 evenly (open loop)",
            low=0,
            high=20,
        ),
        Param("skew", 0.0, "client i starts conversations in proportion to 1 / i ** skew (open loop)", low=0),
        Param(
            "loop", "open", "who decides when: the clock, or the answer before", choices=("open", "closed")
        ),
        Param("users", 32, "users that go on and on, spread over the clients (closed loop)", low=1),
        Param("think_s", think_s, "mean think time in seconds, exponential", low=0),
        WEIGHTS,
        BLOCK_TOKENS,
    )


class Generator(ABC):
    """One family of workloads. An instance is one pass over it: made anew, it makes the same again."""

    name: ClassVar[str]
    source: ClassVar[str]
    """Which paper or benchmark it follows."""
    summary: ClassVar[str]
    """What it is, in one line."""
    params: ClassVar[tuple[Param, ...]]
    clients: ClassVar[int] = 8
    """How many, unless the caller says."""
    requests: ClassVar[int] = 2_000

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        self.values = values
        self.seed = seed
        self.count = clients
        self.keys = Keys(values.integer("block_tokens"))

    @abstractmethod
    def conversation(self, client: int, turns: int) -> Sequence[Turn]:
        """Return the first ``turns`` turns of the next conversation of a client (a number from 0)."""

    def sizes(self) -> Iterator[int]:
        """Yield how many turns each conversation has. Apart, so that they can be counted without turns."""
        return repeat(1)

    def arrivals(self) -> Iterator[tuple[int, int]]:
        """Yield when each conversation starts (microseconds, ascending) and whose it is, without an end."""
        values = self.values
        return zip(
            times(self.rng("arrivals"), values.number("rate"), values.number("burstiness")),
            picks(self.rng("clients"), self.count, values.number("skew")),
            strict=False,
        )

    def rng(self, use: str) -> Random:
        """Return the random stream of one use."""
        return Random(f"{self.seed}/{self.name}/{use}")

    def default_requests(self) -> int:
        """Return how many requests it has if the caller does not say."""
        return self.requests

    def weights(self) -> list[float]:
        """Return the weight of each client."""
        return numbers(self.name, "weights", self.values.word("weights"), self.count)
