"""k-LPM, PLAS and deficit round robin: examples computed by hand, and literal versions of themselves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fairlead
from fairlead.core.dispatcher import Settings
from fairlead.core.events import Arrived, Cancelled, Finished, FirstToken, WorkerUp
from fairlead.core.model import Costs, Limits, Request
from fairlead.core.ordering import OrderingContext, make_ordering
from fairlead.core.ordering.base import QueuedRequest
from fairlead.core.params import PolicyError
from fairlead.testing import check_dispatcher
from tests.core import driver
from tests.core.ordering_naive import NaiveQueue
from tests.core.rivals_naive import NaiveDrr, NaiveKLpm, NaivePlas
from tests.core.test_ordering_differential import OPS, QUEUES, World
from tests.core.test_ordering_examples import Bench, make

HOUR_US = 3_600_000_000


def call(bench: Bench, session: str, prompt: int = 10, client: str = "a", number: int = 0) -> QueuedRequest:
    """Queue a call of a program."""
    item = QueuedRequest(Request(bench.seq, client, prompt, session=session), bench.seq)
    bench.seq += 1
    bench.queues[number].push(item, 0)
    return item


def run(bench: Bench, number: int = 0) -> QueuedRequest:
    """Admit the head, all of whose prompt is computed."""
    item = bench.queues[number].head()
    assert item is not None
    bench.queues[number].discard(item)
    bench.ordering.admitted(number, item, item.request.prompt_tokens)
    bench.ordering.check()
    return item


# ---------------------------------------------------------------------- k-LPM


def test_k_lpm_takes_the_oldest_then_two_by_match_then_the_oldest() -> None:
    """k = 3. Of the cold and the warm, the cold come at places 1, 4 and 7 only because they are older."""
    bench = Bench(make("k_lpm", k=3))
    bench.cached[0] = {1, 2}
    for client, keys in (
        ("c1", (91,)),
        ("c2", (92,)),
        ("c3", (93,)),
        ("w1", (1,)),
        ("w2", (1, 2)),
        ("w3", (1,)),
    ):
        bench.push(client, 50, keys)
    assert [bench.admit() for _ in range(6)] == ["c1", "w2", "w1", "c2", "w3", "c3"]


def test_k_of_1_is_fcfs_and_a_large_k_is_lpm_after_the_first() -> None:
    for k, expected in ((1, ["c1", "c2", "w1", "w2"]), (1_000_000, ["c1", "w2", "w1", "c2"])):
        bench = Bench(make("k_lpm", k=k))
        bench.cached[0] = {1, 2}
        for client, keys in (("c1", (91,)), ("c2", (92,)), ("w1", (1,)), ("w2", (1, 2))):
            bench.push(client, 50, keys)
        assert [bench.admit() for _ in range(4)] == expected


def test_k_lpm_a_place_in_the_round_is_used_by_an_admission_only() -> None:
    """A cancel uses none, and asking uses none; each worker has rounds of its own, also while it is empty."""
    bench = Bench(make("k_lpm", k=2), workers=2)
    bench.cached[0] = {1}
    old, cold = bench.push("old", 50, (91,)), bench.push("cold", 50, (92,))
    warm = bench.push("warm", 50, (1,))
    assert bench.queues[0].head() is old
    assert bench.queues[0].head() is old
    bench.queues[0].discard(old)
    assert bench.queues[0].head() is cold, "still the oldest's place"
    assert bench.admit() == "cold"
    assert bench.queues[0].head() is warm
    assert bench.admit() == "warm"
    assert bench.push("x", 50, (91,), number=1) is bench.queues[1].head()
    assert bench.admit(1) == "x"
    bench.push("cold", 50, (93,), number=1)
    bench.cached[1] = {1}
    bench.push("warm", 50, (1,), number=1)
    assert bench.admit(1) == "warm", "the round went on while nothing waited"


def test_k_lpm_follows_the_cache() -> None:
    bench = Bench(make("k_lpm", k=2))
    for client, keys in (("first", (91,)), ("a", (1, 2)), ("b", (5,))):
        bench.push(client, 50, keys)
    assert bench.admit() == "first"
    bench.cached[0] = {5}
    bench.queues[0].cache_stored([5])
    assert bench.queues[0].head().client == "b"
    bench.cached[0] = {1}
    bench.queues[0].cache_stored([1])
    bench.queues[0].cache_evicted([5])
    assert bench.admit() == "a"


def test_k_lpm_with_skip_the_oldest_that_fits_has_the_oldests_place() -> None:
    bench = Bench(make("k_lpm", k=2, on_no_fit="skip"))
    bench.push("large", 100)
    small = bench.push("small", 10)
    assert bench.queues[0].head(lambda item: item.request.prompt_tokens < 50) is small
    stopping = Bench(make("k_lpm", k=2))
    stopping.push("large", 100)
    stopping.push("small", 10)
    assert stopping.queues[0].head(lambda item: item.request.prompt_tokens < 50) is None


def test_k_lpm_a_request_that_finds_an_idle_worker_uses_a_place() -> None:
    """The dispatcher sends it without queueing it; it is admitted all the same."""
    dispatcher = driver.make_dispatcher("round_robin", "k_lpm", ordering_params={"k": 2})
    dispatcher.step(WorkerUp(0, "w0", Limits(max_num_seqs=1)))
    dispatcher.step(Arrived(1, Request(1, "a", 50, (1, 2))))
    dispatcher.step(Arrived(2, Request(2, "cold", 50, (91, 92))))
    dispatcher.step(Arrived(3, Request(3, "warm", 50, (1, 2))))
    dispatcher.step(FirstToken(4, 1))
    (sent,) = dispatcher.step(Finished(5, 1, None, None, 1))
    assert sent.rid == 3
    dispatcher.check()


@pytest.mark.parametrize("on_no_fit", ["stop", "skip"])
@pytest.mark.parametrize("k", [1, 2, 3, 1_000])
@settings(max_examples=25, deadline=None)
@given(ops=OPS)
def test_k_lpm_equals_the_literal_algorithm(k: int, on_no_fit: str, ops) -> None:
    class KLpmWorld(World):
        def __init__(self) -> None:
            super().__init__(
                make_ordering("k_lpm", {"k": k, "on_no_fit": on_no_fit}, OrderingContext()), Costs()
            )
            self.naive = NaiveKLpm(k, skip=on_no_fit == "skip")
            self.plain = [NaiveQueue(cache.matched) for cache in self.caches]

        def pushed(self, number, item):
            self.plain[number].push(item)

        def discarded(self, number, item):
            self.plain[number].discard(item)

        def charged_at_admission(self, item, extend):
            self.naive.admitted(self.items_queue)
            return extend

        def expected(self, number, fits):
            self.items_queue = number
            return self.naive.head(number, self.plain[number], fits)

    KLpmWorld().run(ops)


# ---------------------------------------------------------------------- PLAS


def test_plas_serves_programs_by_level_of_what_their_ended_calls_attained() -> None:
    """Quantum 100, so levels end at 100, 400, 1600, ...: 99 is level 0, 100 level 1, 450 level 2."""
    bench = Bench(make("plas", quantum=100, patience=1e9))
    for session, output in (("s99", 20), ("s100", 20), ("s450", 195)):
        item = call(bench, session, prompt=60 if session != "s99" else 59)
        run(bench)
        bench.ordering.ended(0, item, item.request.prompt_tokens, output)
    order = [call(bench, session) for session in ("s450", "s100", "s99", "new")]
    assert [run(bench) for _ in range(4)] == [order[2], order[3], order[1], order[0]]


def test_plas_calls_without_a_session_are_programs_of_their_own() -> None:
    bench = Bench(make("plas", quantum=10))
    first = call(bench, "")
    run(bench)
    bench.ordering.ended(0, first, 1_000, 1_000)
    again, other = call(bench, ""), call(bench, "s")
    assert [run(bench), run(bench)] == [again, other], "by arrival: nothing is kept of the first"


def test_plas_sessions_of_different_clients_are_different_programs() -> None:
    """Whatever their names contain: session x:y of a is not session y of a:x."""
    bench = Bench(make("plas", quantum=10, patience=1e9))
    mine = call(bench, "x:y", client="a")
    run(bench)
    bench.ordering.ended(0, mine, 1_000, 0)
    later = call(bench, "x:y", client="a")
    theirs = call(bench, "y", client="a:x")
    assert [run(bench), run(bench)] == [theirs, later]


def test_plas_counts_a_program_on_all_workers() -> None:
    bench = Bench(make("plas", quantum=10, patience=1e9), workers=2)
    item = call(bench, "long", number=0)
    run(bench, 0)
    bench.ordering.ended(0, item, 1_000, 0)
    long, new = call(bench, "long", number=1), call(bench, "new", number=1)
    assert [run(bench, 1), run(bench, 1)] == [new, long]


def test_plas_promotes_who_waited_long_for_what_its_program_attained() -> None:
    """The program attained 50 and patience is 2: after 100 units given meanwhile it is in the first."""
    bench = Bench(make("plas", quantum=10, patience=2.0))
    item = call(bench, "s")
    run(bench)
    bench.ordering.ended(0, item, 30, 10)
    old = call(bench, "s")
    first, second = call(bench, "n1", prompt=90), call(bench, "n2", prompt=1)
    assert run(bench) is first, "90 given: not yet"
    third = call(bench, "n3", prompt=1)
    bench.ordering.decoded(0, "a", 5)
    assert run(bench) is old, "100 given: by arrival now"
    assert [run(bench), run(bench)] == [second, third]


def test_plas_waiting_adds_up_over_the_calls_of_a_program() -> None:
    bench = Bench(make("plas", quantum=10, patience=2.0))
    item = call(bench, "s")
    run(bench)
    bench.ordering.ended(0, item, 50, 0)
    cancelled = call(bench, "s")
    bench.ordering.decoded(0, "b", 45)  # 90 units
    bench.queues[0].discard(cancelled)
    again, other = call(bench, "s"), call(bench, "new", prompt=3)
    assert bench.queues[0].head() is other
    bench.ordering.decoded(0, "b", 5)
    assert bench.queues[0].head() is again, "90 before and 10 now"


def test_plas_forgets_a_program_that_was_idle_for_an_hour() -> None:
    bench = Bench(make("plas", quantum=10, patience=1e9))
    item = call(bench, "s")
    run(bench)
    bench.ordering.ended(0, item, 1_000, 0)
    for hours in range(4):
        bench.ordering.tick(hours * HOUR_US + 1)
    back, other = call(bench, "s"), call(bench, "n")
    assert [run(bench), run(bench)] == [back, other]


@pytest.mark.parametrize("cancel", [False, True])
def test_plas_hears_of_ends_from_the_dispatcher(cancel: bool) -> None:
    """A program whose call took 50 + 2 * 30 units is below a new one, also if the client hung up."""
    dispatcher = driver.make_dispatcher(
        "round_robin", "plas", ordering_params={"quantum": 100, "patience": 1e9}, settings=Settings()
    )
    dispatcher.step(WorkerUp(0, "w0", Limits(max_num_seqs=1)))
    dispatcher.step(Arrived(1, Request(1, "a", 50, session="s")))
    dispatcher.step(Arrived(2, Request(2, "b", 5)))
    dispatcher.step(FirstToken(3, 1))
    dispatcher.step(driver.ev.Progressed(4, 1, 30))
    dispatcher.step(Cancelled(5, 1) if cancel else Finished(5, 1, None, None, 30))
    dispatcher.step(Arrived(6, Request(3, "a", 50, session="s")))
    dispatcher.step(Arrived(7, Request(4, "b", 50, session="t")))
    dispatcher.step(FirstToken(8, 2))
    sent = dispatcher.step(Finished(9, 2, None, None, 1))
    assert [command.rid for command in sent] == [4]
    dispatcher.check()


@pytest.mark.parametrize("on_no_fit", ["stop", "skip"])
@pytest.mark.parametrize(("quantum", "patience"), [(1, 0), (3, 1), (20, 3), (5, 10_000)])
@settings(max_examples=25, deadline=None)
@given(ops=OPS, output=st.integers(0, 2))
def test_plas_equals_the_literal_algorithm(
    quantum: int, patience: int, on_no_fit: str, ops, output: int
) -> None:
    costs = Costs(1, output)

    class PlasWorld(World):
        def __init__(self) -> None:
            given_ = {"quantum": quantum, "patience": float(patience), "on_no_fit": on_no_fit}
            super().__init__(make_ordering("plas", given_, OrderingContext(costs)), costs)
            self.naive = NaivePlas(quantum, patience, costs, on_no_fit == "skip")
            self.number = 0

        def add(self, number, item):
            session = ("", "s", "t")[item.seq % 3]
            request = item.request._replace(session=session)
            super().add(number, QueuedRequest(request, item.seq))

        def pushed(self, number, item):
            self.naive.push(number, item)

        def discarded(self, number, item):
            self.naive.discard(number, item)

        def charged_at_admission(self, item, extend):
            tokens = item.seq % 7
            self.ordering.ended(0, item, extend, tokens)
            self.naive.ended(item, extend + output * tokens)
            return extend

        def charged(self, number, client, units):
            self.naive.charge(number, units)

        def corrected(self, number, client, change):
            return None

        def expected(self, number, fits):
            return self.naive.head(number, fits)

    PlasWorld().run([(op, dice) for op, dice in ops if not 68 <= op < 73])  # corrections move no clock


# ---------------------------------------------------------------------- deficit round robin


def drr(quantum: int, **more: object) -> Bench:
    return Bench(make("drr", quantum=quantum, **more))


def test_drr_spends_a_quantum_on_several_requests_before_the_next_client() -> None:
    """Dynamo's own example: a quantum of 10 pays three requests of 3, and 1 is left over."""
    bench = drr(10)
    for _ in range(5):
        bench.push("a", 3)
    for _ in range(4):
        bench.push("b", 3)
    assert [bench.admit() for _ in range(3)] == ["a", "a", "a"]
    assert bench.credits("a") == [1]
    assert [bench.admit() for _ in range(3)] == ["b", "b", "b"]
    assert [bench.admit() for _ in range(3)] == ["a", "a", "b"]


def test_drr_gives_many_quanta_at_once_when_nobody_can_pay() -> None:
    """Dynamo's own table: heads of 7,000 and 9,000, quanta of 1,000 and 2,000: latency keeps 1,000."""
    bench = drr(1_000)
    bench.ordering.set_weight("latency", 2.0)
    for _ in range(2):
        bench.push("standard", 7_000)
        bench.push("latency", 9_000)
    assert bench.queues[0].head().client == "latency"
    assert [bench.ordering.credit(0, c) for c in ("standard", "latency")] == [5_000, 10_000]
    assert bench.admit() == "latency"
    assert bench.ordering.credit(0, "latency") == 1_000


def test_drr_charges_what_was_not_cached_when_the_request_came() -> None:
    bench = drr(10)
    bench.cached[0] = {1, 2}
    for _ in range(2):
        bench.push("a", 25, (1, 2))  # costs 5
        bench.push("b", 25, (8, 9))  # costs 25
    bench.cached[0] = set()
    bench.queues[0].cache_evicted([1, 2])
    assert [bench.admit() for _ in range(2)] == ["a", "a"], "5 and 5, whatever is cached now"
    assert [bench.admit() for _ in range(2)] == ["b", "b"]


def test_drr_output_is_free_and_who_leaves_loses_its_deficit() -> None:
    bench = drr(100)
    bench.push("a", 10)
    bench.push("b", 10)
    assert bench.admit() == "a"
    bench.ordering.decoded(0, "a", 1_000)
    assert bench.credits("ab") == [0, 0]
    bench.push("a", 10)
    assert [bench.admit(), bench.admit()] == ["b", "a"], "who comes back is last"


def test_drr_a_cancelled_request_is_not_charged() -> None:
    bench = drr(10)
    first = bench.push("a", 10)
    bench.push("a", 10)
    bench.push("b", 10)
    assert bench.queues[0].head() is first
    bench.queues[0].discard(first)
    assert bench.credits("a") == [10]
    assert [bench.admit(), bench.admit()] == ["a", "b"]


def test_drr_with_skip_passes_over_clients_whose_oldest_does_not_fit() -> None:
    """They keep what they have, and earn nothing meanwhile."""
    bench = drr(10, on_no_fit="skip")
    bench.push("a", 100)
    bench.push("b", 10)
    small = bench.push("b", 10)
    assert bench.queues[0].head(lambda item: item.request.prompt_tokens < 50).client == "b"
    assert bench.credits("ab") == [0, 10]
    assert bench.queues[0].head(lambda item: False) is None
    assert small in list(bench.queues[0])


def test_drr_weights_are_shares_of_uncached_tokens() -> None:
    """Quanta of 512 and 128, all prompts 512: of 320 requests 256 and 64, as Dynamo's example says."""
    bench = drr(128)
    bench.ordering.set_weight("premium", 4.0)
    for _ in range(320):
        bench.push("premium", 512)
        bench.push("regular", 512)
    served = [bench.admit() for _ in range(320)]
    assert abs(served.count("premium") - 256) <= 1


def test_drr_small_quanta_favour_large_requests() -> None:
    """By the rule as Dynamo describes it, and as our docs say: 2, 2 and 3 quanta of 10 a turn."""
    bench = drr(10)
    for _ in range(100):
        for client, tokens in (("a", 20), ("b", 20), ("c", 30)):
            bench.push(client, tokens)
    served = [bench.admit() for _ in range(150)]
    assert [served.count(client) for client in "abc"] == [50, 50, 50]


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.tuples(st.sampled_from("fgh"), st.integers(1, 30)), min_size=60, max_size=120),
    weights=st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([1.0, 2.0])),
)
def test_drr_bound_where_a_quantum_pays_for_any_request(costs, weights) -> None:
    """|W_f / w_f - W_g / w_g| <= Q + L_f / w_f + L_g / w_g while both wait."""
    bench = drr(30)
    weight = dict(zip("fg", weights, strict=True))
    for client, value in weight.items():
        bench.ordering.set_weight(client, value)
    longest = {"f": 1, "g": 1}
    for client, cost in costs:
        bench.push(client, cost)
        longest[client] = max(longest.get(client, 1), cost)
    got = {"f": 0.0, "g": 0.0}
    gaps = []
    while {"f", "g"} <= {item.client for item in bench.queues[0]}:
        gaps.append(got["f"] - got["g"])
        item = run(bench)
        if item.client in got:
            got[item.client] += item.request.prompt_tokens / weight[item.client]
    gaps = gaps or [0.0]
    assert max(gaps) - min(gaps) <= 30 + longest["f"] / weight["f"] + longest["g"] / weight["g"]


@pytest.mark.parametrize("on_no_fit", ["stop", "skip"])
@pytest.mark.parametrize("quantum", [1, 4, 30])
@settings(max_examples=30, deadline=None)
@given(ops=OPS)
def test_drr_equals_the_literal_algorithm(quantum: int, on_no_fit: str, ops) -> None:
    class DrrWorld(World):
        def __init__(self) -> None:
            params = {"quantum": quantum, "on_no_fit": on_no_fit}
            super().__init__(make_ordering("drr", params, OrderingContext()), Costs())
            self.naive = [NaiveDrr(quantum, skip=on_no_fit == "skip") for _ in QUEUES]
            self.cost = 0
            self.number = 0

        def pushed(self, number, item):
            matched = item.request.matched_tokens(self.caches[number].matched(item.keys))
            self.naive[number].push(item, max(1, item.request.prompt_tokens - matched))

        def discarded(self, number, item):
            self.cost, self.number = self.naive[number].discard(item), number

        def charged_at_admission(self, item, extend):
            self.naive[self.number].admitted(item.client, self.cost)
            return extend

        def weighted(self, client, weight):
            for naive in self.naive:
                naive.weights[client] = weight

        def expected(self, number, fits):
            return self.naive[number].head(fits)

        def compare(self):
            super().compare()
            for number, naive in enumerate(self.naive):
                for client in naive.ring:
                    assert self.ordering.credit(number, client) == naive.deficit[client]

    DrrWorld().run(ops)


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "order",
    [
        "k_lpm",
        "k_lpm:k=1,on_no_fit=skip",
        "plas",
        "plas:quantum=1,patience=0.5",
        "drr",
        "drr:quantum=1,on_no_fit=skip",
    ],
)
def test_keeps_the_promises_of_every_policy(order: str) -> None:
    check_dispatcher(lambda: fairlead.make_dispatcher(order=order, policy="marginal"))


@pytest.mark.parametrize(
    ("name", "given_"),
    [("k_lpm", {"k": 0}), ("plas", {"quantum": 0}), ("plas", {"patience": -1}), ("drr", {"quantum": 0})],
)
def test_refuses_values_out_of_range(name: str, given_: dict[str, object]) -> None:
    (param,) = given_
    with pytest.raises(PolicyError, match=f"{name}: parameter '{param}' takes"):
        make_ordering(name, given_, OrderingContext())
