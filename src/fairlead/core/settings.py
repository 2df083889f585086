"""What a dispatcher does beside its two policies. Decision logs keep it, and read it by its annotations."""

from dataclasses import dataclass, field

from fairlead.core.model import Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a dispatcher does beside its two policies."""

    costs: Costs = field(default_factory=Costs)
    max_attempts: int = 3
    """Most workers that one request is tried on; then its caller is told that it failed."""
    retry_ratio: float = 0.2
    """Retries allowed for each request that arrives, so that an outage does not multiply the load."""
    retry_burst: int = 100
    """Most retries that can be saved up; also what a fresh dispatcher starts with."""
    retry_share: float = 1.0
    """Share of the saved-up retries that one client may spend, so that it leaves some to others. 1: all."""
    max_queued: int = 10_000
    """Most requests that may wait in all. Beyond that, the client with most waiting loses its newest."""
    queue_timeout_us: int = 60_000_000
    """How long a request may wait before it is rejected; 0 is for ever."""
    prefill_backlog_us: int = 200_000
    """Most prefill that a worker may have under way, as time; the rest waits here. 0 is no limit."""
    first_token_patience: float = 0.0
    """A stream counts as computed when its first token is overdue: so many times as late as the worker's
    measured rate says, and a second more. 0: it is waited for to the stream's end."""
    max_clients: int = 100_000
    """Most clients' accounts that are kept; idle ones are dropped first."""
    forward: bool = False
    """Send at once, whatever a worker's capacity: the engines order their own queues."""
