"""Series and gaps made from rows."""

from random import Random

import pytest

from fairlead.core.model import Costs
from fairlead.replay.record import MOST_PAIRED, Record, fairness, series
from fairlead.report.run import DONE, FAILED

COSTS = Costs()


def row(record: Record, client: int, arrived: int, first: int, ended: int, prompt=100, cached=40, output=10):
    number = record.new(client, arrived, prompt, output)
    r = record.requests
    r.first[number], r.ended[number], r.cached[number], r.output[number] = first, ended, cached, output
    r.outcome[number] = DONE if first >= 0 else FAILED
    return number


def test_a_request_is_served_from_its_first_token_to_its_end() -> None:
    record = Record()
    row(record, 0, 50_000, 250_000, 450_000)
    row(record, 1, 350_000, -1, 1_000_000)
    found = series(record, 2, COSTS)
    assert found.interval_us == 100_000
    assert list(found.queued[0]) == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert list(found.queued[1]) == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert list(found.service[0]) == pytest.approx([0, 0, 65, 75, 80, 80, 80, 80, 80, 80])
    assert list(found.demand[0]) == [120.0] * 10
    assert list(found.demand[1]) == [0, 0, 0, *[120.0] * 7]
    assert found.running == found.waiting == []


def test_all_service_is_in_the_series_by_the_end() -> None:
    random = Random(3)
    record = Record()
    for _ in range(300):
        arrived = random.randrange(90_000_000)
        first = arrived + random.randrange(9_000_000)
        row(record, random.randrange(3), arrived, first, first + random.randrange(9_000_000), cached=-1)
    row(record, 0, 299_999_999, 300_000_000, 300_000_000, prompt=0, output=0)
    found = series(record, 3, COSTS)
    assert found.interval_us == 1_000_000
    r = record.requests
    for client in range(3):
        mine = [i for i in range(len(r)) if r.client[i] == client]
        total = sum(r.prompt[i] + 2 * r.output[i] for i in mine)
        assert found.service[client][-1] == pytest.approx(total)
        assert list(found.service[client]) == sorted(found.service[client])
        assert found.queued[client][-2] == 0


def test_an_empty_record_has_empty_series() -> None:
    found = series(Record(), 2, COSTS)
    assert [list(column) for column in found.service] == [[], []]
    assert fairness(found, ["a", "b"], [1, 1]).worst_gap == 0


def test_gap_counts_only_while_both_wait() -> None:
    record = Record()
    # a is served 60 at 0.1 s, alone; from 1 s on both have something waiting, and only b is served, twice.
    row(record, 0, 0, 100_000, 100_000, output=0)
    row(record, 0, 1_000_000, 3_000_000, 3_000_000, output=0)
    row(record, 1, 1_000_000, 3_000_000, 3_000_000, output=0)
    for at in (1_500_000, 2_000_000):
        row(record, 1, 1_000_000, at, at, output=0)
    found = fairness(series(record, 2, COSTS), ["a", "b"], [1.0, 2.0])
    assert found.worst_gap == pytest.approx(2 * 60 / 2)
    assert found.pair == ("a", "b")
    assert "sampled every 0.1 s" in found.bound_text


def test_too_many_clients_are_not_compared() -> None:
    names = [f"c{i}" for i in range(MOST_PAIRED + 1)]
    found = fairness(series(Record(), len(names), COSTS), names, [1.0] * len(names))
    assert f"there are {len(names)}" in found.bound_text
