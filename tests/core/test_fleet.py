"""What waits for a worker, and what of it goes before one more request."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.fleet import FleetState
from fairlead.core.model import Limits
from fairlead.core.outputs import OutputLengths


def fleet_of(waiting: list[tuple[str, int, int]], *, in_turns: bool) -> FleetState:
    """``waiting``: client, sequences and extend tokens of each request that waits."""
    fleet = FleetState(lambda _: (0, 0, 0), OutputLengths(10))
    fleet.in_turns = in_turns
    slot = fleet.join("w")
    fleet.set_limits(slot, Limits())
    for client, sequences, tokens in waiting:
        fleet.add_queued(slot, sequences)
        fleet.waits(slot, client, sequences, tokens)
    return fleet


WAITING = [("flood", 1, 1_000)] * 50 + [("ann", 1, 300), ("bob", 1, 200)]


def test_a_flood_counts_as_much_as_the_client_itself_where_clients_take_turns() -> None:
    fleet = fleet_of(WAITING, in_turns=True)
    # Two others: each gets about what bob gets, his one request and 200 + 100 tokens.
    assert fleet.ahead(0, "bob", 1, 100) == (1 + 2 * 2, 200 + 2 * 300)
    assert fleet.ahead(0, "new", 1, 100) == (3, 300)
    assert fleet.ahead(0, "new", 5, 100) == (3 * 5, 300), "of each at most as many sequences"
    # The flood's own next request waits behind all its others; of the rest there is no more than 500.
    assert fleet.ahead(0, "flood", 1, 1_000) == (52, 50_500)


def test_everybody_counts_where_they_do_not() -> None:
    assert fleet_of(WAITING, in_turns=False).ahead(0, "new", 1, 100) == (52, 50_500)


@settings(max_examples=100, deadline=None)
@given(
    waiting=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 50)), max_size=12),
    gone=st.data(),
    tokens=st.integers(0, 50),
)
def test_what_is_ahead_lies_between_the_own_and_all(waiting, gone, tokens) -> None:
    fleet = fleet_of(waiting, in_turns=True)
    left = list(waiting)
    for _ in range(gone.draw(st.integers(0, len(waiting)))):
        client, sequences, amount = left.pop(gone.draw(st.integers(0, len(left) - 1)))
        fleet.add_queued(0, -sequences)
        fleet.waits_no_more(0, client, sequences, amount)
    all_sequences = sum(sequences for _, sequences, _ in left)
    assert fleet.waiting == fleet.queued[0] == all_sequences
    total, own = sum(amount for *_, amount in left), Counter()
    for client, _, amount in left:
        own[client] += amount
    assert fleet.waiting_tokens(0) == total
    for client in "abcd":
        ahead, before = fleet.ahead(0, client, 1, tokens)
        assert sum(sequences for c, sequences, _ in left if c == client) <= ahead <= all_sequences
        others = {c for c, *_ in left} - {client}
        fair = own[client] + sum(min(own[c], own[client] + tokens) for c in others)
        assert fair <= before <= total, "never less than in turns of equal service"
