"""Power of two choices: the lesser of two workers drawn at random."""

from fairlead.core.model import Request
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase


class PowerOfTwo(RoutingBase):
    """Almost as even as asking all, without herding on a stale view."""

    name = "power_of_two"
    source = "Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001"
    summary = "Two workers drawn at random; the one with fewer requests, the first drawn if equal."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Draw two different candidates and pick the one of the smaller batch."""
        slots, draw = fleet.candidates, self.context.rng.random
        count = len(slots)
        if count < 2:
            return Choice(slots[0])
        i, j = int(draw() * count), int(draw() * (count - 1))
        first, second = slots[i], slots[j + (j >= i)]
        return Choice(second if fleet.batch_size[second] < fleet.batch_size[first] else first)
