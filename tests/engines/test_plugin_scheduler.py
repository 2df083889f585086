"""The plugin on vLLM's real scheduler and KV cache, without a model: every choice, every charge.

Run by test_plugin_versions.py with a second version of vLLM too.
"""

import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.plugins.bare_vllm import (
    BLOCK_TOKENS,
    Bare,
    engine_config,
    make_scheduler,
    new_request,
    prompt,
)

from fairlead.core.model import Costs
from fairlead.core.ordering.deficits import FIRST_QUANTUM
from fairlead.plugins.settings import PREFIX
from tests.engines.servers import MODEL_FOLDER

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself
    import torch
    from vllm.lora.request import LoRARequest
    from vllm.pooling_params import PoolingParams
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec
    from vllm.v1.outputs import DraftTokenIds
    from vllm.v1.request import RequestStatus

    from fairlead.plugins import vllm as plugin

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own

COSTS = Costs()
BLOCKS, SEQUENCES, BUDGET = 260, 6, 512
FORMS = pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "asynchronous"])
Settings = Callable[..., None]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Set what the plugin is told, in the environment."""

    def told(**values: str) -> None:
        for key, value in values.items():
            monkeypatch.setenv(PREFIX + key.upper(), value)

    return told


def config_of(*, ahead: bool = False, blocks: int = BLOCKS, **options: Any) -> Any:
    usual = {"max_num_seqs": SEQUENCES, "max_num_batched_tokens": BUDGET, "max_model_len": 4096}
    return engine_config(str(MODEL_FOLDER), blocks, ahead=ahead, **usual | options)


def fair(*, ahead: bool = False, blocks: int = BLOCKS, groups: Any = None, **options: Any) -> Bare:
    config = config_of(ahead=ahead, blocks=blocks, **options)
    return Bare(make_scheduler(plugin.DLPMScheduler, config, groups), ahead=ahead)


def stock(*, ahead: bool = False, blocks: int = BLOCKS, **options: Any) -> Bare:
    config = config_of(ahead=ahead, blocks=blocks, **options)
    return Bare(make_scheduler(AsyncScheduler if ahead else Scheduler, config), ahead=ahead)


def test_the_version_is_the_one_that_is_meant() -> None:
    assert plugin.vllm_version.startswith(os.environ.get("EXPECTED_VLLM", "0.32."))
    assert plugin.vllm_version.startswith(tuple(f"{version}." for version in plugin.TESTED))


class Arrivals:
    """Requests of three clients over documents that the cache cannot all hold, and what else happens."""

    def __init__(self, seed: int, requests: int = 260) -> None:
        self._rng = random.Random(seed)
        self._left = requests
        self._sent = 0
        self.open: list[str] = []

    def some(self, bare: Bare) -> bool:
        """Send, abort and reset at random; return whether anything is still to come."""
        rng = self._rng
        for _ in range(rng.choice((0, 0, 0, 1, 2, 12)) if self._left else 0):
            self._left -= 1
            name = f"r{self._sent}"
            self._sent += 1
            client = rng.choice(("alice", "bob", "mallory", "mallory"))
            shared = rng.choice((0, 96, 320, 608))
            length = shared + rng.choice((1, 31, 32, 33, 64, 200))
            tokens = prompt(length, name, shared, rng.randrange(6))
            bare.send(name, client, tokens, rng.choice((1, 2, 30, 180)))
            self.open.append(name)
            if self._left <= 0:
                break
        if self.open and rng.random() < 0.08:
            bare.abort(self.open.pop(rng.randrange(len(self.open))))
        if rng.random() < 0.01:
            bare.scheduler.reset_prefix_cache(reset_running_requests=True)
        return self._left > 0


def drive(bare: Bare, seed: int, seen: Callable[[Any], None] = lambda scheduled: None) -> None:
    """Put a random run through a scheduler; ``seen`` is told of what each step schedules."""
    arrivals = Arrivals(seed)
    while arrivals.some(bare) or bare.scheduler.has_unfinished_requests():
        seen(bare.step())


def matched(scheduler: Any, request: Any) -> int:
    """Return the cached prompt tokens of a request by vLLM's own search."""
    hashes, longest = request.block_hashes, request.num_tokens - 1
    return scheduler.kv_cache_manager.coordinator.find_longest_cache_hit(hashes, longest)[1]


def tidy(book: Any) -> None:
    """Put matches right that became shorter unseen, since nobody came up in the order."""
    for item in list(book):
        while book._matched(item.keys) < item.matched:
            book._queue.cache_evicted((item.keys[item.matched - 1],))


def waiting(scheduler: Any) -> list[Any]:
    """Return the requests that never ran, in order of arrival."""
    entries = scheduler.book.entries
    queue = [r for r in scheduler.waiting if entries[r.request_id].queued]
    return sorted(queue, key=lambda r: entries[r.request_id].item.seq)


def naive(scheduler: Any, order: str) -> Any:
    """Return who must go next, found by looking at everybody."""
    ordering, queue = scheduler.book.ordering, waiting(scheduler)
    if order == "fcfs":
        return queue[0]
    clients = {r.request_id: scheduler.book.entries[r.request_id].client for r in queue}
    if order == "vtc":
        least = max(ordering.credit(0, client) for client in clients.values())
        owners = {c for c in clients.values() if ordering.credit(0, c) == least}
        return {r.request_id for r in queue if clients[r.request_id] in owners}, queue
    if order == "dlpm":
        queue = [r for r in queue if ordering.credit(0, clients[r.request_id]) > 0]
    return max(queue, key=lambda r: matched(scheduler, r))  # the first of equals


@FORMS
@pytest.mark.parametrize("order", ["dlpm", "lpm", "fcfs"])
@pytest.mark.parametrize("seed", range(2))
def test_every_choice_is_the_policys(
    settings: Settings, order: str, seed: int, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(order="dlpm:quantum=500,light=off,ties=arrival" if order == "dlpm" else order)
    bare = fair(ahead=ahead)
    scheduler = bare.scheduler
    peek = plugin.FairQueue.peek_request
    chosen = preempted = 0

    def checked(queue: Any) -> Any:
        nonlocal chosen, preempted
        request = peek(queue)
        if scheduler.book.entries[request.request_id].queued:
            assert request is naive(scheduler, order)
            chosen += 1
        else:
            preempted += 1
        return request

    monkeypatch.setattr(plugin.FairQueue, "peek_request", checked)
    drive(bare, seed)
    assert chosen > 150
    assert preempted > 5


@pytest.mark.parametrize("order", ["dlpm", "lpm"])
def test_keys_that_are_all_the_same_change_no_choice(
    settings: Settings, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most that forged keys could do. They only say whose match to look up again."""
    monkeypatch.setattr(plugin.BlockHashes, "key_at", lambda keys, index: 7)
    test_every_choice_is_the_policys(settings, order, 0, False, monkeypatch)


@pytest.mark.parametrize("order", ["dlpm:quantum=500", "lpm"])
def test_every_match_is_the_one_that_vllm_finds(settings: Settings, order: str) -> None:
    settings(order=order)
    bare = fair()
    matches = 0

    def sound(scheduled: Any) -> None:
        nonlocal matches
        book = bare.scheduler.book
        tidy(book)
        book.ordering.check()
        for request in waiting(bare.scheduler):
            tokens = book.entries[request.request_id].item.matched_tokens
            assert tokens == matched(bare.scheduler, request)
            matches += tokens > 0

    drive(bare, 3, sound)
    assert matches > 500


@pytest.mark.parametrize("seed", range(2))
def test_no_match_is_ever_taken_for_shorter_than_it_is(settings: Settings, seed: int) -> None:
    """Longer is put right when the request comes up; who is taken for less would come up too late."""
    settings(order="dlpm:quantum=200")
    bare = fair(blocks=140)
    longer = 0

    def sound(scheduled: Any) -> None:
        nonlocal longer
        for request in waiting(bare.scheduler):
            tokens = bare.scheduler.book.entries[request.request_id].item.matched_tokens
            found = matched(bare.scheduler, request)
            assert tokens >= found
            longer += tokens > found

    drive(bare, seed, sound)
    assert longer > 20


def half_cached(bare: Bare) -> tuple[list[int], Any]:
    """Have a request of alice's wait, half of whose prompt is cached; return the prompt, and what waits."""
    document = prompt(640, 0, 640, "d")
    bare.send("short", "alice", document[:320], 1)
    bare.run()
    bare.send("waits", "alice", document, 1)
    item = bare.scheduler.book.entries["waits"].item
    assert item.matched_tokens == 320
    return document, item


def test_blocks_computed_twice_are_told_of_where_they_are_new(settings: Settings) -> None:
    settings(order="dlpm:quantum=100")
    bare = fair(max_num_seqs=1)
    document, item = half_cached(bare)
    # It computes all of its prompt, cached or not, and goes first: alice owes more than bob.
    blind = new_request("blind", "bob", document[:448], 30)
    blind.skip_reading_prefix_cache = True
    bare.scheduler.add_request(blind)
    assert bare.step().num_scheduled_tokens == {"blind": 448}
    assert item.matched_tokens == 448


def test_blocks_computed_again_beyond_where_they_were_evicted_are_told_of(settings: Settings) -> None:
    settings(order="dlpm:quantum=100")
    bare = fair(max_num_seqs=1)
    document, item = half_cached(bare)
    pool = bare.scheduler.kv_cache_manager.block_pool
    for index in range(5, 10):  # as if other requests had needed them
        (block,) = pool.get_cached_block(item.keys.hash_at(index), [0])
        assert pool._maybe_evict_cached_block(block)
    assert item.matched_tokens == 320  # nobody was told
    bare.send("again", "bob", document[:448], 30)
    assert bare.step().num_scheduled_tokens == {"again": 448 - 160}
    assert item.matched_tokens == 448


def test_who_is_popped_is_who_was_seen(settings: Settings) -> None:
    """What is allocated in between can make another one the better match."""
    settings(order="lpm")
    bare = fair(max_num_seqs=1)
    first = prompt(384, 1)
    bare.send("first", "alice", first, 2)
    bare.send("longer", "alice", [*first, *prompt(64, 2)], 2)
    assert bare.step().num_scheduled_tokens == {"first": 384}
    assert bare.scheduler.running[0].request_id == "first"
    assert bare.scheduler.waiting.peek_request().request_id == "longer"
    bare.run()
    assert bare.scheduler.book.figures.clients["alice"].cached_tokens == 384


def test_who_leaves_while_its_prompt_is_computed_pays_for_that_much(settings: Settings) -> None:
    settings(order="dlpm:quantum=10000")
    bare = fair(max_num_batched_tokens=128)
    bare.send("a", "alice", prompt(1000, 1), 5)
    for steps in (1, 2, 3):
        bare.step()
        assert bare.scheduler.book.ordering.credit(0, "alice") == 10_000 - 1000, steps
    bare.abort("a")
    assert bare.scheduler.book.ordering.credit(0, "alice") == 10_000 - 3 * 128


@FORMS
@pytest.mark.parametrize("seed", range(2))
def test_vtc_serves_the_client_with_the_least_service(
    settings: Settings, seed: int, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(order="vtc")
    bare = fair(ahead=ahead)
    peek = plugin.FairQueue.peek_request
    chosen = 0

    def checked(queue: Any) -> Any:
        nonlocal chosen
        request = peek(queue)
        entries = bare.scheduler.book.entries
        if entries[request.request_id].queued:
            names, in_order = naive(bare.scheduler, "vtc")
            assert request.request_id in names
            mine = entries[request.request_id].client
            assert request is next(r for r in in_order if entries[r.request_id].client == mine)
            chosen += 1
        return request

    monkeypatch.setattr(plugin.FairQueue, "peek_request", checked)
    drive(bare, seed, lambda scheduled: bare.scheduler.book.ordering.check())
    assert chosen > 150


@FORMS
@pytest.mark.parametrize("seed", range(2))
def test_in_order_of_arrival_every_step_is_stock_vllms(settings: Settings, seed: int, ahead: bool) -> None:
    settings(order="fcfs")
    ours, theirs = fair(ahead=ahead), stock(ahead=ahead)
    steps: list[list[Any]] = [[], []]
    for bare, found in zip((ours, theirs), steps, strict=True):
        drive(bare, seed, lambda step, found=found: found.append(dict(step.num_scheduled_tokens)))
    assert steps[0] == steps[1]
    assert len(steps[0]) > 500
    assert ours.tokens == theirs.tokens


class Meter:
    """Adds up what a scheduler computes for each client, from what it schedules alone."""

    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self.work: dict[str, int] = {}
        """Tokens computed."""

    def step(self, scheduled: Any) -> None:
        for name, count in scheduled.num_scheduled_tokens.items():
            client = self._bare.clients[name]
            self.work[client] = self.work.get(client, 0) + count

    def outputs(self, client: str) -> tuple[int, int]:
        """Return the output tokens of a client, and in how many requests they are."""
        mine = [tokens for name, tokens in self._bare.tokens.items() if self._bare.clients[name] == client]
        return sum(map(len, mine)), sum(map(bool, mine))


@pytest.mark.parametrize("order", ["dlpm:quantum=500,light=off", "dlpm:quantum=500", "lpm", "vtc"])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_charged_is_what_was_computed(settings: Settings, order: str, seed: int) -> None:
    """Preempted, resumed and aborted requests too: each token is charged once, as prompt or as output."""
    settings(order=order)
    bare = fair()
    meter = Meter(bare)
    drive(bare, seed, meter.step)
    figures = bare.scheduler.book.figures.clients
    assert bare.scheduler.book.figures.ignored == 0, "nothing that vLLM really says is doubted"
    assert sum(f.preemptions for f in figures.values()) > 5
    for client, work in meter.work.items():
        output, requests = meter.outputs(client)
        found = figures[client]
        assert found.output_tokens == output
        # The last token of an output is not computed on.
        assert found.extend_tokens + output - requests == work
        assert found.waiting == found.running == found.preempted == 0
        if order.endswith("light=off"):
            service = COSTS.extend * found.extend_tokens + COSTS.output * output
            granted = bare.scheduler.book.ordering.credit(0, client) + service
            assert granted > 0
            assert granted % 500 == 0, "credit and service differ by whole refills"
    assert not bare.scheduler.book.entries


def flooded(bare: Bare, seen: Callable[[Any], None] = lambda scheduled: None, steps: int = 600) -> Meter:
    """Keep three clients backlogged, one of whom has six times as much waiting; documents of their own."""
    meter = Meter(bare)
    rng, sent = random.Random(1), 0
    open_ = {"alice": 4, "bob": 4, "mallory": 24}
    for _ in range(steps):
        queued = [bare.clients[request.request_id] for request in bare.scheduler.waiting]
        for client, wanted in open_.items():
            have = queued.count(client)
            for _ in range(wanted - have):
                sent += 1
                tokens = prompt(560, sent, 480, f"{client} {rng.randrange(4)}")
                bare.send(f"f{sent}", client, tokens, rng.randint(10, 40))
        scheduled = bare.step()
        meter.step(scheduled)
        seen(scheduled)
    return meter


FLOOD = {"blocks": 110, "max_num_seqs": 6}
"""Room for the batch and for a few of the twelve documents, 15 blocks each."""


def gap(figures: Any, weights: dict[str, float] | None = None) -> float:
    """Return the largest difference of weighted service between two clients."""
    service = [
        (COSTS.extend * f.extend_tokens + COSTS.output * f.output_tokens) / (weights or {}).get(client, 1)
        for client, f in figures.clients.items()
    ]
    return max(service) - min(service)


@FORMS
@pytest.mark.parametrize("weights", [{}, {"alice": 2.0, "bob": 0.5}], ids=["equal", "weighted"])
def test_the_service_gap_stays_within_the_bound_at_every_step(
    settings: Settings, ahead: bool, weights: dict[str, float]
) -> None:
    """|W_f/w_f - W_g/w_g| <= 2Q + U_f/w_f + U_g/w_g, U the prompt of one request and the batch's outputs."""
    quantum = 2000
    told = ",".join(f"{client}={weight}" for client, weight in weights.items())
    settings(order=f"dlpm:quantum={quantum}", weights=told)
    bare = fair(ahead=ahead, **FLOOD)
    uncharged = COSTS.extend * 560 + COSTS.output * 40 * FLOOD["max_num_seqs"]
    least = sorted(weights.get(client, 1.0) for client in ("alice", "bob", "mallory"))
    bound = 2 * quantum + uncharged / least[0] + uncharged / least[1]
    widest = 0.0

    def within(scheduled: Any) -> None:
        nonlocal widest
        widest = max(widest, gap(bare.scheduler.book.figures, weights))
        assert widest <= bound

    flooded(bare, within)
    figures = bare.scheduler.book.figures.clients
    assert all(f.admitted > 5 for f in figures.values())
    print(f"\nwidest gap {widest:,.0f} of {bound:,.0f}")


def test_dlpm_reuses_more_than_vtc_and_is_fairer_than_arrival_order(settings: Settings) -> None:
    hits, gaps = {}, {}
    for order in ("fcfs", "lpm", "vtc", "dlpm:quantum=4000"):
        settings(order=order)
        bare = fair(**FLOOD)
        flooded(bare)
        figures = bare.scheduler.book.figures
        hits[order] = sum(f.cached_tokens for f in figures.clients.values()) / sum(
            f.prompt_tokens for f in figures.clients.values()
        )
        gaps[order] = gap(figures)
    print(f"\nhits {hits}\ngaps {gaps}")
    assert hits["dlpm:quantum=4000"] > hits["vtc"] + 0.1
    assert gaps["dlpm:quantum=4000"] < gaps["fcfs"] / 2
    assert gaps["dlpm:quantum=4000"] < gaps["lpm"] / 2


@FORMS
@pytest.mark.parametrize("order", ["dlpm", "vtc", "fcfs"])
def test_who_waits_for_a_grammar_is_passed_over_until_it_is_there(
    settings: Settings, order: str, ahead: bool
) -> None:
    settings(order=order)
    bare = fair(ahead=ahead)
    scheduler = bare.scheduler
    request = new_request("blocked", "alice", prompt(64, "b"), 5)
    request.structured_output_request = SimpleNamespace(grammar=None)
    request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    scheduler.add_request(request)
    for n in range(3):
        scheduler.add_request(new_request(f"r{n}", "alice", prompt(64, n), 40))
    for _ in range(10):
        assert "blocked" not in bare.step().num_scheduled_tokens
        scheduler.book.ordering.check()
    assert scheduler.get_request_counts() == (3, 1)
    assert len(scheduler.waiting) == 1
    # The grammar itself is of no interest: without one in the request nothing is masked.
    request.structured_output_request.grammar = object()
    scheduler._handle_blocked_waiting_request(request)
    request.structured_output_request = None
    assert request.status == RequestStatus.WAITING
    bare.run()
    assert len(bare.tokens["blocked"]) == 5
    assert not scheduler.book.entries


@FORMS
def test_a_session_that_goes_on_pays_for_what_its_prompt_has_grown_by(
    settings: Settings, ahead: bool
) -> None:
    """Streamed input: such a request keeps its blocks between turns and does not queue again."""
    settings(order="dlpm")
    bare = fair(ahead=ahead)
    bare.scheduler.add_request(new_request("s", "alice", prompt(100, 1), 4, resumable=True))
    for _ in range(12):
        bare.step()
    figures = bare.scheduler.book.figures.clients["alice"]
    assert (figures.extend_tokens, figures.output_tokens, figures.running) == (100, 4, 1)
    bare.scheduler.add_request(new_request("s", "alice", prompt(50, 2), 4, resumable=True))
    for _ in range(12):
        bare.step()
    # 50 of the new turn, and the last token of the first answer, if vLLM keeps it.
    assert figures.extend_tokens - 150 in (0, 1)
    assert (figures.output_tokens, figures.running) == (8, 1)
    bare.abort("s")
    assert (figures.running, figures.ended) == (0, 1)
    assert not bare.scheduler.book.entries


def test_a_request_that_asks_not_to_read_the_cache_matches_nothing(settings: Settings) -> None:
    settings(order="lpm")
    bare = fair(max_num_seqs=1)
    bare.send("first", "alice", prompt(320, 0, 320, "d"), 3)
    bare.run()
    request = new_request("blind", "alice", prompt(330, 1, 320, "d"), 3)
    request.skip_reading_prefix_cache = True
    bare.scheduler.add_request(request)
    bare.send("sees", "alice", prompt(330, 2, 320, "d"), 3)
    assert bare.scheduler.waiting.peek_request().request_id == "sees"
    bare.run()
    assert bare.scheduler.book.figures.clients["alice"].cached_tokens == 320


@FORMS
@pytest.mark.parametrize("order", ["dlpm:quantum=500", "vtc", "fcfs"])
def test_who_waits_for_an_adapters_slot_is_passed_over(settings: Settings, order: str, ahead: bool) -> None:
    settings(order=order)
    options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}
    runs = [fair(ahead=ahead, **options), stock(ahead=ahead, **options)]
    steps: list[list[Any]] = [[], []]
    for bare, found in zip(runs, steps, strict=True):
        for n in range(40):
            adapter = LoRARequest(f"adapter {n % 3}", n % 3 + 1, "/nowhere")
            client = f"client {n % 3}"
            request = new_request(f"r{n}", client, prompt(100, n), 10 + n, lora_request=adapter)
            bare.scheduler.add_request(request)
        while bare.scheduler.has_unfinished_requests():
            found.append(dict(bare.step().num_scheduled_tokens))
            assert len({int(name[1:]) % 3 for name in found[-1]}) <= 1
            if bare is runs[0]:
                bare.scheduler.book.ordering.check()
        assert {name: len(tokens) for name, tokens in bare.tokens.items()} == {
            f"r{n}": 10 + n for n in range(40)
        }
    if order == "fcfs":
        assert steps[0] == steps[1]
    assert not runs[0].scheduler.book.entries


def test_drafted_tokens_are_charged_as_far_as_they_are_accepted(settings: Settings) -> None:
    settings(order="dlpm:quantum=500")
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    bare = fair(speculative_config=drafts)
    scheduler = bare.scheduler
    rng, accepted = random.Random(1), 0
    for n in range(12):
        bare.send(f"r{n}", f"client {n % 3}", prompt(300, n, 200, n % 3), 20)
    while scheduler.has_unfinished_requests():
        scheduled = scheduler.schedule()
        output = bare.output_of(scheduled)
        for n, name in enumerate(output.req_ids):
            more = rng.randint(0, len(scheduled.scheduled_spec_decode_tokens.get(name, ())))
            output.sampled_token_ids[n] += [7] * more
            accepted += more
        bare.end(scheduled, output)
        drafted = [n for n, t in zip(output.req_ids, output.sampled_token_ids, strict=True) if t]
        live = [name for name in drafted if name in scheduler.requests]
        scheduler.update_draft_token_ids(DraftTokenIds(live, [[5, 6, 7] for _ in live]))
    assert accepted > 50
    for client, figures in scheduler.book.figures.clients.items():
        assert figures.output_tokens == 4 * 20
        service = COSTS.extend * figures.extend_tokens + COSTS.output * figures.output_tokens
        assert (scheduler.book.ordering.credit(0, client) + service) % 500 == 0


def test_a_pooling_request_pays_for_its_prompt(settings: Settings) -> None:
    settings(order="dlpm:quantum=500")
    bare = fair()
    request = new_request("pool", "alice", prompt(100, 1), 1)
    request.sampling_params, request.pooling_params = None, PoolingParams(task="embed")
    bare.scheduler.add_request(request)
    scheduled = bare.scheduler.schedule()
    output = bare.output_of(scheduled)
    output.sampled_token_ids, output.pooler_output = [[]], [torch.zeros(4)]
    bare.scheduler.update_from_output(scheduled, output)
    figures = bare.scheduler.book.figures.clients["default"]
    assert (figures.extend_tokens, figures.output_tokens, figures.ended) == (100, 0, 1)
    assert not bare.scheduler.book.entries


def test_who_sent_a_request(settings: Settings) -> None:
    settings(default_client="nobody")
    bare = fair()
    bare.scheduler.add_request(new_request("a", "alice", prompt(40, 1), 1))
    bare.scheduler.add_request(new_request("b", None, prompt(40, 2), 1, session_id="s1"))
    bare.scheduler.add_request(new_request("c", None, prompt(40, 3), 1))
    assert set(bare.scheduler.book.figures.clients) == {"alice", "session:s1", "nobody"}


STRANGE = {
    "a list": (["alice"], "default"),
    "a fraction": (1.5, "default"),
    "half a surrogate pair": ("\ud800", "default"),
    "a huge number": (2**64 - 1, "18446744073709551615"),
    "lines": ("a\n\0b", "a\n\0b"),
    "the default's name": ("default", "default"),
}


@pytest.mark.parametrize(("client", "account"), STRANGE.values(), ids=STRANGE)
def test_a_strange_client_id_is_charged_somewhere_and_harms_nobody(
    settings: Settings, tmp_path: Path, client: Any, account: str
) -> None:
    settings(metrics_file=str(tmp_path / "f.json"))
    bare = fair()
    bare.scheduler.add_request(new_request("strange", client, prompt(100, 1), 3))
    bare.scheduler.add_request(new_request("x" * 1_000_000, "x" * 1_000_000, prompt(100, 2), 3))
    bare.send("good", "alice", prompt(100, 3), 3)
    bare.run()
    bare.scheduler.shutdown()
    clients = json.loads((tmp_path / "f.json").read_text())["clients"]
    assert len(clients) == 3
    assert all(row["service"] == 106 for row in clients.values())
    assert {account, "alice"} < set(clients)


@pytest.mark.parametrize("computed", [-5, 101, 10**30, 1.5])
def test_computed_tokens_that_cannot_be_true_are_left_out(settings: Settings, computed: Any) -> None:
    """The request is charged its prompt, of which the plugin itself found nothing in the cache."""
    settings(order="dlpm:quantum=1000")
    bare = fair()
    bare.send("a", "alice", prompt(100, 1), 3)
    queue = bare.scheduler.waiting
    request = queue.pop_request()
    request.status, request.num_computed_tokens = RequestStatus.RUNNING, computed
    queue.settle()
    figures = bare.scheduler.book.figures
    assert figures.ignored == 1
    assert (figures.clients["alice"].extend_tokens, figures.clients["alice"].running) == (100, 1)


def test_extra_arguments_that_are_no_table_name_nobody(settings: Settings) -> None:
    settings()
    bare = fair()
    request = new_request("a", None, prompt(40, 1), 1)
    request.sampling_params.extra_args = ["client_id"]
    request.arrival_time = float("nan")
    bare.scheduler.add_request(request)
    bare.run()
    assert bare.scheduler.book.figures.clients["default"].ended == 1


def layer(spec: type[Any], **options: Any) -> Any:
    made = spec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=32, dtype=torch.float32, **options)
    return KVCacheGroupSpec([spec.__name__], made)


@pytest.mark.parametrize("seed", range(2))
def test_with_sliding_windows_it_goes_by_the_blocks_of_full_attention(settings: Settings, seed: int) -> None:
    settings(order="dlpm:quantum=500")
    groups = [layer(FullAttentionSpec), layer(SlidingWindowSpec, sliding_window=128)]
    bare = fair(groups=groups, blocks=2 * BLOCKS)
    book = bare.scheduler.book
    matches = 0

    def sound(scheduled: Any) -> None:
        nonlocal matches
        tidy(book)
        book.ordering.check()
        for request in waiting(bare.scheduler):
            item = book.entries[request.request_id].item
            assert item.matched_tokens >= matched(bare.scheduler, request)
            matches += item.matched > 0

    meter = Meter(bare)

    def seen(scheduled: Any) -> None:
        meter.step(scheduled)
        sound(scheduled)

    drive(bare, seed, seen)
    assert matches > 50
    for client, work in meter.work.items():
        output, requests = meter.outputs(client)
        assert book.figures.clients[client].extend_tokens + output - requests == work


def test_a_match_that_says_nothing_is_refused(settings: Settings) -> None:
    groups = [layer(SlidingWindowSpec, sliding_window=128)]
    settings(order="dlpm")
    with pytest.raises(plugin.UnsupportedError, match=r"no layer of full attention.*ORDER to vtc"):
        fair(groups=groups)
    settings(order="vtc")
    bare = fair(groups=groups)
    drive(bare, 1)
    assert not bare.scheduler.book.entries


def test_without_a_prefix_cache_it_is_fair_all_the_same(settings: Settings) -> None:
    settings(order="dlpm:quantum=1000")
    bare = fair(enable_prefix_caching=False, **FLOOD)
    flooded(bare, steps=300)
    figures = bare.scheduler.book.figures
    assert sum(f.cached_tokens for f in figures.clients.values()) == 0
    assert gap(figures) <= 2 * 1000 + 2 * (560 + 2 * 40 * 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduling_policy": "priority"}, r"--scheduling-policy priority is an order of its own"),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            r"connectors .* are not supported",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(plugin.UnsupportedError, match=message):
        fair(**options)


def test_settings_that_are_wrong_end_the_start(settings: Settings) -> None:
    settings(order="dlmp")
    with pytest.raises(ValueError, match="did you mean 'dlpm'"):
        fair()


def test_a_vllm_that_lacks_something_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugin.missing() == []
    monkeypatch.delattr(plugin.BlockPool, "cache_full_blocks")
    monkeypatch.delattr(plugin.Scheduler, "_preempt_request")
    monkeypatch.setattr(plugin.NewRequestData, "__annotations__", {"req_id": str})
    monkeypatch.setattr(plugin.FairQueue, "__abstractmethods__", frozenset({"peek_two"}))
    with pytest.raises(plugin.UnsupportedError) as caught:
        plugin.refuse(config_of())
    for name in (
        "Scheduler._preempt_request",
        "BlockPool.cache_full_blocks(request, blocks",
        "NewRequestData.num_computed_tokens",
        "RequestQueue without peek_two",
        "Tested versions: 0.32, 0.33",
    ):
        assert name in str(caught.value)


def test_the_figures_are_in_a_file(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    settings(metrics_file=str(path), metrics_interval_secs="30", weights="alice=2")
    bare = fair()
    assert json.loads(path.read_text())["clients"] == {}
    bare.send("a", "alice", prompt(100, 1), 5)
    bare.send("b", "bob", prompt(100, 2), 5)
    bare.run()
    bare.scheduler.shutdown()
    told = json.loads(path.read_text())
    assert told["order"] == "dlpm"
    alice = told["clients"]["alice"]
    assert (alice["extend_tokens"], alice["output_tokens"], alice["service"]) == (100, 5, 110)
    assert (alice["weight"], told["clients"]["bob"]["weight"]) == (2, 1)
    assert alice["credit"] == 2 * FIRST_QUANTUM - 110
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("seed", range(8))
def test_the_end_of_what_is_cached_is_found_from_wherever_it_was(seed: int) -> None:
    rng = random.Random(seed)
    length = rng.choice((0, 1, 2, 7, 130))
    cached = 0
    looked_up = 0

    def lookup(block_hash: int, groups: list[int]) -> object:
        nonlocal looked_up
        looked_up += 1
        return True if block_hash < 3 * cached + 3 else None

    cache = plugin.PrefixCache.__new__(plugin.PrefixCache)
    cache.pool = SimpleNamespace(get_cached_block=lookup)
    cache._groups = [0]
    keys = plugin.BlockHashes([n + 1 for n in range(3 * length)], length, 3)
    for _ in range(50):
        cached = rng.randint(0, length)
        assert cache.matched(keys) == cached
        looked_up = 0
        assert cache.matched(keys) == cached
        assert looked_up <= 2
    assert list(keys) == [3 * n + 3 for n in range(length)]
    assert keys[1:3] == [6, 9][: max(0, length - 1)]
