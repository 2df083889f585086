"""What the demo measures, all seen from the clients' side or counted by the gateway."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.core.model import Costs
from fairlead.core.registry import parse_spec

COSTS = Costs()


@dataclass(slots=True)
class Seen:
    """One client's requests in one phase, as the client saw them."""

    ttft_ms: list[float] = field(default_factory=list)
    """First token minus scheduled arrival; a request unanswered at the end counts its age so far."""
    sent: int = 0
    completed: int = 0
    failed: int = 0
    last_error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    demanded: int = 0
    """Service units that all its arrivals would have taken at the hit rate it got."""

    @property
    def service(self) -> int:
        """Service units received: extend tokens and twice the output tokens."""
        return (self.prompt_tokens - self.cached_tokens) * COSTS.extend + self.output_tokens * COSTS.output


def percentile(values: Iterable[float], share: float) -> float:
    """Return the percentile by linear interpolation, as numpy's default; nan for no values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def fair_shares(demands: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Split ``capacity`` max-min fairly: nobody gets more than its demand, the rest is shared evenly."""
    shares: dict[str, float] = {}
    left, waiting = capacity, sorted(demands.items(), key=lambda item: (item[1], item[0]))
    while waiting:
        name, demand = waiting.pop(0)
        shares[name] = min(demand, left / (len(waiting) + 1))
        left -= shares[name]
    return shares


def jain(values: Sequence[float]) -> float:
    """Jain's index (sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has everything."""
    squares = sum(x * x for x in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


@dataclass(slots=True)
class Phase:
    """The result of one phase."""

    title: str
    order: str
    policy: str
    clients: dict[str, Seen]
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float:
        """Prompt and output tokens of completed requests a second."""
        return sum(s.prompt_tokens + s.output_tokens for s in self.clients.values()) / self.elapsed_s

    @property
    def hit_rate(self) -> float:
        """Cached share of the prompt tokens of completed requests."""
        prompt = sum(s.prompt_tokens for s in self.clients.values())
        return sum(s.cached_tokens for s in self.clients.values()) / prompt if prompt else 0.0

    @property
    def jain(self) -> float:
        """Jain's index of service over demand-capped (max-min) fair share."""
        demands = {name: float(max(seen.demanded, seen.service)) for name, seen in self.clients.items()}
        shares = fair_shares(demands, sum(seen.service for seen in self.clients.values()))
        return jain([seen.service / shares[name] for name, seen in self.clients.items() if shares[name]])

    def as_json(self) -> dict[str, object]:
        """Return the phase as the demo's ``--json`` writes it."""
        name, parameters = parse_spec(self.order)
        return {
            "title": self.title,
            "order": name,
            "order_parameters": parameters,
            "policy": self.policy,
            "clients": {
                name: {
                    "ttft_p50_ms": _number(percentile(seen.ttft_ms, 0.5)),
                    "ttft_p99_ms": _number(percentile(seen.ttft_ms, 0.99)),
                    "service": seen.service,
                    "completed": seen.completed,
                    "sent": seen.sent,
                    "failed": seen.failed,
                }
                for name, seen in self.clients.items()
            },
            "tokens_per_s": round(self.tokens_per_s, 1),
            "hit_rate": round(self.hit_rate, 4),
            "jain": round(self.jain, 4),
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)
