"""Clients for traces that name none, by a stated rule. What comes out is synthetic, and labelled so."""

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from random import Random

from xxhash import xxh3_64_intdigest

from fairlead.core.model import ClientId
from fairlead.core.params import nearest
from fairlead.trace.model import Session, Trace, TraceError
from fairlead.trace.transform import surveyed

RULES = {
    "prefix": "clients assigned by prefix chain",
    "session": "clients assigned by session",
    "round-robin": "clients assigned in turn",
    "random": "clients assigned at random",
    "single": "one client for all requests",
}
"""Every rule and what its label says.

- ``prefix``: sessions whose first prompts have the same first block that is not everybody's go together.
- ``session``: each session by its name, or by its place where it has none.
- ``round-robin``: session i to client i modulo the number of clients.
- ``random``: each session anew.
- ``single``: all to one.
"""

_COMMON = 0.95
"""A leading block is everybody's if this share of the prompts have it; a few odd prompts change nothing."""
_PROBE = 1_000
"""Sessions that are looked at to find the blocks that are everybody's."""

Pick = Callable[[], Callable[[int, Session], int]]
"""Makes, for one pass over the sessions, a function from number and session to a client's number."""


def assign_clients(trace: Trace, rule: str, clients: int = 8, seed: int = 1, skew: float = 0.0) -> Trace:
    """Return ``trace`` with every session given to one of ``clients`` clients by ``rule`` (see ``RULES``).

    ``skew`` is the exponent of a Zipf law for the clients' shares of chains or sessions (``prefix``,
    ``session`` and ``random``): 0 gives all the same, 1 gives the first twice as many as the second. The
    trace lists only clients that occur. Raises ``TraceError`` for an unknown rule or a value out of range.
    """
    if rule not in RULES:
        raise TraceError(f"unknown client rule '{rule}' (valid: {', '.join(RULES)}){nearest(rule, RULES)}")
    if not (1 <= clients <= 60_000 and 0 <= skew <= 10):
        raise TraceError(
            f"{clients} clients with skew {skew:g}: 1 to 60,000 clients with skew 0 to 10 are possible"
        )
    if rule == "single":
        clients = 1
    shares = list(accumulate((k + 1) ** -skew for k in range(clients)))
    pick = _pick(trace, rule, shares, seed)
    names = client_names(clients)

    def sessions() -> Iterator[Session]:
        number_of = pick()
        for number, session in enumerate(trace.sessions()):
            yield session._replace(client=names[number_of(number, session)])

    weighted = rule in ("prefix", "session", "random")
    skewed = f", Zipf {skew:g}" if skew and weighted else ""
    label = f"{RULES[rule]} (synthetic), {clients} client{'s' if clients > 1 else ''}{skewed}"
    if rule in ("prefix", "session", "random"):
        label += f", seed {seed}"
    return surveyed(trace, sessions, f"clients {rule} {clients} {seed} {skew!r}", label)


def client_names(clients: int) -> list[ClientId]:
    """Return names of equal length that sort in order: client-00, client-01, ..."""
    digits = len(str(clients - 1))
    return [f"client-{number:0{digits}}" for number in range(clients)]


def _pick(trace: Trace, rule: str, shares: list[float], seed: int) -> Pick:
    def at(point: float) -> int:
        return bisect(shares, point * shares[-1], 0, len(shares) - 1)

    def hashed(text: str) -> int:
        return at(xxh3_64_intdigest(text.encode(), seed) / (1 << 64))

    def by_name(number: int, session: Session) -> int:
        return hashed(session.name or f"session {number}")

    if rule == "prefix":
        depth = common_blocks(trace)

        def by_chain(number: int, session: Session) -> int:
            keys = session.turns[0].keys
            return hashed(str(keys[depth]) if len(keys) > depth else f"no chain {number}")

        return lambda: by_chain
    if rule == "session":
        return lambda: by_name
    if rule == "random":

        def drawn() -> Callable[[int, Session], int]:
            rng = Random(f"clients/{seed}")
            return lambda _number, _session: at(rng.random())

        return drawn
    return lambda: lambda number, _session: number % len(shares)


def common_blocks(trace: Trace) -> int:
    """Return how many leading blocks nearly all prompts share, such as one system prompt's.

    The first 1,000 sessions' first prompts are looked at.
    """
    probe = [session.turns[0].keys for session in islice(trace.sessions(), _PROBE)]
    depth = 0
    while True:
        heads = Counter(keys[depth] for keys in probe if len(keys) > depth)
        if not heads or heads.most_common(1)[0][1] < max(2.0, _COMMON * len(probe)):
            return depth
        depth += 1
