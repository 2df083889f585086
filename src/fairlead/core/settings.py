"""What a dispatcher does beside its two policies. Decision logs keep it, and read it by its annotations."""

from dataclasses import dataclass, field

from fairlead.core.model import Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a dispatcher does beside its two policies."""

    costs: Costs = field(default_factory=Costs)
    max_attempts: int = 3
    """Workers that one request is tried on before its caller is told that it failed."""
    retry_ratio: float = 0.2
    """Retries allowed for each request that arrives, so that an outage is not amplified."""
    retry_burst: int = 100
    """Most retries that can be saved up; also what a fresh dispatcher starts with."""
    max_queued: int = 10_000
    """Requests that may wait in all; beyond, the client with the longest queue loses its newest."""
    queue_timeout_us: int = 60_000_000
    """How long a request may wait before its caller is told to come back; 0 for ever."""
    prefill_backlog_us: int = 200_000
    """Prefill that a worker may have under way, in time; what exceeds it waits here. 0: no limit."""
    max_clients: int = 100_000
    """Accounts kept; idle ones go first."""
    forward: bool = False
    """Send at once, whatever a worker has: the engines order their queues themselves."""
