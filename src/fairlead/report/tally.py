"""One pass over a run's requests: latencies, tokens and outcomes by client."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import Any

from fairlead.core.model import Costs
from fairlead.report.distribution import describe
from fairlead.report.run import DONE, OUTCOMES, Run


@dataclass(slots=True)
class Tally:
    """What happened to the requests of one client, or of several pooled. Latencies in microseconds."""

    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    e2el: list[float] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=lambda: [0] * len(OUTCOMES))
    good: int = 0
    """Completed requests that met every SLO."""
    input_tokens: int = 0
    """Prompt tokens of completed requests."""
    output_tokens: int = 0
    """Output tokens of completed requests."""
    served_prompt: int = 0
    """Prompt tokens of every request that was answered at least in part."""
    served_cached: int = 0
    served_output: int = 0
    known_prompt: int = 0
    """Prompt tokens of those of them whose cached tokens are known."""

    @property
    def injected(self) -> int:
        """Requests that arrived."""
        return sum(self.outcomes)

    @property
    def completed(self) -> int:
        """Requests that were answered to the end."""
        return self.outcomes[DONE]

    def service(self, costs: Costs) -> int:
        """Return service units: computed prompt tokens and output tokens at their prices."""
        return costs.extend * (self.served_prompt - self.served_cached) + costs.output * self.served_output

    def facts(self, costs: Costs, duration_s: float) -> dict[str, Any]:
        """Return the JSON block that a whole run and each client have in common."""
        completed, injected = self.completed, self.injected
        service = self.service(costs)
        return {
            "num_prompts": injected,
            "completed": completed,
            "failed": injected - completed,
            "outcomes": dict(zip(OUTCOMES, self.outcomes, strict=True)),
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": rate(completed, duration_s),
            "input_throughput": rate(self.input_tokens, duration_s),
            "output_throughput": rate(self.output_tokens, duration_s),
            "total_token_throughput": rate(self.input_tokens + self.output_tokens, duration_s),
            "request_goodput": rate(self.good, duration_s),
            "attainment": share(self.good, injected),
            "attainment_of_completed": share(self.good, completed),
            "service": service,
            "service_rate": rate(service, duration_s),
            "service_vtc": self.served_prompt + 2 * self.served_output,
            "cached_tokens": self.served_cached,
            "hit_rate": share(self.served_cached, self.known_prompt),
            **describe("ttft", self.ttft),
            **describe("tpot", self.tpot),
            **describe("e2el", self.e2el),
        }


def tally(run: Run, slos: Mapping[str, float]) -> list[Tally]:
    """Return a tally a client, latencies ascending. ``slos``: limits in ms on ttft, tpot, e2el."""
    tallies = [Tally() for _ in run.clients]
    most_ttft, most_tpot, most_e2el = (slos.get(name, inf) * 1000 for name in ("ttft", "tpot", "e2el"))
    r = run.requests
    rows = zip(r.client, r.arrived, r.first, r.ended, r.prompt, r.cached, r.output, r.outcome, strict=True)
    for client, arrived, first, ended, prompt, cached, output, outcome in rows:
        t = tallies[client]
        t.outcomes[outcome] += 1
        if first >= 0 or outcome == DONE:
            t.served_prompt += prompt
            t.served_output += output
            if cached >= 0:
                t.served_cached += cached
                t.known_prompt += prompt
        if outcome != DONE:
            continue
        t.input_tokens += prompt
        t.output_tokens += output
        whole = ended - arrived
        t.e2el.append(whole)
        until_first = whole if first < 0 else first - arrived  # not streamed: its only token is its last
        t.ttft.append(until_first)
        # A single token has no time between tokens, and meets any limit on it.
        each = 0.0
        if output > 1:
            each = (whole - until_first) / (output - 1)
            t.tpot.append(each)
        t.good += until_first <= most_ttft and each <= most_tpot and whole <= most_e2el
    for t in tallies:
        t.ttft.sort()
        t.tpot.sort()
        t.e2el.sort()
    return tallies


def pooled(tallies: list[Tally]) -> Tally:
    """Return one tally of all the requests."""
    if not tallies:
        return Tally()
    whole = Tally(outcomes=[sum(column) for column in zip(*(t.outcomes for t in tallies), strict=True)])
    for name in ("ttft", "tpot", "e2el"):  # sorting runs that are sorted already merges them
        setattr(whole, name, sorted(chain.from_iterable(getattr(t, name) for t in tallies)))
    for name in (
        "good",
        "input_tokens",
        "output_tokens",
        "served_prompt",
        "served_cached",
        "served_output",
        "known_prompt",
    ):
        setattr(whole, name, sum(getattr(t, name) for t in tallies))
    return whole


def rate(amount: float, seconds: float) -> float:
    """Return amount a second; 0 for no time."""
    return round(amount / seconds, 4) if seconds > 0 else 0.0


def share(part: float, whole: float) -> float | None:
    """Return part of whole, None of nothing."""
    return round(part / whole, 6) if whole else None
