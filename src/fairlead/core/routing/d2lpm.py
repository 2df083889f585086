"""D2LPM: deficits for each client and worker, spent on the longest match first."""

from collections.abc import Sequence

from fairlead.core.model import ClientId, Request
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.deficits import WorkerDeficits

QUANTUM = Param("quantum", 64_000, "Qw: service units of a client on a worker between two refills", low=1)
CHARGE = Param(
    "charge",
    "extend",
    "prompt tokens that are charged: those to compute, or all",
    choices=("extend", "prompt"),
)
IDLE = Param("idle_s", 3600.0, "seconds after which a client that owes nothing is forgotten", low=0)


class DeficitRouting(RoutingBase):
    """The books of a policy that lets a client use only workers where it has credit."""

    params = (QUANTUM, CHARGE, IDLE)

    def __init__(self, context: RoutingContext, /, **given: object) -> None:
        super().__init__(context, **given)
        self.books = WorkerDeficits(self.values.integer("quantum"), int(self.values.number("idle_s") * 1e6))
        self._whole_prompt = self.values.word("charge") == "prompt"

    def assigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:
        """Charge the prompt."""
        self.last = slot
        tokens = request.prompt_tokens if self._whole_prompt else extend_tokens
        self.books.assigned(request.client, slot, self.context.costs.extend * tokens, now)

    def unassigned(self, request: Request, slot: int, extend_tokens: int, now: int) -> None:  # noqa: ARG002 - one interface
        """Give the charge back."""
        tokens = request.prompt_tokens if self._whole_prompt else extend_tokens
        self.books.charge(request.client, slot, -self.context.costs.extend * tokens)

    def corrected(self, client: ClientId, slot: int, prompt_tokens: int, extend_tokens: int) -> None:
        """Charge what real usage adds."""
        tokens = prompt_tokens if self._whole_prompt else extend_tokens
        self.books.charge(client, slot, self.context.costs.extend * tokens)

    def decoded(self, client: ClientId, slot: int, tokens: int) -> None:
        """Charge output tokens."""
        self.books.charge(client, slot, self.context.costs.output * tokens)

    def settled(
        self, client: ClientId, slot: int, prompt_tokens: int, extend_tokens: int, output_tokens: int
    ) -> None:
        """Charge what real usage adds, and the output, at once."""
        costs, tokens = self.context.costs, prompt_tokens if self._whole_prompt else extend_tokens
        self.books.charge(client, slot, costs.extend * tokens + costs.output * output_tokens)

    def set_weight(self, client: ClientId, weight: float) -> None:
        """Set the client's share of a quantum."""
        self.books.set_weight(client, weight)

    def slot_reset(self, slot: int) -> None:
        """Forget what was used of the slot."""
        self.books.slot_reset(slot)

    def tick(self, now: int) -> None:
        """Forget idle clients."""
        self.books.tick(now)

    def check(self) -> None:
        """Raise AssertionError if the books are inconsistent."""
        self.books.check()


class D2lpm(DeficitRouting):
    """The longest match among workers where the client has credit, as [DLPM] Algorithm 2 has it.

    The quantum bounds how far one client's load piles up on a worker: large favours locality, small
    favours balance. All candidates hold a longest match of 0 when nobody caches any of the prompt.
    """

    name = "d2lpm"
    source = "[DLPM] arXiv 2501.14312, Algorithm 2"
    summary = "Longest match among workers where the client has credit, else any with credit; least queued."

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice:  # noqa: ARG002 - one interface
        """Refill if need be, keep the workers with credit, and pick the least queued."""
        slots = fleet.candidates
        spent = self.books.spent(request.client, slots)
        among, branch = (match.holders, "d2lpm: holder") if match.best else (slots, "d2lpm: no holder")
        if spent:
            eligible = [s for s in among if s not in spent]
            if not eligible:
                eligible = [s for s in slots if s not in spent]
                branch = "d2lpm: no holder with credit"
            among = eligible
        return Choice(_least_queued(among, fleet.queued, fleet.batch_size, self.last), branch=branch)


def _least_queued(among: Sequence[int], queued: Sequence[int], sizes: Sequence[int], last: int) -> int:
    """Return the slot with the fewest waiting, then the smallest batch, then the next after ``last``.

    What ``scan.least`` does, in one pass: ties are the rule here, and holders few.
    """
    best = -1
    waiting = batch = 0
    for s in among:
        q, b = queued[s], sizes[s]
        if best < 0 or q < waiting or (q == waiting and b < batch):
            best, waiting, batch = s, q, b
        elif q == waiting and b == batch and best <= last < s:
            best = s
    return best
