"""The plugin on SGLang's real scheduler, prefix caches and memory, with no model: each choice and charge."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from fairlead.core.model import Costs
from fairlead.plugins import sglang as plugin
from fairlead.plugins.book import PREEMPTED
from tests.plugins_sglang.bare_sglang import Bare
from tests.plugins_sglang.conftest import Settings
from tests.plugins_sglang.runs import Meter, drive, prompt

COSTS = Costs()
POOL = 1010
CACHES = pytest.mark.parametrize("cache", ["radix", "unified"])
FORMS = pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])


def matched(bare: Bare, req: Any) -> int:
    """Return the cached blocks of a prompt by SGLang's own search."""
    key = RadixKey(token_ids=req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt)
    found = bare.scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key)).device_prefix_len
    return min(found, len(req.origin_input_ids) - 1) // bare.scheduler.fairlead.block_tokens


def common(one: Any, other: Any) -> int:
    pairs = zip(one.origin_input_ids, other.origin_input_ids, strict=False)
    return next(
        (n for n, (a, b) in enumerate(pairs) if a != b),
        min(map(len, (one.origin_input_ids, other.origin_input_ids))),
    )


class Choices:
    """Holds every candidate that the scheduler looks at against a search of its whole queue."""

    def __init__(self, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order = order
        self.bare: Bare
        self.chosen = self.retracted = self.deep = self.waited = 0
        self._batch: list[Any] = []
        begin, look, admitted = plugin.Turns.order, Req.init_next_round_input, plugin.Turns.admitted

        def order_(turns: Any, queue: Any) -> None:
            self._batch.clear()
            begin(turns, queue)

        def look_(req: Any, tree_cache: Any = None, cow_mamba: Any = None) -> None:
            if tree_cache is not None:
                self._check(req)
            look(req, tree_cache, cow_mamba)

        def admitted_(turns: Any, req: Any) -> None:
            admitted(turns, req)
            self._batch.append(req)

        monkeypatch.setattr(plugin.Turns, "order", order_)
        monkeypatch.setattr(plugin.Turns, "admitted", admitted_)
        monkeypatch.setattr(Req, "init_next_round_input", look_)

    def _check(self, req: Any) -> None:
        made = self.bare.scheduler
        known = made.fairlead.known
        left = [r for r in made.waiting_queue if r not in self._batch]
        retracted = [r for r in left if known[id(r)].entry.state == PREEMPTED]
        if retracted:
            assert req is retracted[0]
            self.retracted += 1
            return
        left.sort(key=lambda r: known[id(r)].entry.item.seq)
        cold = {r.rid for r in left if matched(self.bare, r) <= 1}
        alone = [
            r
            for r in left
            if self.order in {"fcfs", "vtc"}
            or r.rid not in cold
            or all(common(r, other) < 32 for other in self._batch)
        ]
        self.chosen += 1
        self.deep += len(left) > 128
        if not alone:
            assert req in left
            self.waited += 1
            return
        if self.order == "vtc":  # of equal counters one that was lifted goes first: one of the owners' oldest
            book, known = self.bare.scheduler.fairlead.book, self.bare.scheduler.fairlead.known
            owner = {id(r): known[id(r)].entry.client for r in alone}
            most = max(book.ordering.credit(0, client) for client in owner.values())
            assert book.ordering.credit(0, owner[id(req)]) == most
            assert req is next(r for r in alone if owner[id(r)] == owner[id(req)])
            return
        assert req is self._best(alone)

    def _best(self, left: list[Any]) -> Any:
        if self.order == "fcfs":
            return left[0]
        known, ordering = self.bare.scheduler.fairlead.known, self.bare.scheduler.fairlead.book.ordering
        credit = {r.rid: ordering.credit(0, known[id(r)].entry.client) for r in left}
        if self.order == "dlpm":
            left = [r for r in left if credit[r.rid] > 0]
        return max(left, key=lambda r: matched(self.bare, r))  # the first of equals


@CACHES
@FORMS
@pytest.mark.parametrize("order", ["dlpm", "lpm", "vtc", "fcfs"])
def test_every_choice_is_the_policys(
    settings: Settings, order: str, cache: str, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(order="dlpm:quantum=500,light=off,ties=arrival" if order == "dlpm" else order)
    choices = Choices(order, monkeypatch)
    choices.bare = Bare(cache=cache, overlap=overlap, tokens=POOL)
    drive(choices.bare, 1)
    assert choices.chosen > 150
    assert choices.retracted > 3


def test_a_deep_queue_is_ordered_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's own ``lpm`` gives up above 128 waiting requests."""
    settings(order="dlpm:quantum=2000,light=off,ties=arrival")
    choices = Choices("dlpm", monkeypatch)
    bare = choices.bare = Bare(tokens=4000)
    for n in range(300):
        bare.send(f"r{n}.", f"client {n % 3}", prompt(340, n, 320, n % 10), 4)
    bare.run()
    assert choices.deep > 100


@CACHES
@FORMS
@pytest.mark.parametrize("order", ["dlpm:quantum=500", "lpm"])
def test_every_match_is_the_one_that_sglang_finds(
    settings: Settings, order: str, cache: str, overlap: bool
) -> None:
    settings(order=order)
    bare = Bare(cache=cache, overlap=overlap, tokens=POOL)
    turns, matches, steps = bare.scheduler.fairlead, 0, 0

    def sound(_: Any) -> None:
        nonlocal matches, steps
        steps += 1
        if steps % 7:
            return
        book = turns.book
        book.stored(turns._stored)
        turns._stored.clear()
        for item in list(book):  # put right what became shorter unseen, since nobody came up in the order
            while book._matched(item.keys) < item.matched:
                book._queue.cache_evicted((item.keys[item.matched - 1],))
        book.ordering.check()
        for item in book:
            assert item.matched == matched(bare, turns._by_number[item.rid].req)
            matches += item.matched > 0

    drive(bare, 3, sound)
    assert matches > 300


@CACHES
@pytest.mark.parametrize("order", ["dlpm:quantum=500,light=off", "lpm", "vtc"])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_charged_is_what_was_computed(settings: Settings, order: str, cache: str, seed: int) -> None:
    """Retracted, resumed and aborted requests too: each token is charged once, as prompt or as output."""
    settings(order=order)
    bare = Bare(cache=cache, tokens=POOL)
    meter = Meter(bare)
    drive(bare, seed, meter, outputs=(1, 60, 120, 180))
    turns = bare.scheduler.fairlead
    figures = turns.book.figures.clients
    assert turns.book.figures.ignored == 0, "nothing that SGLang really says is doubted"
    assert sum(f.preemptions for f in figures.values()) > 1
    assert len(bare.aborted) > 5
    for client, work in meter.work.items():
        mine = [count for name, count in bare.tokens.items() if bare.clients[name] == client]
        found = figures[client]
        assert found.output_tokens == sum(mine)
        # The last token of an output is not computed on.
        assert found.extend_tokens + sum(mine) - sum(map(bool, mine)) == work
        assert found.waiting == found.running == found.preempted == 0
        assert found.admitted <= found.ended
        if order.startswith("dlpm"):
            service = COSTS.extend * found.extend_tokens + COSTS.output * found.output_tokens
            granted = turns.book.ordering.credit(0, client) + service
            assert granted > 0
            assert granted % 500 == 0, "credit and service differ by whole refills"
    assert not turns.book.entries
    assert not turns.known
    assert not turns._by_number


def test_who_leaves_while_its_prompt_is_computed_pays_for_that_much(settings: Settings) -> None:
    settings(order="dlpm:quantum=10000")
    bare = Bare(chunk=128)
    bare.send("a.", "alice", prompt(1000, 1), 5)
    ordering = bare.scheduler.fairlead.book.ordering
    for steps in (1, 2, 3):
        bare.step()
        assert ordering.credit(0, "alice") == 10_000 - 1000, steps
    bare.abort("a.")
    bare.step()
    assert bare.aborted == ["a."]
    assert ordering.credit(0, "alice") == 10_000 - 3 * 128
    assert not bare.scheduler.fairlead.known


def test_who_is_aborted_while_it_waits_pays_nothing(settings: Settings) -> None:
    settings(order="dlpm:quantum=10000")
    bare = Bare(sequences=1)
    bare.send("a.", "alice", prompt(100, 1), 20)
    bare.send("b.", "bob", prompt(100, 2), 20)
    bare.send("c.", "bob", prompt(100, 3), 20)
    bare.step()
    bare.abort("b.")
    figures = bare.scheduler.fairlead.book.figures.clients["bob"]
    assert (figures.waiting, figures.ended) == (1, 1)
    bare.scheduler.waiting_queue.clear()  # without a word
    bare.live.pop("c.")
    bare.send("d.", "alice", prompt(100, 4), 20)
    bare.run()
    assert (figures.waiting, figures.ended, figures.admitted) == (0, 2, 0)
    assert not bare.scheduler.fairlead.known


def test_a_name_may_come_back(settings: Settings) -> None:
    settings(order="dlpm")
    bare = Bare(sequences=1)
    bare.send("a.", "alice", prompt(100, 1), 40)
    bare.send("b.", "bob", prompt(100, 2), 4)
    bare.step()
    bare.scheduler.waiting_queue.clear()
    bare.send("b.", "carol", prompt(50, 3), 4)
    bare.run()
    figures = bare.scheduler.fairlead.book.figures.clients
    assert (figures["bob"].ended, figures["bob"].admitted) == (1, 0)
    assert (figures["carol"].extend_tokens, figures["carol"].output_tokens) == (50, 4)


def test_two_callers_may_choose_one_name_at_once(settings: Settings) -> None:
    """SGLang's HTTP processes each refuse a name that is in use there, and do not know of each other's."""
    settings(order="dlpm:quantum=500")
    bare = Bare(sequences=1)
    bare.send("first.", "carol", prompt(40, 0), 4)
    for n, client in enumerate(("alice", "bob", "alice", "bob")):
        bare.send("same.", client, prompt(100 + 10 * n, n + 1), 4)
    figures = bare.scheduler.fairlead.book.figures
    for _ in range(100):
        bare.step()
        bare.scheduler.fairlead.book.ordering.check()
    for client, tokens in (("alice", 100 + 120), ("bob", 110 + 130), ("carol", 40)):
        found = figures.clients[client]
        assert (found.extend_tokens, found.waiting, found.running) == (tokens, 0, 0)
        assert found.admitted == found.ended
    assert not bare.scheduler.fairlead.known


@CACHES
@pytest.mark.parametrize("order", ["dlpm", "lpm"])
def test_keys_that_are_all_the_same_change_no_choice(
    settings: Settings, order: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most that forged keys could do. They only say whose match to look up again."""
    settings(order="dlpm:quantum=500,light=off,ties=arrival" if order == "dlpm" else order)
    blocks = plugin.new_keys
    monkeypatch.setattr(plugin.TokenKeys, "key_at", lambda keys, index: 7)
    monkeypatch.setattr(plugin, "new_keys", lambda *args: [7] * len(blocks(*args)))
    choices = Choices(order, monkeypatch)
    bare = choices.bare = Bare(cache=cache, tokens=POOL)
    meter = Meter(bare)
    drive(bare, 1, meter)
    assert choices.chosen > 150
    for client, work in meter.work.items():
        mine = [count for name, count in bare.tokens.items() if bare.clients[name] == client]
        found = bare.scheduler.fairlead.book.figures.clients[client]
        assert found.extend_tokens + sum(mine) - sum(map(bool, mine)) == work


def test_who_shares_an_uncached_prompt_waits_for_it_to_be_cached(settings: Settings) -> None:
    """As in SGLang's ``lpm``; another client's request goes meanwhile, and alone it does not wait."""
    settings(order="dlpm:quantum=100000")
    bare = Bare(chunk=4096)
    for n in range(3):
        bare.send(f"a{n}.", "alice", prompt(340, n, 320, "d"), 4)
    bare.send("b.", "bob", prompt(340, "b"), 4)
    first = bare.step()
    assert first is not None
    assert [req.rid for req in first.reqs] == ["a0.", "b.", "a1.", "a2."]
    bare.run()
    for n in range(4):
        bare.send(f"c{n}.", "alice", prompt(340, 10 + n, 320, "e"), 4)
        bare.send(f"d{n}.", "alice", prompt(340, 20 + n, 0), 4)
    second = bare.step()
    assert second is not None
    assert [req.rid for req in second.reqs] == ["c0.", "d0.", "d1.", "d2.", "d3.", "c1."]


def test_a_request_without_a_free_adapter_is_passed_over(settings: Settings) -> None:
    settings(order="dlpm:quantum=500")
    bare = Bare(
        enable_lora=True, lora_drainer=None, lora_overlap_loader=None, enable_lora_overlap_loading=False
    )
    manager = bare.scheduler.tp_worker.model_runner.lora_manager = Adapters()
    for n in range(40):
        bare.send(f"r{n}.", f"client {n % 3}", prompt(100, n), 10 + n, lora_id=f"adapter {n % 3}")
    while bare.live:
        batch = bare.step()
        if batch is not None:
            assert len({req.lora_id for req in batch.reqs}) == 1
        bare.scheduler.fairlead.book.ordering.check()
    assert manager.refused > 10
    assert bare.tokens == {f"r{n}.": 10 + n for n in range(40)}
    assert not bare.scheduler.fairlead.known


class Adapters:
    """One slot."""

    refused = 0

    def validate_lora_batch(self, adapters: set[str]) -> bool:
        self.refused += len(adapters) > 1
        return len(adapters) <= 1


def test_two_schedulers_that_see_the_same_do_the_same() -> None:
    """As tensor-parallel ranks must: processes of their own, whose strings have other hashes."""
    command = [sys.executable, "-m", "tests.plugins_sglang.rank"]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONHASHSEED": seed, "FAIRLEAD_PLUGIN_ORDER": "dlpm:quantum=500"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (
        [line for line in rank.communicate()[0].splitlines() if line[0] in "[{"] for rank in ranks
    )
    assert len(first) > 300
    assert first == second


FLOOD = {"tokens": 2000, "sequences": 4, "chunk": 1024}


def flooded(bare: Bare, seen: Callable[[], None] = lambda: None, steps: int = 500) -> None:
    """Keep three clients backlogged, one of whom has six times as much waiting; documents of their own."""
    rng, sent = random.Random(1), 0
    for _ in range(steps):
        queued = [bare.clients[req.rid] for req in bare.scheduler.waiting_queue]
        for client, wanted in {"alice": 4, "bob": 4, "mallory": 24}.items():
            for _ in range(wanted - queued.count(client)):
                sent += 1
                tokens = prompt(560, sent, 480, f"{client} {rng.randrange(4)}")
                bare.send(f"f{sent}.", client, tokens, rng.randint(10, 40))
        bare.step()
        seen()


def gap(figures: Any) -> float:
    """Return the largest difference of service between two clients."""
    service = [
        COSTS.extend * f.extend_tokens + COSTS.output * f.output_tokens for f in figures.clients.values()
    ]
    return max(service) - min(service)


def test_dlpm_is_within_its_bound_reuses_more_than_vtc_and_is_fairer_than_arrival_order(
    settings: Settings,
) -> None:
    hits, gaps = {}, {}
    for order in ("fcfs", "lpm", "vtc", "dlpm:quantum=2000"):
        settings(order=order)
        bare = Bare(**FLOOD)
        figures = bare.scheduler.fairlead.book.figures
        widest = [0.0]
        flooded(bare, lambda widest=widest, figures=figures: widest.append(max(widest[-1], gap(figures))))
        rows = figures.clients.values()
        hits[order] = sum(f.cached_tokens for f in rows) / sum(f.prompt_tokens for f in rows)
        gaps[order] = widest[-1]
    print(f"\nhits {hits}\nwidest gaps {gaps}")
    assert gaps["dlpm:quantum=2000"] <= 2 * 2000 + 2 * (560 + 2 * 40 * FLOOD["sequences"])
    assert hits["dlpm:quantum=2000"] > hits["vtc"] + 0.1
    assert gaps["dlpm:quantum=2000"] < gaps["fcfs"] / 2
    assert gaps["dlpm:quantum=2000"] < gaps["lpm"] / 2


@CACHES
def test_without_a_prefix_cache_it_is_fair_all_the_same(settings: Settings, cache: str) -> None:
    settings(order="dlpm:quantum=2000")
    bare = Bare(cache=cache, disable=True, **FLOOD)
    flooded(bare, steps=300)
    figures = bare.scheduler.fairlead.book.figures
    assert sum(f.cached_tokens for f in figures.clients.values()) == 0
    assert gap(figures) <= 2 * 2000 + 2 * (560 + 2 * 40 * FLOOD["sequences"])


def test_who_sent_a_request(settings: Settings) -> None:
    settings(default_client="nobody")
    bare = Bare()
    bare.send("a.", "alice", prompt(40, 1), 1)
    bare.send("b.", None, prompt(40, 2), 1, session_id="s1")
    bare.send("c.", None, prompt(40, 3), 1)
    bare.run()
    assert set(bare.scheduler.fairlead.book.figures.clients) == {"alice", "session:s1", "nobody"}


def test_strange_names_stop_nothing(settings: Settings, tmp_path: Path) -> None:
    settings(metrics_file=str(tmp_path / "f.json"))
    bare = Bare()
    strange = ("\udc80", "a\n\0b", "x" * 1_000_000, "y" * 1_000_000, "")
    for n, name in enumerate(strange):
        salt = name.replace("\udc80", "")  # SGLang's own cache takes no half of a surrogate pair
        options = {"session_id": "s" * 1000, "extra_key": salt, "cache_salt": salt}
        bare.send(f"{name}{n}.", name, prompt(40, n), 2, **options)
    bare.run()
    turns = bare.scheduler.fairlead
    turns.file.close()
    clients = json.loads((tmp_path / "f.json").read_text())["clients"]
    assert sorted(row["ended"] for row in clients.values()) == [1, 1, 1, 2], "two had no name that is one"
    assert turns.book.figures.ignored == 0
    assert not turns.known


def test_namespaces_of_the_cache_are_kept_apart(settings: Settings) -> None:
    settings(order="lpm")
    bare = Bare(sequences=1)
    document = prompt(320, 0, 320, "d")
    bare.send("first.", "alice", document, 1, extra_key="one")
    bare.run()
    bare.send("other.", "alice", [*document, 1], 1)
    bare.send("salted.", "alice", [*document, 2], 1, extra_key="one", cache_salt="s")
    bare.send("same.", "alice", [*document, 3], 1, extra_key="one")
    batch = bare.step()
    assert batch is not None
    assert batch.reqs[0].rid == "same."
    bare.run()
    assert bare.scheduler.fairlead.book.figures.clients["alice"].cached_tokens == 320


def test_a_prompt_whose_logprobs_are_asked_for_matches_up_to_there(settings: Settings) -> None:
    settings(order="lpm")
    bare = Bare()
    req = bare.send("a.", "alice", prompt(320, 1), 1, return_logprob=True)
    req.logprob_start_len = 70
    assert len(plugin.TokenKeys(req, 32)) == 2
    req.positional_embed_overrides = object()
    assert len(plugin.TokenKeys(req, 32)) == 0


def test_the_figures_are_in_a_file(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    settings(metrics_file=str(path), metrics_interval_secs="30", weights="alice=2")
    bare = Bare()
    assert json.loads(path.read_text())["clients"] == {}
    bare.send("a.", "alice", prompt(100, 1), 5)
    bare.send("b.", "bob", prompt(100, 2), 5)
    bare.run()
    assert bare.scheduler.fairlead.file is not None
    bare.scheduler.fairlead.file.close()
    told = json.loads(path.read_text())
    assert told["order"] == "dlpm"
    alice = told["clients"]["alice"]
    assert (alice["extend_tokens"], alice["output_tokens"], alice["service"]) == (100, 5, 110)
    assert (alice["weight"], told["clients"]["bob"]["weight"]) == (2, 1)
