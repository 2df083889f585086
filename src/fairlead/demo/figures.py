"""What the demo measures, all seen from the clients' side or counted by the gateway."""

import math
from dataclasses import dataclass, field

from fairlead.core.model import Costs
from fairlead.core.registry import parse_spec
from fairlead.report.distribution import percentile
from fairlead.report.fairness import capped_jain, fair_shares

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
    held_s: float = 0.0
    """Seconds from first token to last, of completed requests together."""
    demanded: int = 0
    """Service units that it wanted, at the hit rate it got: see ``Traffic.demands``."""

    @property
    def service(self) -> int:
        """Service units received: extend tokens and twice the output tokens."""
        return (self.prompt_tokens - self.cached_tokens) * COSTS.extend + self.output_tokens * COSTS.output

    def ttft(self, percent: float) -> float:
        """Return the percentile of TTFT in milliseconds; nan where nothing was sent."""
        return percentile(sorted(self.ttft_ms), percent) if self.ttft_ms else math.nan


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
        seen = list(self.clients.values())
        return capped_jain([s.service for s in seen], [s.demanded for s in seen], [1.0] * len(seen))

    @property
    def owed(self) -> dict[str, float]:
        """Each client's max-min fair share of the service delivered: nobody is owed more than it wanted."""
        wanted = [max(seen.demanded, seen.service) for seen in self.clients.values()]
        whole = sum(seen.service for seen in self.clients.values())
        return dict(zip(self.clients, fair_shares(wanted, [1.0] * len(wanted), whole), strict=True))

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
                    "ttft_p50_ms": _number(seen.ttft(50)),
                    "ttft_p99_ms": _number(seen.ttft(99)),
                    "service": seen.service,
                    "owed": round(self.owed[name]),
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
