"""The pool against a naive model: a list of physical blocks with time stamps, searched in full."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.engine.kv import BlockRun, KVPool
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
    held: dict[int, tuple[BlockRun, list[int], int, int]] = {}
    for who, path in enumerate(paths):
        chain = chain_of(path)
        assert pool.match(chain) == naive.match(chain)
        assert pool.available == naive.available()
        matched = pool.match(chain)
        needed = len(chain) - matched
        idle = pool.idle_within(chain, matched)
        assert idle == sum(1 for key in chain[:matched] if not naive.users[key])
        if needed + idle <= pool.available:
            run = pool.use(chain, matched)
            for key in chain[:matched]:
                naive.users[key].add(who)
            assert pool.allocate(needed) == naive.allocate(needed)
            filled = data.draw(st.integers(matched, len(chain)))
            # Somebody else may have published the same blocks since: the match was up to date, so not here.
            run, first = pool.publish(run, chain, matched, filled)
            assert chain[first:filled] == naive.publish(who, chain[matched:filled])
            held[who] = (run, chain, filled, len(chain) - filled)
            assert set(pool.keys()) == set(naive.users)
        pool.check()
        while held and (data.draw(st.booleans()) or needed + idle > pool.available + blocks):
            leaver = data.draw(st.sampled_from(sorted(held)))
            run, chain, filled, private = held.pop(leaver)
            if filled < len(chain) and data.draw(st.booleans()):
                # It fills more first; others may have published those blocks meanwhile.
                run, first = pool.publish(run, chain, filled, len(chain))
                assert chain[first:] == naive.publish(leaver, chain[filled:])
                filled, private = len(chain), 0
                pool.check()
            pool.release(run, private)
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
        run = pool.use(chain, matched)
        pool.allocate(len(chain) - matched)
        run, _ = pool.publish(run, chain, matched, len(chain))
        pool.release(run, 0)
        cached = set(pool.keys())
        assert cached.issuperset(chain)
        for child, parent in parents.items():
            assert child not in cached or parent in cached


def fill(pool: KVPool, chain: list[int]) -> BlockRun:
    """Compute a chain of which nothing is cached."""
    pool.allocate(len(chain))
    return pool.publish(pool.root, chain, 0, len(chain))[0]


def test_blocks_computed_side_by_side_are_kept_once() -> None:
    """Two requests fill the same blocks: the second publishes nothing new and frees its copies."""
    pool = KVPool(4)
    pool.allocate(2)
    pool.allocate(2)
    one, first = pool.publish(pool.root, [1, 2], 0, 2)
    assert first == 0
    other, first = pool.publish(pool.root, [1, 2], 0, 2)
    assert first == 2
    assert (pool.used, pool.available) == (2, 2)
    pool.release(one, 0)
    assert pool.used == 2
    pool.release(other, 0)
    assert (pool.used, pool.cached) == (0, 2)


def test_least_recently_used_leaf_goes_first() -> None:
    pool = KVPool(4)
    for chain in ([1, 2], [3, 4]):
        pool.release(fill(pool, chain), 0)
    pool.release(pool.use([1, 2], 2), 0)
    assert pool.allocate(3) == [4, 3, 2]
    assert pool.match([1, 2]) == 1


def test_the_part_of_a_run_that_is_used_again_outlives_the_rest() -> None:
    pool = KVPool(6)
    pool.release(fill(pool, [1, 2, 3]), 0)
    pool.release(fill(pool, [4, 5]), 0)
    pool.release(pool.use([1, 2, 3], 1), 0)
    assert pool.allocate(5) == [3, 2, 5, 4]
    assert pool.match([1, 2, 3]) == 1


def test_clearing_spares_blocks_in_use() -> None:
    pool = KVPool(4)
    runs = [fill(pool, chain) for chain in ([1, 2], [3, 4])]
    pool.release(runs[1], 0)
    assert pool.clear() == [4, 3]
    assert pool.match([1, 2]) == 2
    pool.check()
