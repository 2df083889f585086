"""Drives a dispatcher with random but legal events, and keeps its own books to compare with."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from fairlead.core import events as ev
from fairlead.core.commands import Cancel, Command, Dispatch, Fail, Reject
from fairlead.core.dispatcher import Dispatcher, Settings
from fairlead.core.model import Limits, Request
from fairlead.core.ordering import make_ordering
from fairlead.core.ordering.base import OrderingContext
from fairlead.core.routing import make_routing
from fairlead.core.routing.base import RoutingContext

CLIENTS = ("ann", "bob", "cyd", "dee")
WEIGHTS = {"ann": 1.0, "bob": 2.0, "cyd": 0.5}


def make_dispatcher(
    routing: str = "marginal",
    ordering: str = "dlpm",
    *,
    routing_params: dict[str, object] | None = None,
    ordering_params: dict[str, object] | None = None,
    settings: Settings | None = None,
    weights: dict[str, float] | None = None,
    seed: int = 0,
) -> Dispatcher:
    return Dispatcher(
        make_routing(routing, routing_params or {}, RoutingContext(random.Random(seed))),
        make_ordering(ordering, ordering_params or {}, OrderingContext()),
        settings,
        weights,
    )


class Driver:
    """The world: clients that send, workers that answer, break, come and go."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        rng: random.Random,
        *,
        check: bool = True,
        decide: Callable[[ev.Event], list[Command]] | None = None,
        most_running: bool = True,
    ) -> None:
        """``decide`` is called in place of the dispatcher's ``step``: to record it, for one.

        ``most_running``: whether workers' limits hold, as they do unless the dispatcher forwards at once.
        """
        self.d = dispatcher
        self.decide = decide or dispatcher.step
        self.rng = rng
        self.check = check
        self.most_running = most_running
        self.now = 0
        self.rid = 0
        self.limits: dict[str, Limits] = {}
        self.queued: dict[int, Request] = {}
        self.running: dict[int, tuple[Request, str]] = {}
        self.decoding: dict[int, int] = {}
        self.ended: Counter[str] = Counter()
        self.down: set[str] = set()
        self.log: list[str] = []
        self.worst_running: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.refusals: Counter[int] = Counter()
        self.held: dict[str, int] = {}
        """Until when workers said that they want nothing."""

    def send(self, event: ev.Event) -> list[Command]:
        commands = self.decide(event)
        for command in commands:
            self.obey(command)
        self.log.append(repr((event, commands)))
        if self.check:
            self.d.check()
            self.compare()
        return commands

    def obey(self, command: Command) -> None:
        if isinstance(command, Dispatch):
            request = self.queued.pop(command.rid)
            assert command.worker not in self.down, "sent to a worker that is down"
            self.running[command.rid] = (request, command.worker)
            if self.most_running:
                on_it = [r.sequences for r, w in self.running.values() if w == command.worker]
                limit = self.limits[command.worker].max_num_seqs
                assert sum(on_it) <= limit or len(on_it) == 1, "more sequences than its capacity"
            assert command.attempt <= self.d.settings.max_attempts + self.refusals[command.rid]
            assert self.held.get(command.worker, 0) <= self.now, "sent to a worker that has just refused"
        elif isinstance(command, Reject):
            self.queued.pop(command.rid)
            self.ended["rejected"] += 1
        elif isinstance(command, Fail):
            del self.running[command.rid]
            self.decoding.pop(command.rid, None)
            self.ended["failed"] += 1
        else:
            assert isinstance(command, Cancel)
            assert command.rid not in self.queued

    def compare(self) -> None:
        """The dispatcher's counts are those of the outside world (invariants 1 and 10)."""
        assert self.d.queued == len(self.queued)
        assert self.d.running == len(self.running)
        assert self.d.arrived == self.rid
        for state, count in self.d.ended.items():
            assert self.ended[state.value] == count

    # ---- random events

    def arrive(self, client: str | None = None, keys: tuple[int, ...] | None = None) -> None:
        rng = self.rng
        if keys is None:
            family = rng.randrange(4)
            depth = rng.randrange(0, 9)
            # keys name whole prefixes: a path in a small tree of prompts
            keys, here = (), family + 1
            for _ in range(depth):
                here = here * 7 + rng.randrange(2) + 1
                keys = (*keys, here)
        self.rid += 1
        request = Request(
            rid=self.rid,
            client=client or rng.choice(CLIENTS),
            prompt_tokens=len(keys) * 16 + rng.randrange(1, 16),
            keys=keys,
            max_tokens=rng.choice([None, 4, 200]),
            session=rng.choice(["", "s1", "s2"]),
            arrived_us=self.now,
            sequences=rng.choice([1, 1, 1, 2, 6]),
            reads_cache=rng.randrange(8) > 0,
        )
        self.queued[request.rid] = request
        self.send(ev.Arrived(self.now, request))

    def worker_up(self, name: str, precise: bool = False) -> None:
        limits = Limits(
            self.rng.randrange(1, 5), self.rng.choice([300, 1000, 100_000]), self.rng.choice([2, 50])
        )
        self.limits[name] = Limits(
            max(limits.max_num_seqs, sum(r.sequences for r, w in self.running.values() if w == name)),
            *limits[1:],
        )
        self.down.discard(name)
        if name not in self.d.fleet.slots:
            self.held.pop(name, None)  # another one of that name, which has said nothing
        self.send(ev.WorkerUp(self.now, name, self.limits[name], precise))

    def finish(self, rid: int) -> None:
        request, _ = self.running.pop(rid)
        decoded = self.decoding.pop(rid, 0)
        self.ended["done"] += 1
        usage = self.rng.random() < 0.7
        prompt = request.prompt_tokens + self.rng.randrange(0, 3)
        cached = self.rng.randrange(0, prompt)
        out = decoded + self.rng.randrange(0, 3)
        if usage:
            self.delivered[request.client] += prompt - cached + 2 * out
            self.send(ev.Finished(self.now, rid, prompt, cached, out))
        else:
            self.send(ev.Finished(self.now, rid))

    def step(self) -> None:
        rng = self.rng
        self.now += rng.randrange(0, 300_000)
        known = sorted(self.d.fleet.slots)
        kind = rng.choices(
            ["arrive", "first", "progress", "finish", "fail", "cancel", "up", "down", "gone", "stored",
             "evicted", "cleared", "tick", "changed", "refuse"],
            [30, 20, 10, 18, 4, 4, 3, 1.5, 0.7, 3, 2, 0.3, 3, 1, 2],
        )[0]  # fmt: skip
        if kind == "arrive":
            self.arrive()
        elif kind in ("first", "finish", "fail", "progress", "refuse") and self.running:
            rid = rng.choice(sorted(self.running))
            if kind == "first" and rid not in self.decoding:
                self.decoding[rid] = 0
                self.send(ev.FirstToken(self.now, rid))
            elif kind == "progress" and rid in self.decoding:
                tokens = rng.randrange(1, 9)
                self.decoding[rid] += tokens
                self.send(ev.Progressed(self.now, rid, tokens))
            elif kind == "finish":
                self.finish(rid)
            elif kind == "fail":
                self.fail(rid)
            elif kind == "refuse" and rid not in self.decoding:
                self.refuse(rid)
        elif kind == "cancel" and (self.queued or self.running):
            rid = rng.choice(sorted([*self.queued, *self.running]))
            self.cancel(rid)
        elif kind == "up":
            self.worker_up(rng.choice(["w1", "w2", "w3", "w4"]), precise=rng.random() < 0.3)
        elif kind == "down" and known:
            name = rng.choice(known)
            self.down.add(name)
            self.send(ev.WorkerDown(self.now, name, forget_cache=rng.random() < 0.5))
        elif kind == "gone" and known:
            name = rng.choice(known)
            self.down.add(name)
            self.send(ev.WorkerGone(self.now, name))
        elif kind in ("stored", "evicted", "cleared") and known:
            self.cache(kind, rng.choice(known))
        elif kind == "changed" and known:
            self.send(ev.WorkerChanged(self.now, rng.choice(known), None, rng.randrange(5), rng.randrange(5)))
        elif kind == "tick":
            self.send(ev.Tick(self.now))

    def cancel(self, rid: int) -> None:
        if rid in self.queued:
            del self.queued[rid]
        else:
            del self.running[rid]
            self.decoding.pop(rid, None)
        self.ended["cancelled"] += 1
        self.send(ev.Cancelled(self.now, rid))

    def fail(self, rid: int) -> None:
        retryable = self.rng.random() < 0.7 and rid not in self.decoding
        request, worker = self.running[rid]
        if retryable:
            self.queued[rid] = request
            del self.running[rid]
            commands = self.decide(ev.Failed(self.now, rid, retryable=True, reason="reset"))
            for command in commands:
                if isinstance(command, Fail):  # out of attempts
                    self.running[rid] = (self.queued.pop(rid), worker)
                self.obey(command)
            self.log.append(repr(commands))
            if self.check:
                self.d.check()
                self.compare()
        else:
            self.send(ev.Failed(self.now, rid, retryable=False, reason="broke"))

    def refuse(self, rid: int) -> None:
        request, worker = self.running.pop(rid)
        self.queued[rid] = request
        self.refusals[rid] += 1
        wait_us = self.rng.choice([0, 100_000, 3_000_000])
        self.held[worker] = max(self.held.get(worker, 0), self.now + max(1, wait_us))
        self.send(ev.Refused(self.now, rid, wait_us, "no room"))

    def cache(self, kind: str, name: str) -> None:
        if not self.d.workers[self.d.fleet.slots[name]].precise:
            return
        if kind == "cleared":
            self.send(ev.CacheCleared(self.now, name, precise=True))
            return
        family = self.rng.randrange(4)
        here, chain = family + 1, []
        for _ in range(6):
            here = here * 7 + self.rng.randrange(2) + 1
            chain.append(here)
        start = self.rng.randrange(0, 4)
        keys = chain[start : start + self.rng.randrange(1, 4)]
        if kind == "stored":
            self.send(ev.CacheStored(self.now, name, keys, chain[start - 1] if start else None))
        else:
            self.send(ev.CacheEvicted(self.now, name, keys))
