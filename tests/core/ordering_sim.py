"""A small model of backlogged workers: enough to deliver service, and to measure it on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random

from fairlead.core.model import Costs, Request
from fairlead.core.ordering import Ordering
from fairlead.core.ordering.base import Queue, QueuedRequest


@dataclass(frozen=True)
class Client:
    """What one client sends. Lengths are drawn from 1 to the given most, hits from 0 to ``hits``."""

    name: str
    prompt: int
    output: int
    hits: float = 0.0
    weight: float = 1.0
    workers: tuple[int, ...] | None = None
    """Where it is backlogged; None for everywhere."""


@dataclass
class Running:
    """A request in a batch, or preempted and waiting again with ``produced`` tokens done."""

    item: QueuedRequest
    output: int
    produced: int = 0
    charged: bool = False


@dataclass
class Gap:
    """Smallest and largest weighted difference of service seen between two clients."""

    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    @property
    def width(self) -> Fraction:
        """The largest difference over any interval of the run."""
        return self.high - self.low


@dataclass
class Sim:
    """Workers with ``slots`` places each, all clients backlogged; one output token a step and slot."""

    ordering: Ordering
    clients: Sequence[Client]
    rng: Random
    workers: int = 1
    slots: int = 2
    costs: Costs = field(default_factory=Costs)
    whole_prompt: bool = False
    """Count service as VTC does: every prompt token of a request once, cached or recomputed or not."""
    shares: dict[str, Fraction] = field(default_factory=dict)
    """Exact weights, where the policy rounds them."""
    seen: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.service = {client.name: 0 for client in self.clients}
        self.by_name = {client.name: client for client in self.clients}
        self.gaps: dict[tuple[str, str], Gap] = {}
        self.jobs: dict[int, Running] = {}
        self.batches: list[list[Running]] = [[] for _ in range(self.workers)]
        self.seq = 0
        self.matches: dict[Sequence[int], int] = {}
        self.queues: list[Queue] = [self.ordering.make_queue(n, self.matched) for n in range(self.workers)]
        for client in self.clients:
            self.ordering.set_weight(client.name, client.weight)
        for client in self.clients:
            for number in client.workers or range(self.workers):
                self.arrive(client, number)
                self.arrive(client, number)

    def matched(self, keys: Sequence[int]) -> int:
        return self.matches[keys]

    def arrive(self, client: Client, number: int) -> None:
        prompt = self.rng.randint(1, client.prompt)
        keys = (self.seq, *range(prompt - 1))  # one token a block, the first key unique
        self.matches[keys] = int(self.rng.random() * client.hits * prompt)
        item = QueuedRequest(Request(self.seq, client.name, prompt, keys, 1), self.seq)
        self.jobs[self.seq] = Running(item, self.rng.randint(1, client.output))
        self.seq += 1
        self.queues[number].push(item, self.matches[keys])

    def step(self) -> None:
        for number, batch in enumerate(self.batches):
            if self.rng.random() < 0.1:
                self.cancel_queued(number)
            if batch and self.rng.random() < 0.1:
                self.preempt(number, self.rng.choice(batch))
            if batch and self.rng.random() < 0.1:
                self.end(number, self.rng.choice(batch))  # cancelled while it ran
            while len(batch) < self.slots:
                self.admit(number)
        for number, batch in enumerate(self.batches):
            for job in tuple(batch):
                job.produced += 1
                self.ordering.decoded(number, job.item.client, 1)
                self.deliver(job.item.client, self.costs.output)
                if job.produced == job.output:
                    self.end(number, job)
        self.ordering.check()

    def end(self, number: int, job: Running) -> None:
        self.batches[number].remove(job)
        self.ordering.released(number, job.item.client)

    def admit(self, number: int) -> None:
        item = self.queues[number].head()
        assert item is not None, "a worker with room and waiting requests idles"
        self.arrive(self.by_name[item.client], number)  # before it leaves: always backlogged
        self.queues[number].discard(item)
        job = self.jobs[item.rid]
        self.batches[number].append(job)
        extend = item.request.prompt_tokens - item.matched_tokens
        if job.charged:
            self.ordering.corrected(number, item.client, -item.request.prompt_tokens, 0)
        self.ordering.admitted(number, item, extend)
        prompt = 0 if job.charged else item.request.prompt_tokens
        job.charged = True
        self.deliver(item.client, self.costs.extend * (prompt if self.whole_prompt else extend))

    def preempt(self, number: int, job: Running) -> None:
        """Send a running request back to the queue; what stays cached of it is drawn anew."""
        self.end(number, job)
        keys = job.item.keys
        self.matches[keys] = self.rng.randint(0, len(keys))
        job.item = QueuedRequest(job.item.request, job.item.seq)
        self.queues[number].push(job.item, self.matches[keys])

    def cancel_queued(self, number: int) -> None:
        item = self.rng.choice(list(self.queues[number]))
        self.arrive(self.by_name[item.client], number)
        self.queues[number].discard(item)

    def share(self, client: str) -> Fraction:
        return self.shares.get(client, Fraction(self.by_name[client].weight))

    def deliver(self, client: str, units: int) -> None:
        self.service[client] += units
        mine = self.service[client] / self.share(client)
        for other, service in self.service.items():
            if other != client:
                first, second = sorted((client, other))
                gap = self.gaps.setdefault((first, second), Gap())
                difference = mine - service / self.share(other)
                if client == second:
                    difference = -difference
                gap.low = min(gap.low, difference)
                gap.high = max(gap.high, difference)
        self.seen()
