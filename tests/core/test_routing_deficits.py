"""D2LPM, fair LMetric and the deficits behind them, by examples worked out by hand."""

from math import inf

import pytest

from fairlead.core.routing import deficits
from fairlead.core.routing.deficits import WorkerDeficits

from .routing_fleet import PlainFleet, chosen, match, place, policy, request

HOUR = 3_600_000_000


def test_the_longest_match_is_followed_while_the_client_has_credit_there():
    """Qw = 1000: three requests of 400 extend tokens leave 1000-1200 = -200 on w1, the fourth goes on."""
    fleet, d2lpm = PlainFleet(3), policy("d2lpm", quantum=1_000)
    m = match(fleet, [0, 600, 300])
    assert [place(d2lpm, fleet, request(1_000), m) for _ in range(3)] == [1, 1, 1]
    assert d2lpm.books.left("ann", 1) == -200
    choice = d2lpm.choose(request(1_000), m, fleet, 0)
    assert (choice.slot, choice.branch) == (2, "d2lpm: no holder with credit")


def test_another_client_has_credit_of_its_own():
    fleet, d2lpm = PlainFleet(2), policy("d2lpm", quantum=100)
    m = match(fleet, [600, 0])
    assert place(d2lpm, fleet, request(1_000, client="ann"), m) == 0
    assert place(d2lpm, fleet, request(1_000, client="ann"), m) == 1
    assert place(d2lpm, fleet, request(1_000, client="bob"), m) == 0


def test_output_is_charged_twice_an_extend_token():
    fleet, d2lpm = PlainFleet(2), policy("d2lpm", quantum=1_000)
    place(d2lpm, fleet, request(1_000), match(fleet, [600, 0]))
    d2lpm.decoded("ann", 0, 300)
    assert d2lpm.books.left("ann", 0) == 1_000 - 400 - 600
    assert chosen(d2lpm, fleet, request(1_000), match(fleet, [600, 0])) == 1


def test_the_whole_prompt_is_charged_if_asked():
    fleet, d2lpm = PlainFleet(2), policy("d2lpm", quantum=5_000, charge="prompt")
    place(d2lpm, fleet, request(1_000), match(fleet, [600, 0]))
    assert d2lpm.books.left("ann", 0) == 4_000
    d2lpm.corrected("ann", 0, 100, 7)
    assert d2lpm.books.left("ann", 0) == 3_900
    d2lpm.unassigned(request(1_000), 0, 400, 0)
    assert d2lpm.books.left("ann", 0) == 4_900


def test_among_equals_the_least_queued_then_the_smallest_batch_then_rotation():
    d2lpm = policy("d2lpm")
    fleet = PlainFleet(3, batch_size=[1, 5, 9], queued=[1, 0, 0])
    assert chosen(d2lpm, fleet, request(), match(fleet, [500, 500, 500])) == 1
    fleet = PlainFleet(3)
    assert [place(d2lpm, fleet, request(), match(fleet)) for _ in range(4)] == [0, 1, 2, 0]


def test_a_refill_is_as_many_rounds_as_needed_for_all_workers():
    """-25 and -7 with Qw 10: one round gives -15 and 3."""
    books = WorkerDeficits(10, HOUR)
    books.assigned("ann", 0, 35, 0)
    books.assigned("ann", 1, 17, 0)
    assert books.spent("ann", [0, 1]) == {0}
    assert (books.left("ann", 0), books.left("ann", 1)) == (-15, 3)


@pytest.mark.parametrize(("left", "after"), [(0, 10), (-1, 9), (-9, 1), (-10, 10), (-11, 9), (-105, 5)])
def test_the_closed_form_stops_at_the_first_round_above_zero(left, after):
    books = WorkerDeficits(10, HOUR)
    books.assigned("ann", 0, 10 - left, 0)
    assert not books.spent("ann", [0])
    assert books.left("ann", 0) == after


def test_one_worker_that_may_take_work_is_enough_to_refill_and_the_rest_keep_what_they_have():
    """w0 is out of credit and w1, with all of it, is full: w0 is refilled and w1 gets no more."""
    fleet, d2lpm = PlainFleet(2), policy("d2lpm", quantum=100)
    fleet.candidates = [0]
    assert [place(d2lpm, fleet, request(1_000), match(fleet)) for _ in range(3)] == [0, 0, 0]
    assert d2lpm.books.left("ann", 1) == 100


def test_credit_never_exceeds_a_quantum():
    books = WorkerDeficits(10, HOUR)
    books.assigned("ann", 0, 25, 0)
    books.spent("ann", [0])
    books.charge("ann", 0, -1_000)
    assert books.left("ann", 0) == 10
    books.check()


def test_weights_scale_the_quantum():
    books = WorkerDeficits(10, HOUR)
    books.set_weight("ann", 2.5)
    assert books.left("ann", 0) == 25
    books.assigned("ann", 0, 5, 0)
    books.set_weight("ann", 0.01)
    assert books.left("ann", 1) == 1
    books.set_weight("ann", 1)
    assert books.left("ann", 1) == 10
    books.check()
    with pytest.raises(ValueError, match="the weight of 'ann' must be above 0"):
        books.set_weight("ann", 0)


def test_a_worker_that_joins_or_takes_over_a_slot_has_a_whole_quantum():
    fleet, d2lpm = PlainFleet(2), policy("d2lpm", quantum=100)
    m = match(fleet, [600, 600])
    assert [place(d2lpm, fleet, request(1_000), m) for _ in range(2)] == [0, 1]
    d2lpm.slot_reset(1)
    assert (d2lpm.books.left("ann", 0), d2lpm.books.left("ann", 1)) == (-300, 100)
    assert chosen(d2lpm, fleet, request(1_000), m) == 1
    joined = PlainFleet(3)
    place(d2lpm, joined, request(1_000), match(joined, [600, 600, 0]))
    assert chosen(d2lpm, joined, request(1_000), match(joined, [600, 600, 0])) == 2


def test_an_idle_client_is_forgotten_unless_it_owes():
    books = WorkerDeficits(10, HOUR)
    books.assigned("owes", 0, 11, 0)
    books.assigned("even", 0, 10, 0)
    books.assigned("recent", 0, 10, 5)
    books.tick(HOUR - 1)
    assert set(books.accounts) == {"owes", "even", "recent"}
    books.tick(HOUR)
    assert set(books.accounts) == {"owes", "recent"}
    books.charge("owes", 0, -1)
    books.tick(2 * HOUR)
    assert not books.accounts


def test_accounts_are_bounded(monkeypatch):
    monkeypatch.setattr(deficits, "MAX_CLIENTS", 3)
    books = WorkerDeficits(10, HOUR)
    for name in ("a", "b", "c", "a", "d"):
        books.assigned(name, 0, 100, 0)
        books.check()
    assert set(books.accounts) == {"a", "c", "d"}
    books.charge("b", 0, 100)
    assert set(books.accounts) == {"a", "c", "d"}


def test_fair_lmetric_takes_the_least_product_where_there_is_credit():
    """w0 400*1, w1 1000*1, w2 (100+1000)*1; after w0 is spent, w1 is the least with credit."""
    fleet, fair = PlainFleet(3, pending_prefill_tokens=[0, 0, 100]), policy("fair_lmetric", quantum=300)
    m = match(fleet, [600, 0, 0])
    choice = fair.choose(request(1_000), m, fleet, 0)
    assert (choice.slot, list(choice.scores)) == (0, [400, 1_000, 1_100])
    place(fair, fleet, request(1_000), m)
    choice = fair.choose(request(1_000), m, fleet, 0)
    assert (choice.slot, list(choice.scores)) == (1, [inf, 1_000, 1_100])
    assert chosen(fair, fleet, request(1_000, client="bob"), m) == 0
