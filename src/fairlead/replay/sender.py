"""Sends a workload's requests when they are due, whatever has become of those before.

Arrivals follow the clock, so that a slow server sees no fewer of them and TTFT counts from the moment at
which a request was due, not from when it could be sent. A turn of a conversation is due some time after
the answer before it ended.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from time import perf_counter_ns
from typing import NamedTuple

from fairlead.replay.answers import Answer
from fairlead.replay.endpoint import Endpoint
from fairlead.replay.prompts import Prompts
from fairlead.replay.record import Record
from fairlead.report.run import CANCELLED, DONE
from fairlead.trace.model import Session, Trace, Turn

_AT_ONCE = 8
"""Most requests that are sent before the event loop reads what came in."""
_REASONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast requests are sent, and when clients give up."""

    speed: float = 1.0
    """Arrivals and pauses come so many times as fast as the workload says."""
    timeout_s: float = 600.0
    """From a request's arrival; then its connection is closed, and it counts as cancelled."""
    max_concurrency: int = 0
    """Requests under way at most; the others wait here, and their wait counts. 0: no limit."""


class _Due(NamedTuple):
    """A turn and when it is due. Sorts by time, then by order of coming."""

    at_us: int
    number: int
    chain: "_Chain"
    place: int
    """Of the turn in its session."""


class _Chain:
    """A session under way."""

    __slots__ = ("children", "name", "session")

    def __init__(self, session: Session, number: int) -> None:
        self.session = session
        self.name = f"{number}"
        self.children: dict[int, list[int]] = {}
        for i, turn in enumerate(session.turns):
            self.children.setdefault(turn.after, []).append(i)


class _ActiveRequest:
    """A request that has arrived and not ended."""

    __slots__ = ("answer", "due", "timer", "turn")

    def __init__(self, due: _Due, turn: Turn, answer: Answer) -> None:
        self.due = due
        self.turn = turn
        self.answer = answer
        self.timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Tally:
    """What happened so far, beyond the rows."""

    arrived: int = 0
    ended: int = 0
    abandoned: int = 0
    """Turns that never came, since one that they follow was not answered."""
    other_length: int = 0
    """Answers whose length is not the workload's."""
    other_prompt: int = 0
    """Prompts whose length, as the server counts, is not the workload's."""
    events: int = 0
    """Events with tokens, of answers whose length the server told."""
    tokens: int = 0
    """Tokens in them. More than events where a server puts several into one."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why requests were rejected or failed; the most frequent ones."""


class Sender:
    """One replay. ``run`` it once on an event loop; ``interrupt`` ends it early."""

    def __init__(self, trace: Trace, endpoint: Endpoint, prompts: Prompts, pace: Pace) -> None:
        self.record = Record()
        self.tally = Tally()
        self.interrupted = False
        self.late_us: list[int] = []
        """How late the sender took up each request."""
        self._endpoint = endpoint
        self._prompts = prompts
        self._pace = pace
        self._clients = {client: i for i, client in enumerate(trace.clients)}
        self._sessions = trace.sessions()
        self._heap: list[_Due] = []
        self._count = 0
        self._session_count = 0
        self._under_way = 0
        """Requests sent and not ended."""
        self._flights: dict[int, _ActiveRequest] = {}
        """By row: those under way, and those that wait for room."""
        self._waiting: deque[_ActiveRequest] = deque()
        self._coming = next(self._sessions, None)
        self._first_at = self._coming.at if self._coming else 0
        self._start_ns = 0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._timer_us = 0
        self._over = asyncio.Event()
        self._failure: Exception | None = None

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and not ended."""
        return len(self._flights)

    async def run(self) -> None:
        """Send everything and wait until all has ended. Raises what the trace raises while it is read."""
        self._start_ns = perf_counter_ns()
        if not self._over.is_set():
            self._arm(0)
        await self._over.wait()
        if self._failure is not None:
            raise self._failure

    def interrupt(self) -> None:
        """Send no more and close the connections; what is under way stays unfinished."""
        if self._over.is_set():
            return
        self.interrupted = True
        for flight in self._flights.values():
            if flight.timer is not None:
                flight.timer.cancel()
            if flight.answer.call is not None:
                flight.answer.call.cancel()
            self._note(flight.answer)
        if self._timer is not None:
            self._timer.cancel()
        self._over.set()

    # --- when ----------------------------------------------------------------------------------

    def _us(self, ns: int) -> int:
        return (ns - self._start_ns) // 1000

    def _scaled(self, us: int) -> int:
        return round(us / self._pace.speed)

    def _next_due(self) -> int:
        """Return when the next request is due; -1 if none is known. Starts the sessions before it."""
        while self._coming is not None:
            at = self._scaled(self._coming.at - self._first_at)
            if self._heap and self._heap[0].at_us <= at:
                break
            chain = _Chain(self._coming, self._session_count)
            self._session_count += 1
            self._coming = next(self._sessions, None)
            self._release(at, chain, -1)
        return self._heap[0].at_us if self._heap else -1

    def _release(self, now_us: int, chain: _Chain, after: int) -> None:
        """Make the turns due that waited for this one's answer."""
        for index in chain.children.get(after, ()):
            at = now_us + self._scaled(chain.session.turns[index].delay_us)
            heappush(self._heap, _Due(at, self._count, chain, index))
            self._count += 1

    def _arm(self, at_us: int) -> None:
        """Set the timer that sends requests at this moment, if it is not set earlier."""
        if self._timer is not None:
            if self._timer_us <= at_us:
                return
            self._timer.cancel()
        self._timer_us = at_us
        wait_us = at_us - self._us(perf_counter_ns())
        loop = asyncio.get_running_loop()
        self._timer = (
            loop.call_soon(self._pump) if wait_us <= 0 else loop.call_later(wait_us / 1e6, self._pump)
        )

    def _pump(self) -> None:
        """Send what is due."""
        self._timer = None
        self._guarded(self._send_due)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Let ``run`` raise what would be lost in a callback of the event loop."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised by run
            self._failure = error
            self._over.set()

    def _send_due(self) -> None:
        for _ in range(_AT_ONCE):
            at = self._next_due()
            if at < 0:
                break
            late = self._us(perf_counter_ns()) - at
            if late < 0:
                self._arm(at)
                return
            self.late_us.append(late)
            self._arrive(heappop(self._heap))
        self._go_on()

    # --- requests ------------------------------------------------------------------------------

    def _arrive(self, due: _Due) -> None:
        turn = due.chain.session.turns[due.place]
        client = self._clients[due.chain.session.client]
        row = self.record.new(client, due.at_us, turn.prompt_tokens, turn.output_tokens)
        self.tally.arrived += 1
        flight = _ActiveRequest(due, turn, Answer(row, self._ended, self.record.itl.add))
        patience = self._pace.timeout_s - (self._us(perf_counter_ns()) - due.at_us) / 1e6
        flight.timer = asyncio.get_running_loop().call_later(max(0.0, patience), self._give_up, flight)
        self._flights[row] = flight
        if self._has_room:
            self._send(flight)
        else:
            self._waiting.append(flight)

    @property
    def _has_room(self) -> bool:
        return not self._pace.max_concurrency or self._under_way < self._pace.max_concurrency

    def _send(self, flight: _ActiveRequest) -> None:
        chain, turn, endpoint = flight.due.chain, flight.turn, self._endpoint
        prompt = self._prompts.of(turn, f"{chain.name}/{flight.due.place}")
        session = chain.session
        request = endpoint.request(session.client, prompt, turn.output_tokens, session.name)
        self.record.requests.sent[flight.answer.row] = self._us(perf_counter_ns())
        self._under_way += 1
        flight.answer.call = endpoint.pool.send(request, flight.answer)

    def _give_up(self, flight: _ActiveRequest) -> None:
        """Cancel a request whose client gave up."""
        answer = flight.answer
        if answer.call is not None:
            answer.call.cancel()
        answer.outcome = CANCELLED
        answer.reason = f"no end after {self._pace.timeout_s:g} s"
        self._ended(answer)

    def _ended(self, answer: Answer) -> None:
        self._guarded(lambda: self._settle(answer))

    def _settle(self, answer: Answer) -> None:
        flight = self._flights.pop(answer.row)
        if flight.timer is not None:
            flight.timer.cancel()
        now = self._us(perf_counter_ns())
        requests = self.record.requests
        requests.ended[answer.row] = now
        requests.outcome[answer.row] = answer.outcome
        self._note(answer)
        self.tally.ended += 1
        chain, index = flight.due.chain, flight.due.place
        if answer.outcome == DONE:
            self._release(now, chain, index)
        else:
            self.tally.abandoned += _descendants(chain, index)
            if answer.reason in self.tally.reasons or len(self.tally.reasons) < _REASONS:
                self.tally.reasons[answer.reason] += 1
        self._under_way -= answer.call is not None
        while self._waiting and self._has_room:
            waiting = self._waiting.popleft()
            if waiting.answer.row in self._flights:  # else its client has given up
                self._send(waiting)
        self._go_on()

    def _go_on(self) -> None:
        """Wait for what is due next, or end."""
        at = self._next_due()
        if at >= 0:
            self._arm(at)
        elif not self._flights:
            self._over.set()

    def _note(self, answer: Answer) -> None:
        """Write down what is known of a request that ended, or that is cut off."""
        row, requests = answer.row, self.record.requests
        if answer.first_ns:
            requests.first[row] = self._us(answer.first_ns)
        usage = answer.usage
        if usage is None:
            requests.output[row] = answer.tokens
            return
        requests.output[row] = usage.completion_tokens
        requests.cached[row] = usage.cached
        if usage.prompt_tokens:
            self.tally.other_prompt += usage.prompt_tokens != requests.prompt[row]
            requests.prompt[row] = usage.prompt_tokens
        if answer.tokens:
            self.tally.events += answer.tokens
            self.tally.tokens += usage.completion_tokens
        self.tally.other_length += usage.completion_tokens != self.record.planned[row]


def _descendants(chain: _Chain, index: int) -> int:
    """Return how many turns would have come after this one."""
    found, open_turns = 0, [index]
    while open_turns:
        children = chain.children.get(open_turns.pop(), [])
        found += len(children)
        open_turns += children
    return found
