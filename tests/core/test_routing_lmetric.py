"""LMetric and its hotspot detector, by examples worked out by hand."""

from fairlead.core.routing.hotspots import MAX_ARRIVALS, Hotspots

from .routing_fleet import PlainFleet, chosen, match, place, policy, request

SECOND = 1_000_000


def test_the_product_of_prefill_to_wait_for_and_batch_size():
    """w0: (500+1000-800)*4 = 2800; w1: (0+1000)*3 = 3000; w2: (2000+1000-1000+1)*1 = 2001."""
    fleet = PlainFleet(3, batch_size=[3, 2, 0], pending_prefill_tokens=[500, 0, 2_000])
    choice = policy("lmetric").choose(request(1_000), match(fleet, [800, 0, 999]), fleet, 0)
    assert (choice.slot, list(choice.scores)) == (2, [2_800, 3_000, 2_001])


def test_a_full_hit_does_not_make_the_batch_size_free():
    """A hit leaves one token to compute: 1*6 = 6 against 1*3 = 3."""
    fleet = PlainFleet(2, batch_size=[5, 2])
    assert chosen(policy("lmetric"), fleet, request(1_000), match(fleet, [999, 999])) == 1


def test_the_first_factor_is_at_least_one():
    fleet = PlainFleet(2, batch_size=[5, 2])
    choice = policy("lmetric").choose(request(0), match(fleet), fleet, 0)
    assert (choice.slot, list(choice.scores)) == (1, [6, 3])


def test_ties_go_to_the_smaller_batch_then_to_fewer_tokens_then_rotate():
    """600*2 = 400*3 = 300*4 = 1200 everywhere."""
    lmetric = policy("lmetric")
    fleet = PlainFleet(3, batch_size=[2, 1, 3], pending_prefill_tokens=[300, 500, 200])
    assert place(lmetric, fleet, request(100), match(fleet)) == 1
    fleet = PlainFleet(4, kv_used=[9, 5, 7, 5])
    assert [place(lmetric, fleet, request(100), match(fleet)) for _ in range(3)] == [3, 1, 3]


class Traffic:
    """A class of requests that w0 alone caches, and others that nobody does; w1..w3 are busier."""

    def __init__(self, **given):
        self.fleet = PlainFleet(4, batch_size=[0, 9, 9, 9])
        self.lmetric = policy("lmetric", **given)
        self.cached = [800, 0, 0, 0]
        self.rid = 0

    def hot(self, now=0):
        """One request of the class; whoever serves it caches the prefix from then on."""
        self.rid += 1
        req = request(1_000, rid=self.rid, keys=range(1, 51))
        m = match(self.fleet, self.cached)
        choice = self.lmetric.choose(req, m, self.fleet, now)
        self.lmetric.assigned(req, choice.slot, 1_000 - m.tokens[choice.slot], now)
        self.cached[choice.slot] = 800
        return choice.slot

    def cold(self, now=0, count=1):
        for _ in range(count):
            self.rid += 1
            req = request(160, rid=self.rid, keys=range(1_000 * self.rid, 1_000 * self.rid + 10))
            place(self.lmetric, self.fleet, req, match(self.fleet), now)


def test_detector_takes_the_holders_out_after_twice_their_number_of_bad_signs():
    """All traffic is of one class, so 1 * 4 > M = 1 from the start: two requests see the holder win,
    the third goes elsewhere, and each one after it, until all four hold the prefix."""
    traffic = Traffic()
    slots = [traffic.hot() for _ in range(6)]
    assert slots[:2] == [0, 0]
    assert set(slots[2:5]) == {1, 2, 3}
    assert slots[5] == 0


def test_detector_is_silent_while_the_share_suits_the_holders():
    """One of four requests is of the class: x * N = 1/4 * 4 <= M = 1."""
    traffic = Traffic()
    traffic.cold(count=3)
    for _ in range(20):
        assert traffic.hot() == 0
        traffic.cold(count=3)


def test_detector_stops_once_there_are_enough_holders_for_the_share():
    """The class is 1/2 of the traffic: 1/2 * 4 <= M from two holders on."""
    traffic = Traffic()
    slots = []
    for _ in range(20):
        traffic.cold()
        slots.append(traffic.hot())
    assert slots[:2] == [0, 0]
    assert slots[2] != 0
    assert set(slots[3:]) == {0}
    assert sum(tokens > 0 for tokens in traffic.cached) == 2


def test_a_request_that_scores_better_elsewhere_ends_the_run():
    traffic = Traffic()
    assert traffic.hot() == 0
    traffic.fleet.batch_size[0] = 99
    traffic.fleet.batch_size[1] = 0
    assert traffic.hot() == 1  # 200*100 against 1000*1: better elsewhere, so the run starts anew
    traffic.fleet.batch_size[:2] = [0, 9]
    # Two holders now: four bad signs are needed.
    assert [traffic.hot() for _ in range(4)] == [0, 0, 0, 0]
    assert traffic.hot() in (2, 3)


def test_arrivals_leave_the_window_after_its_seconds():
    """A crowd of others a minute ago says nothing about now."""
    traffic = Traffic()
    traffic.cold(now=0, count=1_000)
    assert [traffic.hot(now=59 * SECOND) for _ in range(3)] == [0, 0, 0]
    assert [traffic.hot(now=60 * SECOND) for _ in range(2)] == [0, 0]
    assert traffic.hot(now=60 * SECOND) != 0


def test_without_the_detector_the_holder_keeps_all():
    traffic = Traffic(detector=False)
    assert {traffic.hot() for _ in range(50)} == {0}


def test_choosing_twice_counts_once():
    traffic = Traffic()
    req, m = request(1_000, rid=99, keys=range(1, 51)), match(traffic.fleet, traffic.cached)
    assert {chosen(traffic.lmetric, traffic.fleet, req, m) for _ in range(10)} == {0}
    assert [traffic.hot() for _ in range(2)] == [0, 0]
    assert traffic.hot() != 0


def test_hotspot_books_are_bounded_and_empty_after_the_window():
    hotspots = Hotspots(60 * SECOND)
    for i in range(MAX_ARRIVALS + 500):
        hotspots.arrived(i % 5_000 if i % 3 else None, i % 2, i)
    hotspots.check()
    assert len(hotspots._arrivals) == MAX_ARRIVALS
    hotspots.expire(61 * SECOND)
    hotspots.check()
    assert not hotspots._arrivals
    assert not hotspots._counts
    assert not hotspots._runs
