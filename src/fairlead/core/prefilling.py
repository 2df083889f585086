"""How much prefill a worker may have under way, so that what waits, waits here and not inside it.

Sequences and KV tokens do not bound the wait inside an engine: a large pool takes hundreds of long
prompts at once, which it then computes in its own order for many seconds. So a worker also gets only
so much prefill as keeps it busy for ``backlog_us``, by the rate at which it was seen to prefill.
There is nothing to tune for a faster or slower GPU. Two requests may always be under way: with one, a
step goes without prefill whenever it ends, until the next one is there.

The end of a streamed request's prefill is its first token. A request that is not streamed says
nothing until it ends; it counts for as long as the prefill before it and its own should take. A stream
whose first token nobody recognises counts for longer, by ``patience`` (``Settings.first_token_patience``).
"""

from collections import deque

from fairlead.core.model import RequestId

FIRST_GUESS_TOKENS = 8_192
"""Prefill under way that a worker gets before its rate is known."""
LEAST_TOKENS = 2_048
"""Prefill under way that a worker always gets: one step of a usual engine."""
_WINDOW_US = 1_000_000
_LEARN = 0.2
_OVERDUE_US = 1_000_000
"""A first token is never overdue before that."""


class Prefilling:
    """The prefill under way on one worker. Times in microseconds, amounts in extend tokens."""

    __slots__ = (
        "_backlog_us",
        "_done",
        "_expected",
        "_guesses",
        "_late",
        "_patience",
        "_since",
        "rate",
        "requests",
        "tokens",
    )

    def __init__(self, backlog_us: int, patience: float = 0.0) -> None:
        self._backlog_us = backlog_us
        self._patience = patience
        self.tokens = 0
        """Extend tokens of requests that were sent and are not known to be computed."""
        self.requests = 0
        """How many requests these belong to."""
        self.rate = 0.0
        """Tokens a microsecond, measured while prefill was always under way; 0 until then."""
        self._since = 0
        self._done = 0
        self._guesses: deque[tuple[int, RequestId]] = deque()
        self._expected: deque[tuple[int, RequestId, int, int]] = deque()
        """Streams by when they should have begun: that, the request, when it was sent, tokens up to it."""
        self._late: dict[RequestId, tuple[int, int]] = {}
        """Streams that were taken for computed before they began: when they were sent, tokens up to it."""

    @property
    def full(self) -> bool:
        """Whether enough is under way. One request may overshoot it, so that any size can go."""
        allowed = self._backlog_us * self.rate if self.rate else FIRST_GUESS_TOKENS
        return self.requests > 1 and self.tokens >= max(allowed, LEAST_TOKENS)

    def begin(self, tokens: int, now: int) -> None:
        """A request with so many tokens to compute was sent."""
        if not self.tokens:
            self._since, self._done = now, 0
        self.tokens += tokens
        self.requests += 1

    def guess(self, rid: RequestId, now: int) -> None:
        """The request just begun will not say when it is computed: guess when."""
        ahead = self.tokens / self.rate if self.rate else 0.0
        due = now + int(ahead)
        if self._guesses:
            due = max(due, self._guesses[-1][0])
        self._guesses.append((due, rid))

    def expect(self, rid: RequestId, now: int) -> None:
        """The request just begun will say when it is computed: guess by when it should have."""
        if self.rate and self._patience:  # of a worker that is not known yet, nobody can say that it is late
            due = now + _OVERDUE_US + int(self._patience * self.tokens / self.rate)
            if self._expected:
                due = max(due, self._expected[-1][0])
            self._expected.append((due, rid, now, self.tokens))

    def due(self, now: int) -> RequestId | None:
        """Return a request that should be computed by now, taking it off the list; None if none is."""
        if self._guesses and self._guesses[0][0] <= now:
            return self._guesses.popleft()[1]
        if self._expected and self._expected[0][0] <= now:
            _, rid, sent, tokens = self._expected.popleft()
            self._late[rid] = sent, tokens
            return rid
        return None

    def forget(self, rid: RequestId) -> None:
        """The request ended, or said in time that it is computed."""
        if self._late:
            self._late.pop(rid, None)

    def began_late(self, rid: RequestId, now: int) -> None:
        """A request that was taken for computed is computed only now: the worker is slower than thought."""
        sent, tokens = self._late.pop(rid, (0, 0))
        if tokens and now > sent:
            self.rate += _LEARN * min(0.0, tokens / (now - sent) - self.rate)

    def computed(self, tokens: int, now: int) -> None:
        """A request said that its tokens are computed: they are done, and the rate is learned."""
        self.tokens -= tokens
        self.requests -= 1
        self._done += tokens
        elapsed = now - self._since
        if elapsed > 0:
            rate = self._done / elapsed
            # Up at once, down slowly: short prompts alone cannot show how fast the worker is.
            self.rate = rate if rate > self.rate else self.rate + _LEARN * (rate - self.rate)
        if elapsed > _WINDOW_US:
            self._since, self._done = now, 0

    def gone(self, tokens: int) -> None:
        """A request ended without saying; nothing is learned."""
        self.tokens -= tokens
        self.requests -= 1
