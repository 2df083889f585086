"""What every routing policy must do, whatever its rule."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.model import Request
from fairlead.core.params import PolicyError
from fairlead.core.routing import POLICIES, make_routing
from fairlead.core.routing.base import RoutingContext
from fairlead.policies import shown

from .driver import Driver, make_dispatcher
from .routing_fleet import PlainFleet, match, policy, request

RANDOM = {"random", "power_of_two"}
VARIANTS = [(name, {}) for name in POLICIES.names()] + [
    ("linear", {"preset": "production"}),
    ("linear", {"preset": "production", "scale": "capacity"}),
    ("linear", {"preset": "llm-d"}),
    ("linear", {"preset": "dynamo-1.7"}),
    ("d2lpm", {"quantum": 1_000, "charge": "prompt"}),
    ("fair_lmetric", {"quantum": 50}),
    ("preble", {"rebalance_after": 0, "window_s": 2}),
    ("lmetric", {"window_s": 1}),
    ("dualmap", {"slo_ms": 20, "prefix_blocks": 1, "window_s": 1}),
]
every_policy = pytest.mark.parametrize(
    ("name", "given_params"), VARIANTS, ids=[f"{n}-{p}" if p else n for n, p in VARIANTS]
)


class World:
    """A fleet with random traffic that tells a policy what a dispatcher would, and logs its choices."""

    def __init__(self, name, given_params, seed, size, clients=("ann", "bob", "cyd")):
        self.rng = random.Random(seed)
        self.policy = policy(name, seed=seed, **given_params)
        self.fleet = PlainFleet(size)
        self.clients = list(clients)
        self.now = 0
        self.rid = 0
        self.cached = [{} for _ in range(size)]  # slot -> family of prompts -> tokens
        self.running = []
        self.log = []

    def step(self):
        self.now += self.rng.randrange(300_000)
        rare = [self.end, self.end, self.join, self.leave, self.block, self.tick, self.correct]
        (rare + [self.arrive] * 13)[self.rng.randrange(20)]()

    def match(self, req, family):
        tokens = [
            min(req.prompt_tokens - 1, req.prompt_tokens // 16 * 16, cache.get(family, 0))
            for cache in self.cached
        ]
        return match(self.fleet, [t // 16 * 16 for t in tokens])

    def arrive(self):
        rng, fleet = self.rng, self.fleet
        self.rid += 1
        family, prompt = rng.randrange(6), rng.randrange(1, 2_000)
        keys = range(10_000 * family, 10_000 * family + prompt // 16)
        req = Request(self.rid, rng.choice(self.clients), prompt, keys, session=rng.choice(["", "s1", "s2"]))
        m = self.match(req, family)
        if not fleet.candidates:  # nobody asks then
            return
        before = fleet.snapshot()
        choice = self.policy.choose(req, m, fleet, self.now)
        assert fleet.snapshot() == before
        self.log.append((choice.slot, choice.branch, list(choice.scores)))
        slot = choice.slot
        assert slot in fleet.candidates
        assert len(choice.scores) in (0, len(fleet.candidates))
        extend = prompt - m.tokens[slot]
        self.policy.assigned(req, slot, extend, self.now)
        if rng.random() < 0.1:
            self.policy.unassigned(req, slot, extend, self.now)
            return
        self.load(slot, 1, prompt, extend)
        self.cached[slot][family] = prompt // 16 * 16
        fleet.kv_cached[slot] = min(fleet.kv_tokens[slot], fleet.kv_cached[slot] + extend)
        self.running.append((req, slot, extend))

    def load(self, slot, n, prompt, extend):
        fleet = self.fleet
        fleet.batch_size[slot] += n
        fleet.running[slot] += n
        fleet.kv_used[slot] += n * prompt
        fleet.pending_prefill_tokens[slot] += n * extend

    def end(self):
        if self.running:
            req, slot, extend = self.running.pop(self.rng.randrange(len(self.running)))
            self.policy.decoded(req.client, slot, self.rng.randrange(400))
            self.load(slot, -1, req.prompt_tokens, extend)

    def correct(self):
        if self.running:
            req, slot, _ = self.rng.choice(self.running)
            self.policy.corrected(req.client, slot, self.rng.randrange(-20, 20), self.rng.randrange(-20, 20))

    def block(self):
        """Some workers are full or down for now."""
        fleet = self.fleet
        keep = self.rng.random()
        fleet.candidates = [s for s, w in enumerate(fleet.ids) if w and self.rng.random() < keep]

    def leave(self):
        fleet = self.fleet
        slot = self.rng.randrange(len(fleet.ids))
        if fleet.ids[slot]:
            for entry in [e for e in self.running if e[1] == slot]:
                self.running.remove(entry)
                self.load(slot, -1, entry[0].prompt_tokens, entry[2])
            fleet.ids[slot] = ""
            fleet.kv_cached[slot] = 0
            self.cached[slot] = {}
            fleet.candidates = [s for s in fleet.candidates if s != slot]
            self.policy.slot_reset(slot)

    def join(self):
        fleet = self.fleet
        free = [s for s, w in enumerate(fleet.ids) if not w]
        slot = free[0] if free else len(fleet.ids)
        if not free:
            for values in vars(fleet).values():
                if isinstance(values, list) and values is not fleet.candidates:
                    values.append(0)
            fleet.kv_tokens[slot] = 50_000
            self.cached.append({})
        fleet.ids[slot] = f"w{self.rid}-{slot}"
        fleet.candidates = [s for s, w in enumerate(fleet.ids) if w]

    def tick(self):
        self.policy.tick(self.now)

    def run(self, steps):
        for _ in range(steps):
            self.step()
            self.policy.check()
        return self.log


@every_policy
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**9), size=st.integers(1, 8))
def test_picks_only_candidates(name, given_params, seed, size):
    """Workers come, go, fill up and give their slots to others; the views stay as they were."""
    World(name, given_params, seed, size).run(200)


@every_policy
def test_same_seed_and_history_give_the_same_decisions(name, given_params):
    assert World(name, given_params, 7, 5).run(400) == World(name, given_params, 7, 5).run(400)


@pytest.mark.pure_only("replaces a method")
@pytest.mark.parametrize("name", [n for n in POLICIES.names() if n not in RANDOM])
def test_asked_twice_it_answers_the_same(name):
    """Deciding commits nothing: another process that asks, or a dispatcher that retries, changes nothing."""
    once, twice = World(name, {}, 3, 5), World(name, {}, 3, 5)
    choose = twice.policy.choose
    twice.policy.choose = lambda *args: (choose(*args), choose(*args))[1]
    assert once.run(400) == twice.run(400)


@pytest.mark.parametrize("name", ["d2lpm", "fair_lmetric"])
def test_the_order_in_which_clients_and_weights_became_known_changes_nothing(name):
    one, other = World(name, {"quantum": 100}, 4, 4), World(name, {"quantum": 100}, 4, 4)
    weights = [("ann", 2.0), ("bob", 0.5), ("zoe", 3.0)]
    for client, weight in weights:
        one.policy.set_weight(client, weight)
    for client, weight in reversed(weights):
        other.policy.set_weight(client, weight)
    for world, clients in ((one, "xyz"), (other, "zyx")):
        for client in clients:
            world.policy.assigned(request(1, client=client, rid=-5), 0, 1, 0)
        world.policy.last = -1
    assert one.run(400) == other.run(400)


TRACE = """
from tests.core.test_conformance_routing import VARIANTS, World
for name, given in VARIANTS:
    print(name, given, World(name, given, 11, 6).run(300))
"""


def test_decisions_do_not_depend_on_the_hash_seed():
    """Two processes with different hash seeds decide the same, to the last score."""
    traces = []
    for hash_seed in ("1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", TRACE],
            env=env,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        traces.append(done.stdout)
    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) == len(VARIANTS)


@pytest.mark.pure_only("replaces a method")
def test_the_dispatcher_asks_no_policy_while_there_is_no_candidate():
    """Workers that are down, full, gone, or have all failed a request: then it waits, whatever the policy."""
    asked, waited = [], 0
    for seed in range(6):
        dispatcher = make_dispatcher("least_requests")

        def counted(request, match, fleet, now, choose=dispatcher.routing.choose):
            asked.append(len(fleet.candidates))
            return choose(request, match, fleet, now)

        dispatcher.routing.choose = counted
        driver = Driver(dispatcher, random.Random(seed))
        for _ in range(400):
            driver.step()
            waited += dispatcher.queued > 0 and not dispatcher.fleet.candidates
    assert min(asked) > 0
    assert waited, "this must come up in one of the runs"


@every_policy
def test_one_worker_gets_everything(name, given_params):
    tested, fleet = policy(name, **given_params), PlainFleet(5)
    fleet.candidates = [3]
    for rid in range(50):
        m = match(fleet, [0, 900, 0, 900 * (rid % 2), 0])
        choice = tested.choose(request(rid=rid), m, fleet, rid)
        assert choice.slot == 3
        tested.assigned(request(rid=rid), 3, 1_000 - m.tokens[3], rid)


@every_policy
def test_survives_a_thousand_workers(name, given_params):
    """All of them, then every third."""
    world = World(name, given_params, 2, 1_024)
    for _ in range(10):
        world.arrive()
    world.fleet.candidates = list(range(0, 1_024, 3))
    for _ in range(10):
        world.arrive()
    world.policy.check()
    assert len(world.log) == 20


@every_policy
def test_a_request_without_a_single_token_is_placed(name, given_params):
    fleet = PlainFleet(3)
    req = Request(1, "ann", 0)
    assert policy(name, **given_params).choose(req, match(fleet), fleet, 0).slot in (0, 1, 2)


@pytest.mark.pure_only("reads all attributes of an object by vars()")
@every_policy
def test_books_stay_small(name, given_params):
    """A thousand clients, workers that are replaced, and an hour of silence leave next to nothing."""
    world = World(name, given_params, 5, 3, clients=[f"client {i}" for i in range(1_000)])
    world.run(600)
    world.policy.tick(world.now)
    for slot in range(len(world.fleet.ids)):
        world.policy.slot_reset(slot)
    for hour in (2, 4):
        world.policy.tick(world.now + hour * 3_600_000_000)
        for _ in range(10):
            world.policy.tick(world.now + hour * 3_600_000_000)
    world.policy.check()
    rings = {"session_affinity": 1, "dualmap": 2}.get(name, 0)
    ring = 6 * 128 * len(world.fleet.ids) * rings
    assert _things(vars(world.policy)) < 200 + ring


def _things(value, seen=None):
    """Entries in all containers reachable from ``value`` that belong to the policy."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (str, RoutingContext)):
        return 0
    seen.add(id(value))
    if isinstance(value, dict):
        return len(value) + sum(_things(v, seen) for v in value.values())
    if isinstance(value, (list, tuple, set)) or hasattr(value, "popleft"):
        return len(value) + sum(_things(v, seen) for v in value)
    inner = [getattr(value, n) for n in getattr(value, "__slots__", ())] + list(
        getattr(value, "__dict__", {}).values()
    )
    return sum(_things(v, seen) for v in inner)


@pytest.mark.parametrize("name", POLICIES.names())
def test_describes_itself(name):
    cls = POLICIES.get(name)
    assert cls.name == name
    assert cls.source
    assert cls.summary.endswith(".")
    assert len({p.name for p in cls.params}) == len(cls.params)
    assert all(p.help for p in cls.params)
    assert repr(policy(name)).startswith(f"<{cls.__name__} {name}(")


@pytest.mark.parametrize("name", POLICIES.names())
def test_defaults_are_valid_and_unknown_parameters_are_not(name):
    cls = POLICIES.get(name)
    shared = {p.name: p.default for p in cls.params if name != "linear"}
    assert make_routing(name, shared, RoutingContext(random.Random(1))).values == policy(name).values
    for unknown in ("speed", "context", "self"):
        with pytest.raises(PolicyError, match=f"{name}: unknown parameter '{unknown}'"):
            make_routing(name, {unknown: 3}, RoutingContext(random.Random(1)))


def test_an_unknown_policy_lists_the_valid_ones():
    with pytest.raises(
        PolicyError, match=r"unknown routing policy 'lmetrik' .*marginal.*did you mean 'lmetric'"
    ):
        make_routing("lmetrik", None, RoutingContext(random.Random(1)))


def parameter_rows(cls):
    """The rows of a policy's table in the docs."""
    return [f"| `{p.name}` | `{shown(p.default)}` | {p.help}{_choices(p)} |" for p in cls.params]


def _choices(param):
    return f" ({', '.join(param.choices)})" if param.choices else ""


@pytest.mark.parametrize("name", POLICIES.names())
def test_the_docs_have_a_section_with_its_source_and_parameters(name):
    cls = POLICIES.get(name)
    docs = (Path(__file__).parents[2] / "docs" / "policies" / "routing.md").read_text(encoding="utf-8")
    assert f"| [`{name}`](#{name}) | {cls.summary} |" in docs
    section = docs.split(f"## `{name}`\n")[1].split("\n## ")[0]
    assert f"Source: {cls.source}." in section
    for part in (*parameter_rows(cls), "Cost: ", "When it fails: "):
        assert part in section
    assert section.count("\n| `") == len(cls.params)
