"""Expected output: a client's own, else the median over clients; nobody bends another's reservations."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.outputs import FIRST_GUESS, OutputLengths

answers = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


def test_a_client_is_known_by_its_own_answers() -> None:
    lengths = OutputLengths(10)
    assert lengths.expected("ann") == FIRST_GUESS
    for _ in range(200):
        lengths.learn("ann", 1_000)
        lengths.learn("bob", 10)
    assert abs(lengths.expected("ann") - 1_000) < 10
    assert abs(lengths.expected("bob") - 10) < 2


def test_the_first_answer_is_not_believed_alone() -> None:
    lengths = OutputLengths(10)
    lengths.learn("ann", 1_128)
    assert lengths.expected("ann") == 628


@given(mine=answers, others=st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0, 1e6)), max_size=60))
def test_what_others_answer_changes_nothing_for_a_client_that_has_answered(
    mine: list[float], others: list[tuple[str, float]]
) -> None:
    alone, beside = OutputLengths(10), OutputLengths(10)
    alone.learn("ann", mine[0])
    beside.learn("ann", mine[0])
    for at, tokens in enumerate(mine[1:]):
        alone.learn("ann", tokens)
        beside.learn("ann", tokens)
        for client, length in others[at::60]:
            beside.learn(client, length)
        beside.check()
    assert beside.expected("ann") == alone.expected("ann")


@given(flood=answers, honest=st.floats(1, 1e5))
def test_one_client_of_four_does_not_move_what_a_new_one_is_expected_to_need(
    flood: list[float], honest: float
) -> None:
    """One voice a client: the median stays among the honest, to within its resolution of a fifth."""
    lengths = OutputLengths(100)
    for client in "abc":
        for _ in range(400):
            lengths.learn(client, honest)
    for tokens in flood:
        lengths.learn("mallory", tokens)
    low, high = (f(lengths.expected(c) for c in "abc") for f in (min, max))
    assert (low + 1) * 0.83 <= lengths.expected("new") + 1 <= (high + 1) * 1.2


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1e5)), max_size=100))
def test_memory_is_bounded(told: list[tuple[int, float]]) -> None:
    lengths = OutputLengths(5)
    for client, tokens in told:
        lengths.learn(f"c{client}", tokens)
        lengths.check()
