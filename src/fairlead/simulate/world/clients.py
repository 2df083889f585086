"""The clients of a simulated world: sessions, the turns that an answer releases, and running requests."""

from random import Random
from typing import Final

from fairlead.core.model import ClientId, Request
from fairlead.report.run import DONE
from fairlead.simulate.settings import Settings
from fairlead.simulate.world.heap import HANG_UP, TURN, Heap
from fairlead.simulate.world.loops import ClosedLoops
from fairlead.simulate.world.meter import Meter
from fairlead.simulate.world.recorder import Rows
from fairlead.simulate.world.service_gap import ServiceGapTracker
from fairlead.trace.model import Session, Trace, Turn

_FORGET_US: Final = 10_000_000  # a client that hangs up early does it within this time


class ActiveSession:
    """A session under way: of several turns, or of a closed loop."""

    __slots__ = ("coming", "followers", "looped", "session")

    def __init__(self, session: Session, *, looped: bool = False) -> None:
        self.session = session
        self.looped = looped
        """Whether its end lets its client start another one."""
        self.coming = len(session.turns)
        """Turns that have not ended, and may still."""
        self.followers: dict[int, list[int]] = {}
        """The turns that the answer of each releases; -1: those that the start releases."""
        for i, turn in enumerate(session.turns):
            self.followers.setdefault(turn.after, []).append(i)

    def descendants(self, index: int) -> int:
        """Return how many turns come after the one at ``index`` if it is answered."""
        return sum(1 + self.descendants(follower) for follower in self.followers.get(index, ()))


class ActiveRequest:
    """A request under way: it arrived and has not ended."""

    __slots__ = ("client", "due", "index", "queued", "reported", "request", "row", "session", "slot", "turn")

    def __init__(
        self, row: int, client: int, turn: Turn, session: ActiveSession | None, index: int, request: Request
    ) -> None:
        self.row = row
        """Of the record; the id of ``request``."""
        self.request = request
        self.client = client
        self.turn = turn
        self.session = session
        """None if nothing follows."""
        self.index = index
        """Of the turn in its session."""
        self.slot = -1
        """Its worker's; -1 before it was sent to one."""
        self.due = -1
        """When it reaches its engine; -1 if it is not on its way."""
        self.reported = 0
        """Output tokens that the dispatcher knows of."""
        self.queued = True
        """Whether it still waits to be admitted to a batch."""


class Clients:
    """Plays the workload, and records what each client gets. It does not know the workers.

    ``meter`` numbers the clients.
    """

    def __init__(self, trace: Trace, settings: Settings, heap: Heap, meter: Meter) -> None:
        self.trace = trace
        self.names = list(trace.clients)
        self.index = meter.index
        self.service_gap = ServiceGapTracker(meter.weighted)
        self.rows = Rows()
        self.active: dict[int, ActiveRequest] = {}
        """Requests under way, by row."""
        self.demand = [0.0] * len(self.names)
        """Service units that each client asked for so far."""
        self.ends: list[tuple[int, int]] | None = None
        """If it is a list, (session start, time from there to the end) of each request is appended to it."""
        self.coming_turns = 0
        """Turns that will come: released, with their delay still running."""
        self.loops = ClosedLoops(trace, settings, heap)
        self.abandoned = 0
        """Turns that never came, since one that they followed had no answer."""
        self.last_end = 0
        """When the last request ended."""
        self._heap = heap
        self._random = Random(f"{settings.seed}/cancel")
        self._timeout_us, self._cancel_share = settings.client_timeout_us, settings.cancel_share
        self._extend, self._output = settings.costs.extend, settings.costs.output

    def begin(self, session: Session) -> None:
        """Let a session of several turns begin."""
        self._release(session.at, ActiveSession(session), -1)

    def begin_next(self, now: int, client: ClientId) -> None:
        """Let a client that is a closed loop begin its next session."""
        self._release(now, ActiveSession(self.loops.take(now, client), looped=True), -1)

    def _release(self, now: int, session: ActiveSession, after: int) -> None:
        """Let the turns come that waited for this one's answer."""
        for index in session.followers.get(after, ()):
            self.coming_turns += 1
            self._heap.add(now + session.session.turns[index].delay_us, TURN, (session, index))

    def arrive(self, now: int, session: Session, active: ActiveSession | None, index: int) -> Request:
        """Let a turn arrive; return its request."""
        turn, client, rows = session.turns[index], self.index[session.client], self.rows
        row = rows.new(client, now, turn.prompt_tokens)
        self.demand[client] += self._extend * turn.prompt_tokens
        self.service_gap.waits(client)
        request = Request(
            row, session.client, turn.prompt_tokens, turn.keys, self.trace.block_tokens,
            turn.max_tokens, session.name, now, True,
        )  # fmt: skip
        self.active[row] = ActiveRequest(row, client, turn, active, index, request)
        return request

    def may_hang_up(self, now: int, row: int) -> None:
        """Decide whether and when the client of a new request will give up."""
        if self._timeout_us:
            self._heap.add(now + self._timeout_us, HANG_UP, row)
        if self._cancel_share and self._random.random() < self._cancel_share:
            self._heap.add(now + int(self._random.random() * _FORGET_US), HANG_UP, row)

    def admitted(self, row: int, cached_tokens: int) -> None:
        """Note that a request entered a batch for the first time at its worker."""
        active = self.active.get(row)
        if active is not None:
            self.rows.cached[row] = cached_tokens
            if active.queued:
                active.queued = False
                self.service_gap.goes(active.client)

    def waits_again(self, active: ActiveRequest) -> None:
        """Note that a request that was in a batch is to be sent once more."""
        if not active.queued:
            active.queued = True
            self.service_gap.waits(active.client)

    def answered(self, now: int, active: ActiveRequest) -> None:
        """End a request whose whole answer its client has."""
        output = active.turn.output_tokens
        self.rows.output[active.row] = output
        self.demand[active.client] += self._output * output
        self.end(now, active, DONE)

    def end(self, now: int, active: ActiveRequest, outcome: int) -> None:
        """Close a request's row; a session goes on only after an answer."""
        row, rows = active.row, self.rows
        rows.ended[row] = now
        rows.outcome[row] = outcome
        if active.queued:
            active.queued = False
            self.service_gap.goes(active.client)
        del self.active[row]
        self.last_end = now
        session = active.session
        if self.ends is not None:
            start = rows.arrived[row] if session is None else session.session.at
            self.ends.append((start, now - start))
        if session is None:
            return
        session.coming -= 1
        if outcome == DONE:
            self._release(now, session, active.index)
        else:
            never = session.descendants(active.index)
            self.abandoned += never
            session.coming -= never
        if session.looped and not session.coming:
            self.loops.ended(now, session.session.client, answered=outcome == DONE)

    def output_of(self, row: int) -> int:
        """Return how many output tokens a request has in the end."""
        active = self.active.get(row)
        return active.turn.output_tokens if active is not None else self.rows.output[row]
