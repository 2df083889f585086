"""A small world in virtual time: a dispatcher, fake engines, and requests that a test sends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from fairlead.core import events as ev
from fairlead.core.commands import Cancel, Command, Dispatch, Reject
from fairlead.core.dispatcher import Dispatcher
from fairlead.core.model import BlockKey, ClientId, Request, RequestId, WorkerId
from fairlead.testing.clock import Clock
from fairlead.testing.engine import FakeEngine

TICK_US = 100_000


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are microseconds; 0 while it has not come to that."""

    request: Request
    output_tokens: int
    worker: WorkerId = ""
    dispatched_us: int = 0
    first_token_us: int = 0
    ended_us: int = 0
    result: str = ""
    """``done``, ``failed``, ``cancelled``, or a refusal's code such as ``queue_full``; empty while open."""
    cached_tokens: int = 0

    @property
    def wait_us(self) -> int:
        """Time from its arrival to its dispatch."""
        return self.dispatched_us - self.request.arrived_us

    @property
    def ttft_us(self) -> int:
        """Time from its arrival to its first token."""
        return self.first_token_us - self.request.arrived_us


class World:
    """Sends requests to a dispatcher and plays its workers.

    ``check=True`` calls the dispatcher's ``check`` after every event: slow, and what tests want.
    """

    def __init__(self, dispatcher: Dispatcher, engines: Iterable[FakeEngine], *, check: bool = True) -> None:
        self.dispatcher = dispatcher
        self.engines = {engine.name: engine for engine in engines}
        self.clock = Clock()
        self.outcomes: dict[RequestId, Outcome] = {}
        self._check = check
        self._heap: list[tuple[int, int, ev.Event, int]] = []
        self._pushed = 0
        self._attempts: dict[RequestId, int] = {}
        """The attempt that a running request is at: what an earlier one would have said is not said."""
        for engine in self.engines.values():
            self._tell(ev.WorkerUp(0, engine.name, engine.limits))

    def send(
        self,
        client: ClientId,
        prompt_tokens: int = 400,
        output_tokens: int = 100,
        keys: Sequence[BlockKey] = (),
        *,
        at_us: int | None = None,
        max_tokens: int | None = None,
        session: str = "",
    ) -> RequestId:
        """Have a request arrive at ``at_us``, now if that is None. Returns its number."""
        at = self.clock.now if at_us is None else at_us
        rid = len(self.outcomes) + 1
        request = Request(
            rid, client, prompt_tokens, keys, max_tokens=max_tokens, session=session, arrived_us=at
        )
        self.outcomes[rid] = Outcome(request, output_tokens)
        self._push(ev.Arrived(at, request))
        return rid

    def cancel(self, rid: RequestId, at_us: int) -> None:
        """Have a client hang up at ``at_us``, if its request is still open then."""
        self._push(ev.Cancelled(at_us, rid))

    def worker_down(self, name: WorkerId, at_us: int) -> None:
        """Have a worker die at ``at_us``: its requests fail there, its cache is gone."""
        self._push(ev.WorkerDown(at_us, name, "died"))

    def worker_up(self, name: WorkerId, at_us: int) -> None:
        """Have a worker that is down come back at ``at_us``."""
        self._push(ev.WorkerUp(at_us, name, self.engines[name].limits))

    def run(self, until_us: int | None = None) -> None:
        """Let time pass until ``until_us``, or until nothing is left to happen."""
        while self._heap and (until_us is None or self._heap[0][0] <= until_us):
            at, _, event, attempt = heappop(self._heap)
            self.clock.move_to(at)
            if self._happens(event, attempt):
                self._tell(event)
        if until_us is not None:
            self.clock.move_to(max(until_us, self.clock.now))

    def service(self, client: ClientId) -> int:
        """Return the service delivered to a client so far: computed prompt tokens + 2 x output tokens."""
        account = self.dispatcher.ledger.accounts.get(client)
        return 0 if account is None else account.delivered

    def _push(self, event: ev.Event, attempt: int = 0) -> None:
        self._pushed += 1
        heappush(self._heap, (event.at, self._pushed, event, attempt))

    def _happens(self, event: ev.Event, attempt: int) -> bool:
        """Say whether an event that was due still makes sense; play a worker's death for its requests."""
        if isinstance(event, ev.Tick):
            if self.dispatcher.requests:
                self._tick()
            return bool(self.dispatcher.requests)
        if isinstance(event, ev.Cancelled):
            if event.rid in self.dispatcher.requests:
                self._attempts.pop(event.rid, None)
                self._end(event.rid, "cancelled")
                return True
            return False
        if isinstance(event, ev.FirstToken | ev.Progressed | ev.Finished | ev.Failed):
            return self._answers(event, attempt)
        if isinstance(event, ev.WorkerDown):
            self._dies(event)
        elif isinstance(event, ev.Arrived) and not any(isinstance(e[2], ev.Tick) for e in self._heap):
            self._tick()
        return True

    def _answers(self, event: ev.FirstToken | ev.Progressed | ev.Finished | ev.Failed, attempt: int) -> bool:
        """Note what an engine says, unless the attempt that it belongs to is over."""
        rid = event.rid
        if self._attempts.get(rid) != attempt:
            return False
        if isinstance(event, ev.FirstToken):
            self.outcomes[rid].first_token_us = event.at
        elif isinstance(event, ev.Finished):
            del self._attempts[rid]
            self._end(rid, "done")
        elif isinstance(event, ev.Failed):
            del self._attempts[rid]
        return True

    def _dies(self, event: ev.WorkerDown) -> None:
        self.engines[event.worker].forget()
        for rid, attempt in list(self._attempts.items()):
            outcome = self.outcomes[rid]
            if outcome.worker == event.worker:
                self._push(ev.Failed(event.at, rid, not outcome.first_token_us, "the worker died"), attempt)

    def _tick(self) -> None:
        self._push(ev.Tick(self.clock.now + TICK_US))

    def _tell(self, event: ev.Event) -> None:
        commands = self.dispatcher.step(event)
        if self._check:
            self.dispatcher.check()
            self._check_idle()
        for command in commands:
            self._obey(command)

    def _check_idle(self) -> None:
        """An idle worker takes anything, so nobody may wait for one: also if a queue gives no head."""
        fleet = self.dispatcher.fleet
        for name, slot in fleet.slots.items():
            waiting = fleet.queued[slot]
            assert not (waiting and fleet.up[slot] and not fleet.running[slot]), (
                f"{name} idles while {waiting} requests wait for it"
            )

    def _obey(self, command: Command) -> None:
        rid, now = command.rid, self.clock.now
        outcome = self.outcomes[rid]
        if isinstance(command, Dispatch):
            outcome.worker, outcome.dispatched_us, outcome.first_token_us = command.worker, now, 0
            attempt = self._attempts[rid] = command.attempt
            times = self.engines[command.worker].take(now, outcome.request, outcome.output_tokens)
            outcome.cached_tokens = times.cached_tokens
            prompt = outcome.request.prompt_tokens
            self._push(ev.FirstToken(times.first_token_us, rid), attempt)
            self._push(
                ev.Finished(times.end_us, rid, prompt, times.cached_tokens, outcome.output_tokens), attempt
            )
        elif isinstance(command, Reject):
            self._end(rid, command.code)
        elif not isinstance(command, Cancel):
            self._end(rid, "failed")

    def _end(self, rid: RequestId, result: str) -> None:
        outcome = self.outcomes[rid]
        assert not outcome.result, f"request {rid} ended twice: {outcome.result}, {result}"
        outcome.result = result
        outcome.ended_us = self.clock.now

    def __repr__(self) -> str:
        open_ = sum(not outcome.result for outcome in self.outcomes.values())
        return f"<World {self.clock.now / 1e6:.3f} s, {open_} of {len(self.outcomes)} requests open>"
