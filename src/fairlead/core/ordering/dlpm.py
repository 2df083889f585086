"""Deficit longest prefix match: fair between clients, longest cached prefix first within that.

Algorithm 1 of arXiv 2501.14312, for one queue, and where its parts are here:

::

    q[i] = 0 when client i is first seen                            deficits.Deficits.accounts
    while the worker has capacity:                                  the dispatcher asks for head()
        while no client that waits has q > 0:                       deficits.Deficits.refill
            each client i that waits gets q[i] += quantum * weight[i]
        of the clients with q > 0, take the request with the        dlpm_queue.DlpmQueue.head
            longest cached prefix (the older one of equals)
        q[i] -= w_e * its prompt tokens that are not cached         scoped.ScopedOrdering.admitted
    for each output token of client i:
        q[i] -= w_q                                                 scoped.ScopedOrdering.decoded

``tests/core/ordering_naive.py`` has the same in 70 lines that run. The test beside it holds every decision
against them.
"""

from typing import ClassVar

from fairlead.core.model import ClientId
from fairlead.core.ordering.base import ON_NO_FIT, Matched, OrderingContext, QueuedRequest
from fairlead.core.ordering.deficits import Deficits
from fairlead.core.ordering.dlpm_queue import DlpmQueue
from fairlead.core.ordering.scoped import ScopedOrdering
from fairlead.core.params import Param


class Dlpm(ScopedOrdering[DlpmQueue, Deficits]):
    """Longest match first among clients that have credit; whoever has none waits for a refill.

    Service is charged when it is known: computed prompt tokens at admission, output tokens as they
    come. Credit may go below zero and is repaid by later refills. That makes unknown output lengths
    fair. A refill gives each client that waits and has no credit ``quantum`` times its weight, once no
    client that waits has credit. So a refill lifts nobody above one quantum, and an idle client saves
    nothing up.

    That is the paper's rule. With ``light`` it holds for clients that are active and not always queued, too:
    rounds pass for absent clients, and a client that comes with credit goes first. ``deficits.py`` says how.

    With ``scope=fleet`` a client has one account for all workers. It may be that no client that waits for
    a worker has credit, while others elsewhere do. The worker then takes one of their requests
    (``steal``). Where it may not, it serves its least indebted client meanwhile: the one that would have
    credit after the fewest rounds, longest match first among equals.

    With ``ties=short`` requests with equal matches go by the length of their prompts instead of by
    arrival. Mean waiting times fall, as with any shortest-first rule, and what is cached is used as
    before. ``ageing`` keeps long requests from starving: a request that has waited a second longer may be
    so many tokens longer.
    """

    name: ClassVar[str] = "dlpm"
    source: ClassVar[str] = (
        "arXiv 2501.14312, algorithm 1; light, turn, scope=fleet, steal and ties=short are ours"
    )
    summary: ClassVar[str] = (
        "Longest cached prefix first among clients with credit, refilled in equal rounds."
    )
    params: ClassVar[tuple[Param, ...]] = (
        Param(
            "quantum",
            0,
            "service units a refill gives: small is as fair as vtc, large as local as lpm; 0: what `turn`"
            " requests cost",
            low=0,
            high=2**31,
        ),
        Param("turn", 8, "quantum=0: requests of median size that a refill pays for", low=1, high=1024),
        Param(
            "light",
            True,
            "rounds pass for clients with nothing queued too, and newly active clients with credit go first;"
            " off: as in the paper",
        ),
        Param(
            "scope",
            "fleet",
            "deficits of a client: one for the fleet, or one a worker as in the paper",
            choices=("fleet", "worker"),
        ),
        ON_NO_FIT,
        Param(
            "debt_limit",
            32,
            "scope=fleet: quanta that a worker's clients may all owe before it forgives half of them",
            low=2,
        ),
        Param(
            "steal",
            True,
            "scope=fleet: a worker that would serve a client without credit takes a request of one that has"
            " credit from another's queue, once that waited for as long as the move costs",
        ),
        Param(
            "ties",
            "short",
            "who goes first of equal matches: who came first, or the shortest prompt",
            choices=("arrival", "short"),
        ),
        Param("ageing", 200, "ties=short: tokens that a second of waiting makes up for", low=0),
    )
    uses_match: ClassVar[bool] = True
    in_turns: ClassVar[bool] = True

    def __init__(
        self,
        context: OrderingContext,
        quantum: int = 0,
        turn: int = 8,
        light: bool = True,
        scope: str = "fleet",
        on_no_fit: str = "stop",
        debt_limit: int = 32,
        steal: bool = True,
        ties: str = "short",
        ageing: int = 200,
    ) -> None:
        super().__init__(
            context,
            lambda: Deficits(quantum, turn, self._weights, light=light),
            fleet=scope == "fleet",
            skips=on_no_fit == "skip",
        )
        self._debt_limit = debt_limit
        self._ageing = ageing if ties == "short" else None
        self.steals = steal and scope == "fleet"
        # Where requests are stolen, a worker with nothing queued has others to ask before it serves a debtor.
        self._pass_limit = 0 if self.steals else debt_limit

    def _new_queue(self, number: int, matched: Matched) -> DlpmQueue:
        scope = self._scope_of_new(number)
        return DlpmQueue(number, scope, matched, self.skips, self._debt_limit, self._ageing)

    def admitted(self, number: int, item: QueuedRequest, extend_tokens: int) -> float:
        """Charge the prompt, and count the request and its size; return the client's credit before that."""
        books = self._fleet if self._fleet is not None else self._scopes[number]
        books.admitted(item.client, self.costs.extend * (item.request.prompt_tokens - extend_tokens))
        return super().admitted(number, item, extend_tokens)

    def released(self, number: int, client: ClientId) -> None:
        """Count a request out."""
        books = self._fleet if self._fleet is not None else self._scopes.get(number)
        if books is not None:
            books.released(client)

    def credited(self) -> bool:
        """Return whether any client that waits anywhere has credit."""
        return self._fleet is not None and self._fleet.credited > 0

    def passes(self, number: int, client: ClientId) -> bool:
        """Let it pass if it would be served now, with the refill that it would cause."""
        return self._scopes[number].passes(client, self._pass_limit)
