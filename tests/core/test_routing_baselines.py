"""The baselines, by examples worked out by hand from each project's definition."""

from collections import Counter

import pytest

from fairlead.core.params import PolicyError

from .routing_fleet import PlainFleet, chosen, match, place, policy, request


def test_random_is_even_and_repeats_with_its_seed():
    fleet, anyone = PlainFleet(4), policy("random")
    draws = [place(anyone, fleet, request(), match(fleet)) for _ in range(4_000)]
    counts = Counter(draws)
    assert set(counts) == {0, 1, 2, 3}
    assert all(900 < n < 1_100 for n in counts.values())
    again = policy("random")
    assert [place(again, fleet, request(), match(fleet)) for _ in range(4_000)] == draws


def test_round_robin_takes_turns_over_slots_that_come_and_go():
    fleet, rr = PlainFleet(4), policy("round_robin")
    assert [place(rr, fleet, request(), match(fleet)) for _ in range(5)] == [0, 1, 2, 3, 0]
    fleet.candidates = [0, 2, 3]
    assert [place(rr, fleet, request(), match(fleet)) for _ in range(4)] == [2, 3, 0, 2]


def test_round_robin_passes_no_turn_for_a_decision_that_came_to_nothing():
    fleet, rr = PlainFleet(3), policy("round_robin")
    assert [chosen(rr, fleet, request(), match(fleet)) for _ in range(3)] == [0, 0, 0]


def test_least_requests_takes_the_smallest_batch_and_rotates_ties():
    fleet, least = PlainFleet(4, batch_size=[5, 2, 7, 2]), policy("least_requests")
    assert [place(least, fleet, request(), match(fleet)) for _ in range(3)] == [1, 3, 1]


def test_scores_are_a_copy_that_later_changes_of_the_fleet_do_not_touch():
    for name in ("least_requests", "vllm_score", "cache_aware"):
        fleet = PlainFleet(2, batch_size=[3, 4])
        choice = policy(name).choose(request(), match(fleet), fleet, 0)
        fleet.batch_size[0] = fleet.running[0] = 99
        assert list(choice.scores) == [3, 4], name


def test_power_of_two_never_takes_the_worse_of_two_workers():
    fleet, p2c = PlainFleet(2, batch_size=[3, 1]), policy("power_of_two")
    assert {place(p2c, fleet, request(), match(fleet)) for _ in range(50)} == {1}


def test_power_of_two_shares_as_the_definition_says():
    """Of loads 0 < 1 < 2 < 3 the pairs pick 3, 2, 1 and 0 in six: the busiest never."""
    fleet, p2c = PlainFleet(4, batch_size=[0, 1, 2, 3]), policy("power_of_two")
    counts = Counter(place(p2c, fleet, request(), match(fleet)) for _ in range(6_000))
    assert counts[3] == 0
    for slot, expected in ((0, 3_000), (1, 2_000), (2, 1_000)):
        assert abs(counts[slot] - expected) < 200


def test_power_of_two_with_one_candidate_draws_nothing():
    fleet, p2c = PlainFleet(3), policy("power_of_two")
    fleet.candidates = [2]
    state = p2c.context.rng.getstate()
    assert place(p2c, fleet, request(), match(fleet)) == 2
    assert p2c.context.rng.getstate() == state


SESSIONS = [f"session {i}" for i in range(2_000)]


class TestSessionAffinity:
    def owners(self, affinity, fleet):
        return {s: fleet.ids[chosen(affinity, fleet, request(session=s), match(fleet))] for s in SESSIONS}

    def test_a_session_stays_and_load_is_even(self):
        fleet = PlainFleet(8, batch_size=[9, 0, 3, 1, 5, 0, 0, 2])
        owners = self.owners(policy("session_affinity"), fleet)
        assert owners == self.owners(policy("session_affinity", seed=9), fleet)
        assert all(150 < n < 380 for n in Counter(owners.values()).values())

    def test_without_a_session_the_client_decides(self):
        fleet, affinity = PlainFleet(8), policy("session_affinity")
        slots = {chosen(affinity, fleet, request(rid=i, client="ann"), match(fleet)) for i in range(20)}
        assert len(slots) == 1
        assert len({chosen(affinity, fleet, request(client=f"c{i}"), match(fleet)) for i in range(40)}) > 4

    def test_a_session_and_a_client_of_one_name_are_not_tied_together(self):
        fleet, affinity = PlainFleet(64), policy("session_affinity")
        pairs = [
            (
                chosen(affinity, fleet, request(session=n), match(fleet)),
                chosen(affinity, fleet, request(client=n), match(fleet)),
            )
            for n in map(str, range(20))
        ]
        assert any(a != b for a, b in pairs)

    def test_when_a_worker_leaves_only_its_sessions_move(self):
        fleet, affinity = PlainFleet(8), policy("session_affinity")
        before = self.owners(affinity, fleet)
        fleet.ids[3] = ""
        fleet.candidates = [0, 1, 2, 4, 5, 6, 7]
        after = self.owners(affinity, fleet)
        assert {s for s in SESSIONS if before[s] != after[s]} == {s for s in SESSIONS if before[s] == "w3"}

    def test_when_a_worker_joins_it_takes_its_share_and_nothing_else_moves(self):
        affinity = policy("session_affinity")
        before = self.owners(affinity, PlainFleet(8))
        after = self.owners(affinity, PlainFleet(9))
        moved = {s for s in SESSIONS if before[s] != after[s]}
        assert {after[s] for s in moved} == {"w8"}
        assert 100 < len(moved) < 380

    def test_a_busy_worker_is_passed_over_and_gets_its_sessions_back(self):
        fleet, affinity = PlainFleet(4), policy("session_affinity")
        before = self.owners(affinity, fleet)
        fleet.candidates = [0, 2, 3]
        during = self.owners(affinity, fleet)
        assert {s for s in SESSIONS if before[s] != during[s]} == {s for s in SESSIONS if before[s] == "w1"}
        assert len({during[s] for s in SESSIONS if before[s] == "w1"}) == 3
        fleet.candidates = [0, 1, 2, 3]
        assert self.owners(affinity, fleet) == before

    def test_names_decide_and_not_slots(self):
        """Workers in other slots, and a ring built step by step, give the same owners."""
        fleet, affinity = PlainFleet(5), policy("session_affinity")
        before = self.owners(affinity, fleet)
        fleet.ids = ["w4", "w2", "gone", "w0", "w1", "w3"]
        fleet.candidates = [0, 1, 2, 3, 4, 5]
        self.owners(affinity, fleet)
        fleet.ids[2] = ""
        fleet.candidates = [0, 1, 3, 4, 5]
        assert self.owners(affinity, fleet) == before


class TestCacheAware:
    def test_even_fleet_and_long_match_goes_to_the_least_loaded_of_all_holders(self):
        fleet = PlainFleet(4, batch_size=[0, 9, 4, 6])
        m = match(fleet, [0, 500, 0, 500])
        choice = policy("cache_aware").choose(request(1_000), m, fleet, 0)
        assert (choice.slot, choice.branch) == (3, "cache_aware: hit")

    def test_a_match_at_the_threshold_is_a_miss(self):
        """300 / 1000 is not above 0.3."""
        fleet = PlainFleet(2, batch_size=[1, 0])
        choice = policy("cache_aware").choose(request(1_000), match(fleet, [300, 0]), fleet, 0)
        assert (choice.slot, choice.branch) == (1, "cache_aware: miss")
        assert chosen(policy("cache_aware"), fleet, request(1_000), match(fleet, [301, 0])) == 0

    @pytest.mark.parametrize(
        ("batch_size", "branch"),
        [
            ([64, 0], "cache_aware: hit"),  # 64 is not more than 64
            ([65, 0], "cache_aware: imbalanced"),  # 65 > 64 and 65 > 0
            ([200, 130], "cache_aware: imbalanced"),  # 70 > 64 and 200 > 195
            ([201, 134], "cache_aware: hit"),  # 67 > 64, but 201 is not more than 201
        ],
    )
    def test_the_gate_needs_both_the_difference_and_the_ratio(self, batch_size, branch):
        fleet = PlainFleet(2, batch_size=batch_size)
        choice = policy("cache_aware").choose(request(1_000), match(fleet, [900, 0]), fleet, 0)
        assert choice.branch == branch
        assert choice.slot == (1 if branch.endswith("imbalanced") else 0)

    def test_a_miss_goes_to_the_least_loaded_and_not_to_the_first(self):
        fleet, aware = PlainFleet(3, batch_size=[1, 0, 0]), policy("cache_aware")
        assert [place(aware, fleet, request(), match(fleet)) for _ in range(3)] == [1, 2, 1]


class TestVllmScore:
    def test_waiting_counts_four_times(self):
        """4*1 + 2 = 6 against 5 running."""
        fleet = PlainFleet(2, batch_size=[3, 5], queued=[1, 0], running=[2, 5])
        choice = policy("vllm_score").choose(request(), match(fleet), fleet, 0)
        assert (choice.slot, list(choice.scores)) == (1, [6, 5])

    def test_of_what_was_sent_the_reported_part_is_waiting(self):
        """8 sent of which 3 wait inside: 4*3 + 5 = 17; a report of more than was sent is cut to it."""
        fleet = PlainFleet(2, batch_size=[8, 2], engine_waiting=[3, 9], reported_us=[10, 10])
        assert list(policy("vllm_score").choose(request(), match(fleet), fleet, 20).scores) == [17, 8]

    def test_an_old_report_is_not_used(self):
        fleet = PlainFleet(2, batch_size=[8, 9], engine_waiting=[3, 3], reported_us=[0, 1_000_000])
        vllm = policy("vllm_score", max_age_s=2)
        assert list(vllm.choose(request(), match(fleet), fleet, 2_000_001).scores) == [8, 18]


class TestLinear:
    def test_dynamo_adds_new_blocks_and_blocks_in_use(self):
        """(1600-800)/16 + 1600/16 = 150 against 1600/16 + 320/16 = 120; with weight 2: 200 and 220."""
        fleet = PlainFleet(2, kv_used=[1_600, 320])
        m = match(fleet, [800, 0])
        choice = policy("linear").choose(request(1_600), m, fleet, 0)
        assert (choice.slot, list(choice.scores)) == (1, [150, 120])
        choice = policy("linear", overlap_weight=2).choose(request(1_600), m, fleet, 0)
        assert (choice.slot, list(choice.scores)) == (0, [200, 220])

    def test_dynamo_1_7_adds_pending_prefill_and_what_the_request_adds(self):
        """w0: (800 + 800)/16 + (1600 + 800)/16 = 250; w1: 1600/16 + 1920/16 = 220; scale 0: 150, 120."""
        fleet = PlainFleet(2, kv_used=[1_600, 320], pending_prefill_tokens=[800, 0])
        m = match(fleet, [800, 0])
        choice = policy("linear", preset="dynamo-1.7").choose(request(1_600), m, fleet, 0)
        assert (choice.slot, list(choice.scores)) == (1, [250, 220])
        choice = policy("linear", preset="dynamo-1.7", prefill_load_scale=0).choose(
            request(1_600), m, fleet, 0
        )
        assert (choice.slot, list(choice.scores)) == (1, [150, 120])

    def test_production_scales_by_the_largest_of_the_fleet(self):
        """w0: .7*.5 + .15*(1-1) + .15*(1-.5) = .425; w1: 0 + .15*(1-.5) + .15*(1-1) = .075."""
        fleet = PlainFleet(2, batch_size=[8, 4], kv_used=[500, 1_000])
        choice = policy("linear", preset="production").choose(
            request(1_000), match(fleet, [500, 0]), fleet, 0
        )
        assert choice.slot == 0
        assert [-s for s in choice.scores] == pytest.approx([0.425, 0.075])

    def test_production_scales_by_capacity(self):
        """w0: .7*.1 + .15*(1-.5) + .15*(1-.5) = .22; w1: 0 + .15 + .15 = .3."""
        fleet = PlainFleet(2, batch_size=[128, 0], kv_used=[250_000, 0])
        linear = policy("linear", preset="production", scale="capacity")
        choice = linear.choose(request(1_000), match(fleet, [100, 0]), fleet, 0)
        assert choice.slot == 1
        assert [-s for s in choice.scores] == pytest.approx([0.22, 0.3])

    def test_llm_d_weighs_its_three_scorers(self):
        """w0: 3*.5 + 2*0 + 2*.8 = 3.1; w1: 0 + 2*(3/4) + 2*1 = 3.5; w2: 0 + 2*1 + 2*.9 = 3.8."""
        fleet = PlainFleet(3, queued=[3, 1, 0], engine_waiting=[1, 0, 0], kv_used=[100_000, 0, 50_000])
        choice = policy("linear", preset="llm-d").choose(request(1_000), match(fleet, [500, 0, 0]), fleet, 0)
        assert choice.slot == 2
        assert [-s for s in choice.scores] == pytest.approx([3.1, 3.5, 3.8])

    def test_llm_d_scores_equal_queues_as_one(self):
        fleet = PlainFleet(2, queued=[2, 2])
        choice = policy("linear", preset="llm-d").choose(request(), match(fleet), fleet, 0)
        assert [-s for s in choice.scores] == pytest.approx([4, 4])

    def test_ties_go_to_the_smaller_batch_then_rotate(self):
        fleet, linear = PlainFleet(3, batch_size=[2, 1, 1]), policy("linear")
        assert [place(linear, fleet, request(), match(fleet)) for _ in range(3)] == [1, 2, 1]

    def test_a_weight_of_another_preset_is_an_error_that_lists_the_valid_ones(self):
        with pytest.raises(
            PolicyError, match=r"'alpha' has no effect with preset 'llm-d' .*prefix_weight, queue_"
        ):
            policy("linear", preset="llm-d", alpha=0.7)
