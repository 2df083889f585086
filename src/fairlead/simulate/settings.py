"""The options of a simulation, and how its parts are made from them."""

from dataclasses import asdict, dataclass, field
from typing import Any

from fairlead.core.dispatcher import Dispatcher
from fairlead.core.make import make_dispatcher
from fairlead.core.model import ClientId, Costs
from fairlead.core.ordering import ORDERINGS, make_ordering
from fairlead.core.ordering.base import Ordering, OrderingContext
from fairlead.core.registry import Registry, parse_spec
from fairlead.core.routing import POLICIES
from fairlead.core.settings import Settings as DispatcherSettings
from fairlead.engine.profiles import DEFAULT_PROFILE, Profile, load_profile

GATEWAY, ENGINE = "gateway", "engine"
NEVER_US = 1 << 60


@dataclass(frozen=True, slots=True)
class Fault:
    """A worker that dies and, after ``for_us``, returns with an empty cache. 0: it stays away."""

    worker: int
    at_us: int
    for_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One simulation's options. Times in microseconds; policies as specs such as ``dlpm:quantum=4000``."""

    policy: str = "marginal"
    order: str = "dlpm"
    workers: int = 4
    engine: str = DEFAULT_PROFILE
    topology: str = GATEWAY
    """``gateway``: the dispatcher holds the queue; ``engine``: it forwards, and engines order their own."""
    seed: int = 1
    kv_tokens: int = 0
    """KV pool of each engine; 0: the profile's."""
    max_num_seqs: int = 0
    """0: the profile's, like the two that follow."""
    max_num_batched_tokens: int = 0
    max_model_len: int = 0
    prefill_backlog_us: int = 200_000
    queue_timeout_us: int = 0
    max_queued: int = 1_000_000_000
    hop_us: int = 500
    """From the dispatcher to an engine, and back. At least 1."""
    round_trip_us: int = 1_000
    """From the end of a closed loop's session to its client's next request, think time apart. The slot that
    fell free is given to whoever waits meanwhile: with 0 only what comes in the same microsecond is before
    it."""
    exact_cache: bool = False
    """Whether the dispatcher follows each engine's cache by events, instead of approximating it."""
    stale_us: int = 0
    """By how much the dispatcher hears later than the clients of what engines did."""
    client_timeout_us: int = 0
    """Clients hang up after so long without an end; 0: never."""
    cancel_share: float = 0.0
    """Share of requests whose client hangs up at a random moment of its first 10 s."""
    faults: tuple[Fault, ...] = ()
    detect_us: int = 1_000_000
    """Until the dispatcher notices a death; requests sent meanwhile are refused at once."""
    report_tokens: int = 64
    """Engine steps after which clients' output is charged, with the next first token or end, and after
    four times as many at the latest; a request's own is when it begins and ends."""
    interval_us: int = 1_000_000
    """Between two samples of the series."""
    until_us: int = 0
    """When to stop, even if requests are running; 0: when all is done."""
    async_scheduling: bool = True
    """Engines schedule a step while the one before it runs, as vLLM does by default on GPUs."""
    fast_forward: bool = True
    """Take steps that only decode in closed form; False: one by one, with the same results."""
    costs: Costs = field(default_factory=Costs)

    def check(self) -> None:
        """Raise ValueError naming the option that cannot be."""
        if self.topology not in (GATEWAY, ENGINE):
            raise ValueError(f"topology is '{GATEWAY}' or '{ENGINE}', not '{self.topology}'")
        if self.workers < 1:
            raise ValueError(f"workers: at least 1, not {self.workers}")
        if self.hop_us < 1 or self.interval_us < 1:
            raise ValueError("hop_us and interval_us are at least 1")
        if self.round_trip_us < 0:
            raise ValueError(f"round_trip_us cannot be negative: {self.round_trip_us}")
        if not 0 <= self.cancel_share <= 1:
            raise ValueError(f"cancel_share is a share from 0 to 1, not {self.cancel_share:g}")
        for fault in self.faults:
            if not 0 <= fault.worker < self.workers:
                raise ValueError(f"fault: worker {fault.worker} of {self.workers}; they count from 0")

    def profile(self) -> Profile:
        """Return the engine's profile; ValueError lists those there are."""
        return load_profile(self.engine)

    def ordering(self) -> Ordering:
        """Make the ordering policy."""
        name, given = parse_spec(self.order)
        if self.topology == ENGINE and any(p.name == "scope" for p in ORDERINGS.get(name).params):
            given.setdefault("scope", "worker")  # an engine sees no other queue than its own
        return make_ordering(name, given, OrderingContext(self.costs))

    def dispatcher(self, weights: dict[ClientId, float]) -> Dispatcher:
        """Make the dispatcher: the one that the gateway runs."""
        forward = self.topology == ENGINE
        settings = DispatcherSettings(
            costs=self.costs,
            max_queued=self.max_queued,
            queue_timeout_us=self.queue_timeout_us,
            prefill_backlog_us=0 if forward else self.prefill_backlog_us,
            forward=forward,
        )
        order = "fcfs" if forward else self.order
        return make_dispatcher(order, self.policy, settings=settings, weights=weights, seed=self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Return every option, JSON-ready, with the policies' parameters spelled out."""
        found = asdict(self)
        kinds: tuple[tuple[str, Registry[Any]], ...] = (("policy", POLICIES), ("order", ORDERINGS))
        for key, registry in kinds:
            name, given = parse_spec(getattr(self, key))
            found[f"{key}_params"] = dict(registry.resolve(name, given))
        found["costs"] = self.costs._asdict()
        return found
