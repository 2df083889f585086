"""Quantities of a model that are learned from what engines count, for each client by itself.

Clients write different texts, and one of them may write to mislead. So what a client sends changes only
its own estimate. A client of whom nothing is known yet gets the model's: the median of all clients'
estimates, one voice each, and two voices for the first guess. A single client moves that at most to the
next voice, whatever it sends and however often.
"""

from statistics import median

_LEAST_STEP = 0.02
"""An estimate moves by as much at least, when what was seen is further off."""
_MOST_MODELS = 64
_MOST_CLIENTS = 512
"""Most clients for each model; the one that was not seen for longest is forgotten."""
_PRIOR_AFTER = 16
"""Observations after which the median is made anew: it takes a sort."""


class _Model:
    """One model: by client, its estimate and the weight of what it was learned from."""

    __slots__ = ("clients", "fresh", "prior")

    def __init__(self, prior: float) -> None:
        self.clients: dict[str, tuple[float, float]] = {}
        self.prior = prior
        self.fresh = 0
        """Observations until the prior is made anew."""


class Learned:
    """One quantity, between ``least`` and ``most``; ``first`` is the guess when nothing is known."""

    __slots__ = ("_first", "_latest", "_least", "_models", "_most")

    def __init__(self, first: float, least: float, most: float) -> None:
        self._first = first
        self._least = least
        self._most = most
        self._models: dict[str, _Model] = {}
        self._latest: _Model | None = None

    def of(self, client: str, model: str) -> float:
        """Return the estimate for a client's requests to a model."""
        known = self._models.get(model)
        if known is None:
            return self._first
        found = known.clients.get(client)
        return self._prior(known) if found is None else found[0]

    def see(self, client: str, model: str, value: float, weight: float = 1.0) -> None:
        """Learn from one observation; ``weight``, up to 1, says how much it tells.

        The estimate moves towards ``value`` by a bounded factor: 1 + 1/n with the n-th observation, at
        least by 2%. So it follows the median of what is seen, not single values that are far off.
        """
        known = self._models.get(model)
        if known is not self._latest or known is None:
            known = self._turn_to(model)
        clients = known.clients
        found = clients.pop(client, None)  # to its place as the last one heard of
        if found is None:
            estimate, total = self._prior(known), 0.0
            if len(clients) >= _MOST_CLIENTS:
                del clients[next(iter(clients))]
        else:
            estimate, total = found
        total += weight
        # Comparisons, since this is on the path of every request: a call of min() or max() takes longer.
        step = 1 / (1 + total)
        step = 1 + weight * (step if step > _LEAST_STEP else _LEAST_STEP)  # noqa: FURB136
        low, high = estimate / step, estimate * step
        value = low if value < low else high if value > high else value  # noqa: FURB136
        least, most = self._least, self._most
        value = least if value < least else most if value > most else value  # noqa: FURB136
        clients[client] = value, total
        known.fresh -= 1

    def _turn_to(self, model: str) -> _Model:
        """Return what is known of a model, which is the last one heard of from now on."""
        known = self._models.pop(model, None) or _Model(self._first)
        self._models[model] = self._latest = known
        if len(self._models) > _MOST_MODELS:
            del self._models[next(iter(self._models))]
        return known

    def _prior(self, known: _Model) -> float:
        if known.fresh <= 0:
            voices = [value for value, weight in known.clients.values() if weight >= 1]
            known.prior = median([*voices, self._first, self._first])
            known.fresh = min(len(known.clients), _PRIOR_AFTER)
        return known.prior
