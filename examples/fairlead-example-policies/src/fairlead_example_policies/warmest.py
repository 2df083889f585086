"""Warmest: the worker that caches most of the prompt, among those that are not too busy."""

import fairlead


class Warmest(fairlead.RoutingBase):
    """A worker is too busy if its batch exceeds the smallest batch by more than ``slack`` requests."""

    name = "warmest"
    source = "an example"
    summary = "The longest match among workers whose batch is within slack of the smallest."
    params = (fairlead.Param("slack", 8, "requests that a batch may exceed the smallest one by", low=0),)

    def choose(
        self, request: fairlead.Request, match: fairlead.Match, fleet: fairlead.Fleet, now: int
    ) -> fairlead.Choice:
        """Score each candidate: minus its match, or infinity where the batch is too large."""
        batch = fleet.batch_size
        most = min(batch[slot] for slot in fleet.candidates) + self.values.integer("slack")
        scores = [
            -float(match.tokens[slot]) if batch[slot] <= most else float("inf") for slot in fleet.candidates
        ]
        best = min(range(len(scores)), key=lambda at: (scores[at], batch[fleet.candidates[at]]))
        return fairlead.Choice(fleet.candidates[best], scores)
