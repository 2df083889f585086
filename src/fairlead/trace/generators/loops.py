"""From conversations to sessions: open loop (a clock starts them) or closed loop (a user's next answer)."""

from collections.abc import Iterator, Sequence

from fairlead.trace.generators.base import Generator
from fairlead.trace.generators.draws import pauses
from fairlead.trace.model import Session, Turn


def is_closed(generator: Generator) -> bool:
    """Whether users start a conversation when the one before has ended."""
    return generator.values.get("loop") == "closed"


def client_name(number: int) -> str:
    """Return what client ``number`` is called."""
    return f"client-{number}"


def sessions(generator: Generator, requests: int) -> Iterator[Session]:
    """Yield sessions of exactly ``requests`` turns in all, in order of time."""
    return _closed(generator, requests) if is_closed(generator) else _open(generator, requests)


def duration_us(generator: Generator, requests: int) -> int:
    """Return the time from the first session to the last, without making a turn."""
    if is_closed(generator):
        starts = _starts(generator, requests)
        return starts[-1][0] - starts[0][0]
    first, last, left = -1, 0, requests
    for (last, _), size in zip(generator.arrivals(), generator.sizes(), strict=False):
        if first < 0:
            first = last
        left -= size
        if left <= 0:
            break
    return last - first


def _open(generator: Generator, requests: int) -> Iterator[Session]:
    names = [client_name(i) for i in range(generator.count)]
    conversation = generator.conversation
    left = requests
    for number, ((at, client), size) in enumerate(zip(generator.arrivals(), generator.sizes(), strict=False)):
        left -= size
        if left < 0:
            size += left  # the last conversation is cut short
        yield Session(
            at, names[client], conversation(client, size), f"{generator.name}-{number}" if size > 1 else ""
        )
        if left <= 0:
            return


def _closed(generator: Generator, requests: int) -> Iterator[Session]:
    sizes = generator.sizes()
    think = pauses(generator.rng("think"), generator.values.number("think_s"))
    for at, user, quota in _starts(generator, requests):
        turns: list[Turn] = []
        while len(turns) < quota:
            more = generator.conversation(user % generator.count, min(next(sizes), quota - len(turns)))
            turns += _appended(more, len(turns), next(think)) if turns else more
        yield Session(at, client_name(user % generator.count), turns, f"user-{user}")


def _starts(generator: Generator, requests: int) -> list[tuple[int, int, int]]:
    """Return when each user starts, its number and its share of the requests, in order of time.

    Starts are spread over one think time: users that all begin at once would march in step.
    """
    users = min(generator.values.integer("users"), requests)
    rng, span = generator.rng("users"), generator.values.number("think_s") * 1e6
    return sorted(
        (int(rng.random() * span), user, requests // users + (user < requests % users))
        for user in range(users)
    )


def _appended(turns: Sequence[Turn], offset: int, pause: int) -> list[Turn]:
    """Return a conversation that starts when the last turn before ``offset`` has its answer."""
    return [
        turn._replace(after=offset - 1, delay_us=turn.delay_us + pause)
        if turn.after < 0
        else turn._replace(after=turn.after + offset)
        for turn in turns
    ]
