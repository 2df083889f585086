"""The pool against a naive model: a list of physical blocks with time stamps, searched in full."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.engine.kv import KVPool
from tests.engine.naive import NaivePool

RUNS = settings(max_examples=100, deadline=None)


def chain_of(path: list[int]) -> list[int]:
    """Chained keys of a path of block contents: equal keys mean equal prefixes."""
    return [hash((tuple(path[: i + 1]), "k")) & (2**60 - 1) for i in range(len(path))]


PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=30)


@RUNS
@given(blocks=st.integers(1, 12), paths=PATHS, data=st.data())
def test_pool_equals_the_naive_model(blocks, paths, data):
    """Requests come (taking what is cached and filling the rest) and go, in any order."""
    pool, naive = KVPool(blocks), NaivePool(blocks)
    held: dict[int, tuple[list[int], int, int]] = {}
    for who, path in enumerate(paths):
        chain = chain_of(path)
        assert pool.match(chain) == naive.match(chain)
        assert pool.available == naive.available()
        matched = pool.match(chain)
        needed = len(chain) - matched
        idle = pool.idle_within(chain, matched)
        assert idle == sum(1 for key in chain[:matched] if not naive.users[key])
        if needed + idle <= pool.available:
            pool.use(chain, matched)
            for key in chain[:matched]:
                naive.users[key].add(who)
            assert pool.allocate(needed) == naive.allocate(needed)
            filled = data.draw(st.integers(matched, len(chain)))
            # Somebody else may have published the same blocks since: the match was up to date, so not here.
            assert pool.publish(chain, matched, filled) == naive.publish(who, chain[matched:filled])
            held[who] = (chain, filled, len(chain) - filled)
        pool.check()
        while held and (data.draw(st.booleans()) or needed + idle > pool.available + blocks):
            leaver = data.draw(st.sampled_from(sorted(held)))
            chain, filled, private = held.pop(leaver)
            pool.release(chain, filled, private)
            naive.release(leaver, chain[:filled], private)
            pool.check()
    assert pool.used == naive.blocks - naive.available()


@RUNS
@given(blocks=st.integers(2, 12), paths=PATHS)
def test_a_cached_block_implies_its_parents(blocks, paths):
    """Leaves are evicted first, so that the length of a match may be found by bisection."""
    pool = KVPool(blocks)
    parents: dict[int, int] = {}
    for path in paths:
        chain = chain_of(path)
        parents.update(zip(chain[1:], chain, strict=False))
        matched = pool.match(chain)
        if len(chain) - matched + pool.idle_within(chain, matched) > pool.available:
            continue
        pool.use(chain, matched)
        pool.allocate(len(chain) - matched)
        pool.publish(chain, matched, len(chain))
        pool.release(chain, len(chain), 0)
        assert all(pool.match([key]) for key in chain)
        for child, parent in parents.items():
            assert not pool.match([child]) or pool.match([parent])


def test_blocks_computed_side_by_side_are_kept_once() -> None:
    """Two requests fill the same blocks: the second publishes nothing new and frees its copies."""
    pool = KVPool(4)
    pool.allocate(2)
    pool.allocate(2)
    assert pool.publish([1, 2], 0, 2) == [1, 2]
    assert pool.publish([1, 2], 0, 2) == []
    assert (pool.used, pool.available) == (2, 2)
    pool.release([1, 2], 2, 0)
    assert pool.used == 2
    pool.release([1, 2], 2, 0)
    assert (pool.used, pool.cached) == (0, 2)


def test_least_recently_used_leaf_goes_first() -> None:
    pool = KVPool(4)
    for chain in ([1, 2], [3, 4]):
        pool.allocate(2)
        pool.publish(chain, 0, 2)
        pool.release(chain, 2, 0)
    pool.use([1, 2], 2)
    pool.release([1, 2], 2, 0)
    assert pool.allocate(3) == [4, 3, 2]
    assert pool.match([1, 2]) == 1


def test_clearing_spares_blocks_in_use() -> None:
    pool = KVPool(4)
    for chain in ([1, 2], [3, 4]):
        pool.allocate(2)
        pool.publish(chain, 0, 2)
    pool.release([3, 4], 2, 0)
    assert pool.clear() == [4, 3]
    assert pool.match([1, 2]) == 2
    pool.check()
