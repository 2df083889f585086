"""Invariant 4: fairness bounds on random backlogged runs, each derived where it is stated.

W_i is the service delivered to client i, w_i its weight, L_i its longest prompt, O_i its longest
output, B the places of a worker's batch. After client i was last admitted, at most B of its requests
run on a worker, so it can still be charged at most U_i = w_e * L_i + w_q * B * O_i: the prompt of
that request and the rest of every output. (This is the safe U' of the docs for one client, with
M = B * O_i.) Preempted requests go through the queue again, so what they recompute is a new
admission; cancelled ones only stop.
"""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.model import Costs
from fairlead.core.ordering import Ordering, OrderingContext, make_ordering
from tests.core.ordering_sim import Client, Sim

STEPS = 120


def clients(count: int, workers: tuple[int, ...] | None = None) -> st.SearchStrategy[list[Client]]:
    one = st.builds(
        Client,
        name=st.just(""),
        prompt=st.integers(1, 60),
        output=st.integers(1, 12),
        hits=st.sampled_from((0.0, 0.5, 1.0)),
        weight=st.sampled_from((0.5, 1.0, 1.3, 2.0, 4.0)),
        workers=st.just(workers),
    )
    lists = st.lists(one, min_size=count, max_size=count)
    return lists.map(
        lambda cs: [Client(f"c{n}{workers}", *list(vars(c).values())[1:]) for n, c in enumerate(cs)]
    )


COSTS = st.builds(Costs, st.integers(1, 3), st.integers(0, 3))
SEEDS = st.integers(0, 2**32)


def uncharged(sim: Sim, client: Client) -> int:
    """Return U_i, with the batches of every worker."""
    in_flight = sim.workers * sim.slots * client.output
    return sim.costs.extend * client.prompt + sim.costs.output * in_flight


def dlpm(costs: Costs, quantum: int, scope: str, debt_limit: int = 32, *, light: bool = False) -> Ordering:
    params: dict[str, object] = {"quantum": quantum, "scope": scope, "debt_limit": debt_limit, "light": light}
    return make_ordering("dlpm", params, OrderingContext(costs))


def shares(clients: list[Client], quantum: int) -> dict[str, Fraction]:
    """Return the weights that DLPM really gives: its quanta are whole numbers."""
    return {c.name: Fraction(max(1, round(quantum * c.weight)), quantum) for c in clients}


def assert_gaps(sim: Sim, clients: list[Client], slack: int = 0) -> None:
    """Each pair stays within slack + U_f / w_f + U_g / w_g over every interval of the run."""
    by_name = {c.name: c for c in clients}
    for (f, g), gap in sim.gaps.items():
        if f in by_name and g in by_name:
            bound = slack + sum(uncharged(sim, by_name[c]) / sim.share(c) for c in (f, g))
            assert gap.width <= bound, f"{f} and {g}: {float(gap.width)} > {float(bound)}"


@settings(max_examples=25, deadline=None)
@given(clients=clients(3), costs=COSTS, slots=st.integers(1, 4), seed=SEEDS)
def test_invariant_4_vtc_bound(clients: list[Client], costs: Costs, slots: int, seed: int) -> None:
    """|W_f/w_f - W_g/w_g| <= U_f/w_f + U_g/w_g for clients backlogged throughout, W in VTC's form.

    When f is admitted its counter is the least of all queued ones, so c_f <= c_g; until f's next
    admission c_f grows by at most U_f/w_f, and c_g does not fall. So c_f - c_g <= U_f/w_f always, and
    the same with f and g swapped; the difference therefore moves by at most the sum, and a counter
    of a queued client moves by W/w exactly.
    """
    ordering = make_ordering("vtc", {}, OrderingContext(costs))
    exact = {c.name: Fraction(2**32, round(2**32 / c.weight)) for c in clients}
    sim = Sim(ordering, clients, Random(seed), slots=slots, costs=costs, whole_prompt=True, shares=exact)
    for _ in range(STEPS):
        sim.step()
    assert_gaps(sim, clients)


@settings(max_examples=25, deadline=None)
@given(clients=clients(3), costs=COSTS, slots=st.integers(1, 4), quantum=st.integers(1, 100), seed=SEEDS)
@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("scope", ["worker", "fleet"])
def test_invariant_4_dlpm_bound(
    scope: str, light: bool, clients: list[Client], costs: Costs, slots: int, quantum: int, seed: int
) -> None:
    """|W_f/w_f - W_g/w_g| <= 2Q + U_f/w_f + U_g/w_g on one worker, for clients backlogged throughout.

    A client is only admitted with q > 0 and then charged at most U_i before its next admission, so
    q_i > -U_i; refills lift only who has q <= 0, by one quantum Q_i = Q * w_i, so q_i <= Q_i. All
    queued clients get the same number n of rounds, W_i = n * Q_i - (change of q_i), and the change
    is at most Q_i + U_i. Without refunds credit stays within these limits at every moment. With light
    credit is at most 3Q_i and the bound 4Q + U_f/w_f + U_g/w_g: docs/policies/ordering.md has the proof.
    """
    ordering = dlpm(costs, quantum, scope, light=light)
    exact = shares(clients, quantum)
    sim = Sim(ordering, clients, Random(seed), slots=slots, costs=costs, shares=exact)

    def limits() -> None:
        for client in clients:
            credit = ordering.credit(0, client.name)
            assert -uncharged(sim, client) <= credit <= exact[client.name] * quantum * (3 if light else 1)

    sim.seen = limits
    for _ in range(STEPS):
        sim.step()
    assert_gaps(sim, clients, quantum * (4 if light else 2))


@settings(max_examples=25, deadline=None)
@given(
    everywhere=clients(2),
    here=clients(1, (0,)),
    there=clients(1, (1,)),
    costs=COSTS,
    workers=st.integers(2, 4),
    slots=st.integers(1, 3),
    quantum=st.integers(1, 100),
    debt_limit=st.sampled_from((2, 5, 32)),
    seed=SEEDS,
)
@pytest.mark.parametrize("light", [False, True])
def test_invariant_4_fleet_bound(
    light: bool,
    everywhere: list[Client],
    here: list[Client],
    there: list[Client],
    costs: Costs,
    workers: int,
    slots: int,
    quantum: int,
    debt_limit: int,
    seed: int,
) -> None:
    """The same bound holds on N workers for clients backlogged on all of them, with U_i fleet-wide.

    |W_f/w_f - W_g/w_g| <= 2Q + U_f/w_f + U_g/w_g, U_i = w_e * L_i + w_q * N * B * O_i. Only what is in
    flight depends on N; Q and the prompts count once. Clients backlogged elsewhere only, which make
    workers serve without credit, do not change it. Proof in docs/policies/ordering.md: with x = q_f/Q_f
    - q_g/Q_g, f is only admitted while x > -1, by credit or as the least indebted, and only f's
    own service makes x smaller. Debt stays within the limit for everybody. With light credit is at most
    3Q_i, so x > -3, and the bound has 6Q.
    """
    ordering = dlpm(costs, quantum, "fleet", debt_limit, light=light)
    everyone = [*everywhere, *here, *there]
    exact = shares(everyone, quantum)
    sim = Sim(ordering, everyone, Random(seed), workers=workers, slots=slots, costs=costs, shares=exact)

    def limits() -> None:
        for client in everyone:
            credit = ordering.credit(0, client.name)
            own = exact[client.name] * quantum
            assert -debt_limit * own - uncharged(sim, client) <= credit <= own * (3 if light else 1)

    sim.seen = limits
    # workers beyond the first two have only the clients that are everywhere
    for _ in range(STEPS):
        sim.step()
    assert_gaps(sim, everywhere, quantum * (6 if light else 2))


def test_a_fleet_account_stops_a_client_from_collecting_a_quantum_on_every_worker() -> None:
    """One client queues on four workers, four others on one each: shared books halve its advantage.

    With deficits per worker the spread-out client gets half of every worker, four times what each
    other gets. With one account it gets no more than the others do, within the bound of the debt
    that work conservation lets it build up.
    """

    def ratio(scope: str) -> float:
        spread = Client("spread", 20, 4, weight=1.0)
        local = [Client(f"local{n}", 20, 4, workers=(n,)) for n in range(4)]
        sim = Sim(dlpm(Costs(), 50, scope), [spread, *local], Random(1), workers=4)
        for _ in range(400):
            sim.step()
        return sim.service["spread"] / max(sim.service[c.name] for c in local)

    assert ratio("worker") > 3
    assert ratio("fleet") < 1.2


@settings(max_examples=20, deadline=None)
@given(clients=clients(3), seed=SEEDS, name=st.sampled_from(["fcfs", "lpm", "vtc", "dlpm"]))
def test_invariant_5_same_events_give_the_same_order(clients: list[Client], seed: int, name: str) -> None:
    """Two runs of the same events agree in every pick."""

    def run() -> list[tuple[str, int]]:
        picks: list[tuple[str, int]] = []
        sim = Sim(make_ordering(name, {}, OrderingContext()), clients, Random(seed), workers=2)
        sim.seen = lambda: picks.append((repr(sim.service), sim.seq))
        for _ in range(20):
            sim.step()
        return picks

    assert run() == run()
