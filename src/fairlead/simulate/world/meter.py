"""Measures what engines really do for each client, by standing between them and their ordering."""

from collections.abc import Callable
from typing import cast

from fairlead.core.model import ClientId, Costs
from fairlead.core.ordering.base import Matched, Ordering, Queue, QueuedRequest


class Meter:
    """Service delivered to each client, by all engines of a simulation.

    ``index`` numbers the clients; ``service[i]`` is in service units, ``weighted[i]`` over the weight.
    """

    def __init__(self, index: dict[ClientId, int], weights: list[float], costs: Costs) -> None:
        self.index = index
        self.weights = weights
        self.costs = costs
        self.service = [0.0] * len(weights)
        self.weighted = [0.0] * len(weights)

    def add(self, client: ClientId, units: float) -> None:
        """Count so many service units for a client."""
        i = self.index[client]
        self.service[i] += units
        self.weighted[i] += units / self.weights[i]


class Metered:
    """An engine's ordering that tells a ``Meter`` what it is charged; otherwise the one it wraps."""

    def __init__(self, ordering: Ordering, meter: Meter) -> None:
        self._ordering = ordering
        self._meter = meter
        self.name = ordering.name
        self.source = ordering.source
        self.summary = ordering.summary
        self.params = ordering.params
        self.uses_match = ordering.uses_match
        self.skips = ordering.skips
        self._extend = meter.costs.extend
        self._output = meter.costs.output
        # What is not metered is the ordering's own method: no layer on the hot path.
        self.make_queue: Callable[[int, Matched], Queue] = ordering.make_queue
        self.drop_queue: Callable[[int], None] = ordering.drop_queue
        self.passes: Callable[[int, ClientId], bool] = ordering.passes
        self.set_weight: Callable[[ClientId, float], None] = ordering.set_weight
        self.credit: Callable[[int, ClientId], float] = ordering.credit
        self.ended: Callable[[int, QueuedRequest, int, int], None] = ordering.ended
        self.released: Callable[[int, ClientId], None] = ordering.released
        self.tick: Callable[[int], None] = ordering.tick
        self.check: Callable[[], None] = ordering.check
        self._free = ordering.name in {"fcfs", "lpm"}
        """The ordering keeps no books, so it need not be told."""

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:
        """Count the prompt work."""
        self._meter.add(item.client, self._extend * extend_tokens)
        return self._ordering.admitted(number, item, extend_tokens)

    def decoded(self, number: int, client: ClientId, tokens: int) -> None:
        """Count output tokens."""
        meter = self._meter
        i = meter.index[client]
        units = self._output * tokens
        meter.service[i] += units
        meter.weighted[i] += units / meter.weights[i]
        if not self._free:
            self._ordering.decoded(number, client, tokens)

    def corrected(self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int) -> None:
        """Count what prompt work differs by."""
        self._meter.add(client, self._extend * extend_tokens)
        self._ordering.corrected(number, client, prompt_tokens, extend_tokens)

    def settled(
        self, number: int, client: ClientId, prompt_tokens: int, extend_tokens: int, output_tokens: int
    ) -> None:
        """Count both."""
        self._meter.add(client, self._extend * extend_tokens + self._output * output_tokens)
        self._ordering.settled(number, client, prompt_tokens, extend_tokens, output_tokens)


def metered(ordering: Ordering, meter: Meter) -> Ordering:
    """Wrap an engine's ordering so that ``meter`` sees what it is charged."""
    return cast("Ordering", Metered(ordering, meter))
