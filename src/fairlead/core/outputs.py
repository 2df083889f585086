"""How long answers are: learned for each client, so that nobody's answers bend what others reserve.

The output length of a request is unknown until it ends, but capacity has to be kept for it. One mean over
all requests would let a client with many short answers make everybody's reservations too small, and one
with long answers make them too large. So each client has a mean of its own. A client that has none yet
gets the median over clients: one client has one voice, however many requests it sends.
"""

from math import log2

from fairlead.core.model import ClientId

FIRST_GUESS = 128.0
"""Output tokens that are expected before anybody has answered."""
_LEAST_STEP = 0.02
"""Weight of the newest answer in a client's mean once there are many: the last 50 or so count."""
_STEPS = 4
"""Classes of means for each doubling: the median is known to within a tenth."""
_CLASSES = 32 * _STEPS


class OutputLengths:
    """Mean output tokens of a sequence by client. Remembers the ``most`` clients that answered last."""

    __slots__ = ("_classes", "_means", "_most", "median")

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._means: dict[ClientId, tuple[float, int]] = {}
        """Mean and answers of each client, the one that answered last at the end."""
        self._classes = [0] * _CLASSES
        """How many clients have a mean of each class."""
        self.median = FIRST_GUESS
        """The median of the clients' means: what a client without answers is expected to need."""

    def expected(self, client: ClientId) -> float:
        """Return the output tokens that a sequence of the client is expected to have."""
        known = self._means.get(client)
        return self.median if known is None else known[0]

    def learn(self, client: ClientId, tokens: float) -> None:
        """A sequence of the client had so many output tokens."""
        known = self._means.pop(client, None)
        if known is None:
            # What was expected before counts as one answer, so that the first one is not believed alone.
            mean, answers = self.median + (tokens - self.median) / 2, 2
            self._classes[_class_of(mean)] += 1
            self._means[client] = mean, answers
            if len(self._means) > self._most:
                oldest = next(iter(self._means))
                self._classes[_class_of(self._means.pop(oldest)[0])] -= 1
            self._find_median()
            return
        before, answers = known
        mean = before + (tokens - before) * max(_LEAST_STEP, 1 / (answers + 1))
        self._means[client] = mean, answers + 1
        was, now = _class_of(before), _class_of(mean)
        if was != now:
            self._classes[was] -= 1
            self._classes[now] += 1
            self._find_median()

    def _find_median(self) -> None:
        left = (len(self._means) + 1) // 2
        for number, clients in enumerate(self._classes):
            left -= clients
            if left <= 0:
                self.median = float(2.0 ** ((number + 0.5) / _STEPS)) - 1.0
                return

    def check(self) -> None:
        """Raise AssertionError if an internal invariant is broken."""
        classes = [0] * _CLASSES
        for mean, _ in self._means.values():
            classes[_class_of(mean)] += 1
        assert classes == self._classes
        assert len(self._means) <= self._most


def _class_of(mean: float) -> int:
    return min(_CLASSES - 1, int(log2(max(mean, 0.0) + 1.0) * _STEPS))
