"""The ordering policies on examples computed by hand from their definitions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fairlead.core.model import Costs, Request
from fairlead.core.ordering import ORDERINGS, Ordering, OrderingContext, make_ordering
from fairlead.core.ordering import clients as idle
from fairlead.core.ordering.base import Queue, QueuedRequest
from fairlead.core.params import PolicyError

HOUR_US = 3_600_000_000
NAMES = ORDERINGS.names()


def make(name: str, costs: Costs | None = None, **params: object) -> Ordering:
    return make_ordering(name, params, OrderingContext(costs))


class Bench:
    """Queues whose workers cache the keys that the test says."""

    def __init__(self, ordering: Ordering, workers: int = 1) -> None:
        self.ordering = ordering
        self.cached: list[set[int]] = [set() for _ in range(workers)]
        self.queues: list[Queue] = [self.queue(n) for n in range(workers)]
        self.seq = 0

    def queue(self, number: int) -> Queue:
        return self.ordering.make_queue(number, lambda keys: self.matched(number, keys))

    def matched(self, number: int, keys: Sequence[int]) -> int:
        return next((n for n, k in enumerate(keys) if k not in self.cached[number]), len(keys))

    def push(self, client: str, prompt: int, keys: Sequence[int] = (), number: int = 0) -> QueuedRequest:
        item = QueuedRequest(Request(self.seq, client, prompt, keys, 10), self.seq)
        self.seq += 1
        self.queues[number].push(item, self.matched(number, keys))
        return item

    def admit(self, number: int = 0) -> str | None:
        """Admit the head, which ends at once, and return its client, in the form that tests compare."""
        item = self.queues[number].head()
        if item is None:
            return None
        self.queues[number].discard(item)
        self.ordering.admitted(number, item, item.request.prompt_tokens - item.matched_tokens)
        self.ordering.released(number, item.client)
        self.ordering.check()
        return item.client

    def credits(self, clients: str, number: int = 0) -> list[float]:
        return [self.ordering.credit(number, client) for client in clients]


def test_fcfs_keeps_arrival_order_and_the_place_of_one_that_comes_back() -> None:
    bench = Bench(make("fcfs"))
    first, second = bench.push("a", 1), bench.push("b", 1)
    bench.queues[0].discard(first)
    assert bench.queues[0].head() is second
    bench.queues[0].push(QueuedRequest(first.request, first.seq), 0)
    assert bench.admit() == "a"


def test_lpm_takes_the_longest_match_in_tokens_then_arrival() -> None:
    bench = Bench(make("lpm"))
    bench.cached[0] = {1, 2, 3, 11}
    bench.push("cold", 50, (91, 92))
    bench.push("one block", 50, (11, 12))
    bench.push("three blocks", 50, (1, 2, 3, 4))
    bench.push("three again", 50, (1, 2, 3, 5))
    bench.push("whole prompt", 10, (1,))  # 9 of 10 tokens: the last one is always computed
    order = [bench.admit() for _ in range(5)]
    assert order == ["three blocks", "three again", "one block", "whole prompt", "cold"]


def test_lpm_follows_the_cache() -> None:
    bench = Bench(make("lpm"))
    early, late = bench.push("a", 100, (1, 2, 3)), bench.push("b", 100, (1, 7))
    bench.cached[0] = {1, 7}
    bench.queues[0].cache_stored([1])
    assert (early.matched, late.matched) == (1, 2)
    assert bench.queues[0].head() is late
    bench.cached[0] = {1}
    bench.queues[0].cache_evicted([7])
    assert bench.queues[0].head() is early


def test_vtc_serves_the_smallest_counter_and_charges_the_whole_prompt() -> None:
    """a pays 10 a prompt, cached or not, and 20 for its output; b 40. Equal counters go by arrival."""
    bench = Bench(make("vtc"))
    bench.cached[0] = {1}
    for _ in range(4):
        bench.push("a", 10, (1,))
    bench.push("b", 40)
    bench.push("b", 40)
    assert [bench.admit() for _ in range(2)] == ["a", "b"]
    bench.ordering.decoded(0, "a", 10)
    assert bench.credits("ab") == [-30, -40]
    assert [bench.admit() for _ in range(3)] == ["a", "a", "b"]


def test_vtc_lifts_who_comes_to_the_smallest_counter_of_those_queued() -> None:
    bench = Bench(make("vtc"))
    for client in "aabb":
        bench.push(client, 10)
    bench.ordering.decoded(0, "a", 50)
    bench.ordering.decoded(0, "b", 30)
    bench.push("c", 10)
    assert bench.credits("abc") == [-100, -60, -60]


def test_vtc_lifts_who_comes_to_an_empty_queue_to_who_left_last() -> None:
    bench = Bench(make("vtc"))
    bench.push("a", 10)
    bench.push("b", 25)
    assert [bench.admit(), bench.admit()] == ["a", "b"]
    bench.ordering.decoded(0, "b", 5)
    bench.push("c", 10)
    assert bench.credits("abc") == [-10, -35, -35]


def test_vtc_prices_service_by_weight() -> None:
    """Weight 4 pays a quarter: four prompts of it go for each one of the other's."""
    bench = Bench(make("vtc"))
    bench.ordering.set_weight("a", 4)
    for _ in range(8):
        bench.push("a", 10)
    bench.push("b", 10)
    bench.push("b", 10)
    assert "".join(str(bench.admit()) for _ in range(9)) == "abaaaabaaa"[:9]
    bench.ordering.decoded(0, "a", 10)
    assert bench.credits("b") == [-20]


def test_dlpm_takes_the_longest_match_until_the_credit_is_spent() -> None:
    """Q = 100. a's hot requests cost 10 each, b's cold one 60: a runs out after ten, then b goes.

    Both start at 0 and get 100. a: 100 - 10 * 10 = 0, so the gate closes. b: 100 - 60 = 40.
    """
    bench = Bench(make("dlpm", quantum=100, light=False))
    bench.cached[0] = {1}
    bench.push("b", 60)
    bench.push("b", 60)
    bench.push("b", 60)
    for _ in range(12):
        bench.push("a", 20, (1,))
    assert "".join(str(bench.admit()) for _ in range(10)) == "a" * 10
    assert bench.credits("ab") == [0, 100]
    assert [bench.admit(), bench.admit()] == ["b", "b"]  # 40 left is enough: the debt is repaid later
    assert bench.credits("ab") == [0, -20]
    assert bench.admit() == "a"  # nobody has credit: both get 100
    assert bench.credits("ab") == [90, 80]


def test_dlpm_refills_in_rounds_until_one_client_is_positive() -> None:
    """Debts of 250 and 120 at Q = 100: two rounds make the second 80, the first waits at -50."""
    bench = Bench(make("dlpm", quantum=100, light=False))
    bench.ordering.decoded(0, "a", 125)
    bench.ordering.decoded(0, "b", 60)
    bench.push("a", 10)
    bench.push("b", 10)
    assert bench.credits("ab") == [-250, -120]
    assert bench.queues[0].head().client == "b"
    assert bench.credits("ab") == [-50, 80]


def test_dlpm_refills_by_weight() -> None:
    """Weights 1 and 2.5 at Q = 10 and debt 30 each: two rounds leave -10 and 20."""
    bench = Bench(make("dlpm", quantum=10, light=False))
    bench.ordering.set_weight("b", 2.5)
    for client in "ab":
        bench.ordering.decoded(0, client, 15)
        bench.push(client, 1)
    assert bench.queues[0].head().client == "b"
    assert bench.credits("ab") == [-10, 20]


def test_in_the_papers_dlpm_idle_clients_bank_nothing_and_keep_their_debts() -> None:
    """While a is idle b is refilled many times; a comes back with what it left with."""
    bench = Bench(make("dlpm", quantum=10, light=False))
    bench.ordering.decoded(0, "a", 20)
    for _ in range(50):
        bench.push("b", 10)
        assert bench.admit() == "b"
    assert bench.credits("a") == [-40]
    bench.push("a", 10)
    bench.push("b", 10)
    assert bench.queues[0].head().client == "b"


def test_dlpm_starts_a_client_with_a_quantum_and_refills_absent_ones_up_to_two() -> None:
    """Q = 10. a owes 30 and leaves. Four rounds pass for b, which pays 10 in each; then two for a to be full.

    a: 10 - 40 = -30, then 0, 10 and 20 after three, four and five rounds; a sixth gives nothing.
    """
    bench = Bench(make("dlpm", quantum=10))
    bench.ordering.decoded(0, "a", 20)
    bench.ordering.decoded(0, "b", 5)  # b is at 0
    seen = []
    for _ in range(6):
        bench.push("b", 10)
        assert bench.admit() == "b"
        seen.append(bench.credits("a")[0])
    assert seen == [-20, -10, 0, 10, 20, 20]


def test_dlpm_lets_newly_active_clients_go_first_while_they_have_credit() -> None:
    """Q = 20. a waits with ten requests of 10; b comes with three, goes first, and is out after two."""
    bench = Bench(make("dlpm", quantum=20))
    for _ in range(10):
        bench.push("a", 10)
    assert [bench.admit(), bench.admit()] == ["a", "a"]  # a was newly active too; its credit is spent
    for _ in range(3):
        bench.push("b", 10)
    assert [bench.admit() for _ in range(4)] == ["b", "b", "a", "a"]
    assert bench.credits("ab") == [0, 0]
    assert bench.admit() == "a"  # a round passed for both
    assert bench.credits("ab") == [10, 20]


def test_a_stream_of_newly_active_clients_leaves_a_third_to_others() -> None:
    """Q = 20. Each of many new names sends one request of 10, and one of them always waits beside a.

    They go first for a quantum, then others have a turn. When a has spent its credit, two clients are active:
    a round is due for each 40 that were served. Each new name starts with a quantum, so a gets a third.
    """
    bench = Bench(make("dlpm", quantum=20))
    for _ in range(50):
        bench.push("a", 10)
    assert [bench.admit(), bench.admit()] == ["a", "a"]
    order = ""
    bench.push("n", 10)
    for n in range(60):
        order += bench.admit()[0]
        if order[-1] == "n":
            bench.push(f"n{n}", 10)
    assert order.startswith("nnan")
    assert 19 <= order.count("a") <= 33, order


def test_the_quantum_follows_the_requests_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of 100 prompt tokens, half cached, and 25 output tokens cost 150; four of them 600: 512.

    When they become ten times as large, four cost 6,000: 4,096. Credit stays as it is at the change.
    """
    bench = Bench(make("dlpm", turn=4))
    bench.cached[0] = set(range(1000))
    for size, quantum in ((1, 512), (10, 4096)):
        for n in range(300):
            client = "ab"[n % 2]
            bench.push(client, 100 * size, range(5 * size))
            assert bench.admit() == client
            bench.ordering.decoded(0, client, 25 * size)
        assert bench.ordering._fleet.quantum == quantum
        assert {a.quantum for a in bench.ordering._fleet.by_client.values()} == {quantum}


def test_one_client_with_huge_requests_does_not_change_the_quantum() -> None:
    bench = Bench(make("dlpm", turn=4))
    for n in range(600):
        client = "abc"[n % 3]
        bench.push(client, 100_000 if client == "c" else 150)
        bench.admit()
    assert bench.ordering._fleet.quantum == 512


def test_in_the_papers_dlpm_running_clients_with_credit_do_not_hold_up_a_refill() -> None:
    bench = Bench(make("dlpm", quantum=10, light=False))
    bench.push("a", 1)
    assert bench.admit() == "a"  # runs, with credit 9 and nothing queued
    bench.ordering.decoded(0, "b", 50)
    bench.push("b", 1)
    assert bench.admit() == "b"


def test_dlpm_cuts_credit_to_a_smaller_weight_and_keeps_debts() -> None:
    """a has one quantum, which half the weight may have as well: two of its own; a quarter may not."""
    bench = Bench(make("dlpm", quantum=100))
    bench.push("a", 1)
    assert bench.queues[0].head()
    bench.ordering.decoded(0, "b", 100)
    for weight, left in ((0.5, [100, -100]), (0.25, [50, -100])):
        for client in "ab":
            bench.ordering.set_weight(client, weight)
        assert bench.credits("ab") == left


def test_dlpm_scope_worker_keeps_a_deficit_a_queue_and_fleet_one_for_all() -> None:
    for scope, there in (("worker", 0.0), ("fleet", 90.0)):
        bench = Bench(make("dlpm", quantum=100, scope=scope), workers=2)
        bench.push("a", 10)
        assert bench.admit() == "a"
        assert bench.credits("a", number=0) == [90]
        assert bench.credits("a", number=1) == [there]


def test_fleet_serves_the_least_indebted_while_others_elsewhere_have_credit() -> None:
    """c has credit on worker 1, so worker 0 gets no refill; its least debt over weight goes.

    a owes 160 at weight 1, which is one quantum and more; b 190 at weight 2, which is less than one.
    """
    bench = Bench(make("dlpm", quantum=100, scope="fleet", light=False), workers=2)
    bench.ordering.set_weight("b", 2)
    bench.push("c", 1, number=1)
    assert bench.queues[1].head().client == "c"
    bench.ordering.decoded(0, "a", 80)
    bench.ordering.decoded(0, "b", 95)
    bench.push("a", 50)
    bench.push("b", 50)
    assert bench.admit(0) == "b"
    assert bench.credits("abc") == [-160, -240, 100]
    bench.push("b", 50)
    assert bench.admit(0) == "a"  # both owe one whole quantum now: the earlier goes


def test_fleet_forgives_all_clients_of_a_worker_alike_when_all_owe_the_limit() -> None:
    """Q = 10, limit 4 quanta: a owes 75 and b 63, so both get 6 - 2 = 4 quanta. c elsewhere gets none."""
    bench = Bench(make("dlpm", Costs(1, 1), quantum=10, scope="fleet", debt_limit=4, light=False), workers=2)
    bench.push("c", 1, number=1)
    assert bench.queues[1].head().client == "c"
    bench.ordering.decoded(0, "a", 75)
    bench.ordering.decoded(0, "b", 63)
    bench.push("a", 1)
    bench.push("b", 1)
    assert bench.queues[0].head().client == "b"
    assert bench.credits("abc") == [-35, -23, 10]


@pytest.mark.parametrize("name", NAMES)
def test_when_the_next_does_not_fit_stop_waits_and_skip_passes_over(name: str) -> None:
    for on_no_fit, chosen in (("stop", None), ("skip", "b")):
        bench = Bench(make(name, on_no_fit=on_no_fit, **({"ties": "arrival"} if name == "dlpm" else {})))
        bench.push("a", 100)
        bench.push("b", 10)
        found = bench.queues[0].head(lambda item: item.request.prompt_tokens < 50)
        assert (found and found.client) == chosen
        assert bench.queues[0].head(lambda item: False) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_queue_refuses_to_discard_what_it_does_not_hold(name: str) -> None:
    bench = Bench(make(name))
    item = bench.push("a", 1)
    with pytest.raises(KeyError):
        bench.queues[0].discard(QueuedRequest(item.request, item.seq))
    bench.queues[0].discard(item)
    with pytest.raises(KeyError):
        bench.queues[0].discard(item)
    assert bench.admit() is None


@pytest.mark.parametrize("name", NAMES)
def test_queues_are_made_once_and_dropped_empty(name: str) -> None:
    bench = Bench(make(name), workers=2)
    with pytest.raises(ValueError, match="there is a queue 1 already"):
        bench.queue(1)
    item = bench.push("a", 1, number=1)
    with pytest.raises(ValueError, match="queue 1 is not empty"):
        bench.ordering.drop_queue(1)
    bench.queues[1].discard(item)
    bench.ordering.drop_queue(1)
    bench.ordering.decoded(1, "a", 3)  # the last words of a request whose worker is gone
    bench.ordering.check()
    with pytest.raises(KeyError):
        bench.ordering.drop_queue(1)
    assert len(bench.queue(1)) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_numbers_above_zero(name: str, weight: float) -> None:
    with pytest.raises(ValueError, match="the weight of client 'a' must be a number above 0"):
        make(name).set_weight("a", weight)


def test_parameters_are_checked() -> None:
    with pytest.raises(PolicyError, match="did you mean 'quantum'"):
        make("dlpm", quantom=1)
    with pytest.raises(PolicyError, match="takes one of fleet, worker"):
        make("dlpm", scope="planet")


@pytest.mark.parametrize("name", ["dlpm", "vtc"])
def test_idle_clients_are_forgotten_after_an_hour_unless_that_would_help_them(name: str) -> None:
    """Who has credit (dlpm), or a counter no higher than a newcomer's (vtc), goes; who owes stays."""
    bench = Bench(make(name))
    bench.push("queued", 10)
    bench.push("idle", 10)
    while bench.queues[0].head().client == "queued":
        bench.admit()
        bench.push("queued", 10)
    assert bench.admit() == "idle"
    bench.ordering.decoded(0, "debtor", 10_000)
    books = bench.ordering._scopes[0].by_client
    known = []
    for minutes in (0, 59, 61, 125, 190):
        bench.ordering.tick(1 + minutes * HOUR_US // 60)
        bench.ordering.check()
        known.append(sorted(books))
    assert known[1] == ["debtor", "idle", "queued"]
    assert known[-1] == ["debtor", "queued"]


def test_the_number_of_idle_clients_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "IDLE_CLIENTS", 10)
    ordering = make("dlpm", light=False)
    queue = ordering.make_queue(0, lambda keys: 0)
    queue.push(QueuedRequest(Request(0, "queued", 1), 0), 0)
    for n in range(100):
        ordering.decoded(0, f"c{n}", 1)
        ordering.check()
    assert [ordering.credit(0, c) for c in ("c89", "c90", "c99", "queued")] == [0, -2, -2, 0]


def test_heaps_stay_within_a_constant_of_what_waits() -> None:
    """A thousand matches that come and go, and clients that come and go, leave no trail."""
    bench = Bench(make("dlpm", quantum=10))
    for n in range(4):
        bench.push("ab"[n % 2], 100, (1, n + 2))
    for n in range(1000):
        bench.cached[0] = {1} if n % 2 else set()
        (bench.queues[0].cache_stored if n % 2 else bench.queues[0].cache_evicted)([1])
        gone = bench.push(f"c{n}", 10)
        assert bench.queues[0].head() is not None
        bench.queues[0].discard(gone)
    bench.ordering.check()
    queue = bench.queues[0]
    sizes = [
        queue._entries,
        len(bench.ordering._fleet._rounds),
        *(len(x._heap) for x in queue._lanes.values()),
    ]
    assert max(sizes) < 100
