"""D2LPM: deficits for each client and worker, spent on the longest match first."""

from fairlead.core.model import ClientId, Request
from fairlead.core.params import Param
from fairlead.core.routing.base import Choice, Fleet, Match, RoutingBase, RoutingContext
from fairlead.core.routing.deficits import Deficits
from fairlead.core.routing.scan import least

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
        self.books = Deficits(self.values.integer("quantum"), int(self.values.number("idle_s") * 1e6))
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

    def choose(self, request: Request, match: Match, fleet: Fleet, now: int) -> Choice | None:  # noqa: ARG002 - one interface
        """Refill if need be, keep the workers with credit, and pick the least queued."""
        slots = fleet.candidates
        if not slots:
            return None
        spent = self.books.spent(request.client, slots)
        among, branch = (match.holders, "d2lpm: holder") if match.best else (slots, "d2lpm: no holder")
        if spent:
            eligible = [s for s in among if s not in spent]
            if not eligible:
                eligible = [s for s in slots if s not in spent]
                branch = "d2lpm: no holder with credit"
            among = eligible
        queued = fleet.queued
        return Choice(least(among, [queued[s] for s in among], self.last, fleet.bs), branch=branch)
