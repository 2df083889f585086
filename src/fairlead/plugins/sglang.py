"""Fair turns in SGLang, as a plugin of its own kind (entry-point group ``sglang.srt.plugins``).

``SGLANG_PLUGINS=fairlead python -m sglang.launch_server --schedule-policy lpm ...`` with this package
installed beside SGLang. SGLang still schedules: batches, chunks, memory and retraction are its own. Only the
order of its waiting queue is replaced, by that of the core's ordering policy.

``FAIRLEAD_PLUGIN_ORDER`` names another policy than ``dlpm``; see ``fairlead.plugins.settings`` for the rest.

What is hooked, and why:

- ``SchedulePolicy.calc_priority``: a pass over the queue begins. The queue itself shows which requests came,
  went or were retracted since the last pass. The request that goes next is put in front.
- ``PrefillAdder.add_one_req``: a request was admitted, or not. If it was, it is charged, and the request that
  goes next is put right behind it. The scheduler walks its list by index, so it comes to that one next.
- ``Scheduler.can_schedule_lora_req``: a request is passed over. It keeps its place for the next pass.
- ``PrefillAdder.add_chunked_req``: how far a long prompt has been computed.
- ``Scheduler.process_batch_result``: output tokens, and requests that ended.
- ``Scheduler.send_abort_output``: requests that end outside of a batch.
- ``insert`` of the prefix cache: what enters it. Evictions need no hook.
- ``Scheduler.init_schedule_policy`` and ``Scheduler.run_event_loop``: all of the above is in place, or the
  server ends. SGLang itself only logs that a hook could not be applied, and goes on in its own order.

Every tensor-parallel rank runs this, and all ranks must decide the same. So nothing here depends on clocks or
on Python's string hashes: time is counted in passes.
"""

import inspect
import logging
import os
import pkgutil
from array import array
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

import xxhash
from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # type: ignore[import-not-found]

from fairlead.core.model import BLOCK_KEY_BITS, BlockKey, ClientId
from fairlead.plugins.book import ADMITTED, PREEMPTED, WAITING, Book, Entry
from fairlead.plugins.figures import Figures, FiguresFile
from fairlead.plugins.keys import LazyKeys
from fairlead.plugins.settings import (
    PluginSettings,
    SettingsError,
    client_of,
    plugin_ordering,
    read_settings,
)

NAME = "fairlead"
"""Of the entry point, for ``SGLANG_PLUGINS``."""
CHOICE = "SGLANG_PLUGINS"
TESTED = ("0.5.23",)
"""Versions of SGLang that the tests run with."""
BLOCK_TOKENS = 32
"""Matches are counted in blocks of this many tokens, or of a page where that is more."""
PASS_US = 10_000
"""What a pass counts as, in the time that the policy is told."""
TICK_PASSES = 100
"""How often the policy is told of the time, to forget idle clients."""

_POLICY = "sglang.srt.managers.schedule_policy"
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_ALONE_UP_TO = f"{_POLICY}.IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD"
_SHARED_FROM = f"{_POLICY}.IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD"
_MATCH = "sglang.srt.mem_cache.common.match_kv_cache"
_KEY = "sglang.srt.mem_cache.radix_cache.RadixKey"
_MATCH_PARAMS = "sglang.srt.mem_cache.base_prefix_cache.MatchPrefixParams"
_INSERT_PARAMS = "sglang.srt.mem_cache.base_prefix_cache.InsertParams"
_PARALLEL = "sglang.srt.runtime_context.get_parallel"
_DISAGG = "sglang.srt.runtime_context.get_disagg"
_KEY_MASK = (1 << BLOCK_KEY_BITS) - 1
_log = logging.getLogger("sglang.fairlead")


class UnsupportedError(RuntimeError):
    """The plugin does not support this SGLang or its options. The message says which, and what to do."""


def _seed(extra_key: object, cache_salt: object) -> int:
    """Return what the keys of a namespace of the cache start from."""
    return xxhash.xxh3_64_intdigest(repr((extra_key, cache_salt or None)).encode())


class TokenKeys(LazyKeys):
    """A prompt's keys: a hash of all tokens up to the end of the block.

    SGLang computes the last token of a prompt in any case, and more if logprobs are asked for. Blocks that
    reach into that are not among them.
    """

    __slots__ = ("_block_tokens", "_seed", "req")

    def __init__(self, req: Any, block_tokens: int) -> None:
        reusable = req._compute_max_prefix_len(len(req.origin_input_ids))  # noqa: SLF001 - the only way to know
        super().__init__(0 if req.positional_embed_overrides is not None else reusable // block_tokens)
        self.req = req
        self._block_tokens = block_tokens
        self._seed = _seed(req.extra_key, req.cache_salt)

    def key_at(self, index: int) -> BlockKey:
        """Return the hash of the tokens up to the end of block ``index``."""
        tokens = memoryview(self.req.origin_input_ids)[: (index + 1) * self._block_tokens]
        return xxhash.xxh3_64_intdigest(tokens, self._seed) & _KEY_MASK


def new_keys(tokens: "array[int]", seed: int, first: int, block_tokens: int) -> list[BlockKey]:
    """Return the keys of the full blocks of ``tokens`` from block ``first`` on."""
    view, end = memoryview(tokens), first * block_tokens
    state = xxhash.xxh3_64(view[:end], seed)
    keys = []
    for start in range(end, len(tokens) - block_tokens + 1, block_tokens):
        state.update(view[start : start + block_tokens])
        keys.append(state.intdigest() & _KEY_MASK)
    return keys


class Known:
    """A request that the scheduler has."""

    __slots__ = ("entry", "launched", "req", "tokens")

    def __init__(self, req: Any, entry: Entry) -> None:
        self.req = req
        self.entry = entry
        self.tokens = 0
        """What had to be in KV before it decoded, when it was admitted last."""
        self.launched = 0
        """Leading tokens of those that are computed, or in a batch that will."""

    def computed(self) -> int:
        """Return how many tokens are in KV, or were until it was retracted."""
        if self.launched < self.tokens:
            return self.launched
        return max(self.launched, len(self.req.origin_input_ids) + len(self.req.output_ids) - 1)


class Turns:
    """Who goes next in one scheduler's queue. ``policy`` is its ``SchedulePolicy``."""

    def __init__(self, policy: Any, settings: PluginSettings) -> None:
        self._policy = policy
        self._cache = policy.tree_cache
        self._settings = settings
        self._match = pkgutil.resolve_name(_MATCH)
        self._key_type = pkgutil.resolve_name(_KEY)
        self._match_params = pkgutil.resolve_name(_MATCH_PARAMS)
        self._insert_params = pkgutil.resolve_name(_INSERT_PARAMS)
        ordering = plugin_ordering(settings)
        self.book = Book(ordering, self._matched, Figures())
        page = self._cache.page_size
        self.block_tokens: int = page * -(-BLOCK_TOKENS // page)
        self.known: dict[int, Known] = {}
        """Requests in the engine by ``id``, which is theirs as long as they are here. Their names are their
        callers' choice, and two callers may choose the same one.
        """
        self._by_number: dict[int, Known] = {}
        """Requests that never ran, by the core's number."""
        self._aside: list[Known] = []
        """Not in the policy's queue until the next pass: the scheduler or ``_shares`` passed them over."""
        self._shared: list[Known] = []
        """Those of them that ``_shares`` passed over. They may run in this pass, after all others."""
        self._stored: list[BlockKey] = []
        self._queue: list[Any] = []
        """The scheduler's list, in the present pass."""
        self._at = 0
        """Where in it the scheduler is."""
        self._first = 0
        """Where in it the requests begin that never ran; retracted ones are in front."""
        self._passes = 0
        self.file: FiguresFile | None = None
        self._sharing = ordering.uses_match and not getattr(self._cache, "disable", True)
        self._alone_up_to = pkgutil.resolve_name(_ALONE_UP_TO)
        self._shared_from = pkgutil.resolve_name(_SHARED_FROM)
        if self._sharing:
            self._watch()

    def _matched(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of a prompt are cached, by SGLang's own search.

        The search counts as a use of what it finds, as in SGLang's cache-aware policies.
        """
        if not isinstance(keys, TokenKeys):
            raise TypeError(f"keys of this cache are needed, not {type(keys).__name__}")
        self._match(keys.req, self._cache)
        tokens: int = keys.req.num_matched_prefix_tokens
        return min(tokens // self.block_tokens, len(keys))

    def _watch(self) -> None:
        """Note the blocks that enter the cache from now on.

        All blocks of what is new, not the first one alone: somebody may wait for a later one still, because
        evictions are not followed. The policy is told before it is asked next, as its looking up what is
        cached must not come between the steps of an insertion.
        """
        plain = self._cache.insert

        def insert(params: Any, *args: Any, **kwargs: Any) -> Any:
            key = params.key
            tokens, seed = key.raw_token_ids(), _seed(key.extra_key, key.cache_salt)
            done = plain(params, *args, **kwargs)
            if self._by_number:
                first = done.prefix_len // self.block_tokens
                self._stored += new_keys(tokens, seed, first, self.block_tokens)
            return done

        self._cache.insert = insert

    def order(self, queue: list[Any]) -> None:
        """Begin a pass: take in what has changed in ``queue``, and put who goes next in front."""
        self._passes += 1
        if self._passes % TICK_PASSES == 0:
            self.book.ordering.tick(self._passes * PASS_US)
        for known in self._aside:
            if known.entry.state == WAITING and id(known.req) in self.known:
                self.book.put_back(known.entry)
        self._aside.clear()
        self._shared.clear()
        if self._sharing:
            self._policy.waiting_queue_radix_tree.reset()
        retracted = self._take_in(queue)
        if retracted:
            there = {id(req) for req in retracted}
            queue[:] = retracted + [req for req in queue if id(req) not in there]
        self._queue = queue
        self._first = len(retracted)
        self._at = 0
        self._place(self._first)

    def _take_in(self, queue: list[Any]) -> list[Any]:
        """Bring the books in line with the scheduler's queue. Return those that were retracted."""
        retracted = []
        for req in queue:
            known = self.known.get(id(req))
            if known is None:
                self._arrived(req)
                continue
            if known.entry.state == ADMITTED:
                self.book.preempted(known.entry, known.computed())
            if known.entry.state == PREEMPTED:
                retracted.append(req)
        if len(self._by_number) + len(retracted) != len(queue):
            there = {id(req) for req in queue}
            for known in list(self._by_number.values()):
                if id(known.req) not in there:
                    self._end(known)
        return retracted

    def _arrived(self, req: Any) -> None:
        entry = self.book.arrived(
            str(id(req)),
            client_of(self._settings, req.routing_key, req.session_id),
            len(req.origin_input_ids),
            TokenKeys(req, self.block_tokens),
            self.block_tokens,
            self._passes * PASS_US,
        )
        self.known[id(req)] = self._by_number[entry.item.rid] = Known(req, entry)

    def _place(self, at: int) -> None:
        """Put the request that goes next at index ``at`` of the queue, if there is one."""
        if self._stored:
            self.book.stored(self._stored)
            self._stored.clear()
        chosen = None
        while chosen is None:
            item = self.book.head()
            if item is None:
                break
            known = self._by_number[item.rid]
            if self._shares(known):
                self._put_aside(known)
                self._shared.append(known)
            else:
                chosen = known
        if chosen is None and self._shared:
            chosen = self._shared[0]
        if chosen is not None:
            queue = self._queue
            index = queue.index(chosen.req, at)
            if index != at:
                del queue[index]
                queue.insert(at, chosen.req)

    def _shares(self, known: Known) -> bool:
        """Say whether a request had better wait for the next pass, as in SGLang's ``lpm``.

        Requests of one batch do not see each other's prompt in the cache. So if nothing of a prompt is
        cached, and one that begins like it was admitted in this pass, the next pass finds it cached.
        """
        if not self._sharing or known.entry.item.matched_tokens > self._alone_up_to:
            return False
        tree, req = self._policy.waiting_queue_radix_tree, known.req
        found = tree.match_prefix(self._match_params(key=self._radix_key(req)))
        return bool(found.device_prefix_len >= self._shared_from)

    def _radix_key(self, req: Any) -> Any:
        return self._key_type(
            token_ids=req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt
        )

    def _put_aside(self, known: Known) -> None:
        self.book.take(known.entry)
        self._aside.append(known)

    def _reached(self, req: Any) -> None:
        """Note that the scheduler is at ``req``. Requests that it passed over silently are put aside."""
        at = self._queue.index(req, self._at)
        for passed in self._queue[self._at : at]:
            self._leave_out(self.known[id(passed)])
        self._at = at

    def _leave_out(self, known: Known) -> None:
        if known.entry.queued:
            self._put_aside(known)
        elif known in self._shared:
            self._shared.remove(known)

    def _next(self) -> None:
        """Go on behind the request that the scheduler is at."""
        self._at += 1
        if self._at >= self._first:
            self._place(self._at)

    def admitted(self, req: Any) -> None:
        """Charge a request that was admitted in this pass."""
        self._reached(req)
        known = self.known[id(req)]
        self._leave_out(known)
        self._by_number.pop(known.entry.item.rid, None)
        known.tokens, known.launched = len(req.full_untruncated_fill_ids), req.extend_end
        self.book.admitted(known.entry, known.tokens, req.prefix_len)
        if self._sharing:
            tree = self._policy.waiting_queue_radix_tree
            tree.insert(self._insert_params(key=self._radix_key(req)))
        self._next()

    def passed_over(self, req: Any) -> None:
        """Leave a request out until the next pass."""
        self._reached(req)
        self._leave_out(self.known[id(req)])
        self._next()

    def grew(self, req: Any) -> None:
        """Note that one more chunk of a request is computed."""
        known = self.known.get(id(req))
        if known is not None:
            known.launched = max(known.launched, req.extend_end)

    def computed(self, before: Iterable[tuple[Any, int]]) -> None:
        """Charge what a batch has put out; ``before`` has its requests and their output tokens until then."""
        tokens: dict[ClientId, int] = {}
        for req, had in before:
            known = self.known.get(id(req))
            if known is None:
                continue
            client = known.entry.client
            if new := len(req.output_ids) - had:
                tokens[client] = tokens.get(client, 0) + new
            if req.finished():
                self._end(known)
        self.book.decoded(tokens)

    def gone(self, req: Any) -> None:
        """Note that a request has ended outside of a batch."""
        known = self.known.get(id(req))
        if known is not None:
            self._end(known)

    def _end(self, known: Known) -> None:
        del self.known[id(known.req)]
        self._by_number.pop(known.entry.item.rid, None)
        if known in self._shared:
            self._shared.remove(known)
        self.book.ended(str(id(known.req)), known.launched)


def _begin(_: object, scheduler: Any) -> None:
    """After ``init_schedule_policy``: check everything, and open the books."""
    check_hooks(scheduler)
    refuse(scheduler)
    settings = read_settings(os.environ)
    turns = Turns(scheduler.policy, settings)
    scheduler.fairlead = scheduler.policy.fairlead = scheduler.tree_cache.fairlead = turns
    parallel = pkgutil.resolve_name(_PARALLEL)()
    if settings.metrics_file and parallel.attn_tp_rank == 0:
        path = f"{settings.metrics_file}.{parallel.dp_rank}" if parallel.dp_rank else settings.metrics_file
        turns.file = FiguresFile(path, turns.book.figures, turns.book.ordering, settings)
    _log.info("fairlead: requests are ordered by %s", settings.order)


def _run_event_loop(scheduler: Any) -> None:
    """Before it runs: the books must be open, or SGLang would serve in its own order."""
    if getattr(scheduler, "fairlead", None) is None:
        raise UnsupportedError(_not_applied([f"{_SCHEDULER}.init_schedule_policy"]))


def _calc_priority(_: object, policy: Any, waiting_queue: list[Any], *args: Any, **kwargs: Any) -> None:  # noqa: ARG001 - SGLang's signature
    """Instead of ``calc_priority``: the order is ours alone."""
    policy.fairlead.order(waiting_queue)


def _add_one_req(plain: Callable[..., Any], adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``add_one_req``: what it returns does not say whether it admitted."""
    before = len(adder.can_run_list)
    found = plain(adder, req, *args, **kwargs)
    if len(adder.can_run_list) > before:
        adder.tree_cache.fairlead.admitted(req)
    return found


def _add_chunked_req(_: object, adder: Any, req: Any) -> None:
    adder.tree_cache.fairlead.grew(req)


def _can_schedule_lora_req(can: object, scheduler: Any, req: Any, *args: Any) -> None:  # noqa: ARG001 - SGLang's signature
    if not can:
        scheduler.fairlead.passed_over(req)


def _process_batch_result(
    plain: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any
) -> Any:
    before = [(req, len(req.output_ids)) for req in batch.reqs]
    found = plain(scheduler, batch, *args, **kwargs)
    scheduler.fairlead.computed(before)
    return found


def _send_abort_output(_: object, scheduler: Any, abort_req: object, req: Any) -> None:  # noqa: ARG001 - SGLang's signature
    scheduler.fairlead.gone(req)


class Hook(NamedTuple):
    """What is hooked, by what, how, and with which parameters after ``self``."""

    target: str
    function: Callable[..., Any]
    kind: Any
    parameters: tuple[str, ...]


HOOKS = (
    Hook(f"{_SCHEDULER}.init_schedule_policy", _begin, HookType.AFTER, ()),
    Hook(f"{_SCHEDULER}.run_event_loop", _run_event_loop, HookType.BEFORE, ()),
    Hook(
        *(f"{_POLICY}.SchedulePolicy.calc_priority", _calc_priority, HookType.AROUND),
        ("waiting_queue", "running_batch", "processed_tokens"),
    ),
    Hook(
        *(f"{_POLICY}.PrefillAdder.add_one_req", _add_one_req, HookType.AROUND),
        ("req", "has_chunked_req", "truncation_align_size"),
    ),
    Hook(f"{_POLICY}.PrefillAdder.add_chunked_req", _add_chunked_req, HookType.AFTER, ("req",)),
    Hook(
        *(f"{_SCHEDULER}.can_schedule_lora_req", _can_schedule_lora_req, HookType.AFTER),
        ("req", "running_loras"),
    ),
    Hook(
        *(f"{_SCHEDULER}.process_batch_result", _process_batch_result, HookType.AROUND),
        ("batch", "result"),
    ),
    Hook(f"{_SCHEDULER}.send_abort_output", _send_abort_output, HookType.AFTER, ("abort_req", "req")),
)
_NAMES = (_ALONE_UP_TO, _SHARED_FROM, _MATCH, _KEY, _MATCH_PARAMS, _INSERT_PARAMS, _PARALLEL, _DISAGG)
"""What is used besides."""
_USED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "sglang.srt.managers.schedule_batch.Req.__init__",
        (
            *("origin_input_ids", "output_ids", "full_untruncated_fill_ids", "extend_end"),
            *("prefix_len", "num_matched_prefix_tokens", "extra_key", "cache_salt", "routing_key"),
            *("session_id", "positional_embed_overrides"),
        ),
    ),
    ("sglang.srt.managers.schedule_batch.Req._compute_max_prefix_len", ()),
    (f"{_POLICY}.PrefillAdder.__init__", ("can_run_list", "tree_cache")),
    (f"{_POLICY}.SchedulePolicy.__init__", ("tree_cache", "waiting_queue_radix_tree")),
    (f"{_SCHEDULER}.init_schedule_policy", ("policy", "schedule_policy", "enable_priority_scheduling")),
    (f"{_SCHEDULER}.get_prefill_adder_class", ()),
)
"""Methods, and the attributes that are seen in them."""


def register() -> None:
    """Hook in, if ``SGLANG_PLUGINS`` asks for it by name. SGLang calls this in each of its processes.

    Raises SystemExit if it cannot be done: SGLang only logs other errors of a plugin, and goes on without.
    """
    if NAME not in (name.strip() for name in os.environ.get(CHOICE, "").split(",")):
        _log.info("fairlead is installed and leaves SGLang as it is: %s does not name it", CHOICE)
        return
    try:
        plugin_ordering(read_settings(os.environ))
        check_version()
    except (SettingsError, UnsupportedError) as error:
        raise SystemExit(f"fairlead: {error}") from None
    for hook in HOOKS:
        HookRegistry.register(hook.target, hook.function, hook.kind)


def missing() -> list[str]:
    """Return what the plugin hooks or uses and this SGLang does not have."""
    found = [name for name in _NAMES if _resolve(name) is None]
    for hook in HOOKS:
        function = _resolve(hook.target)
        wanted = ("self", *hook.parameters)
        if function is None or tuple(inspect.signature(function).parameters)[: len(wanted)] != wanted:
            found.append(f"{hook.target}({', '.join(hook.parameters)})")
    for target, names in _USED:
        function = inspect.unwrap(_resolve(target) or _nothing)
        if function is _nothing:
            found.append(target)
        else:
            found += [f"{target}: {name}" for name in names if name not in function.__code__.co_names]
    return found


def _nothing() -> None:
    """Stand for a function that is not there."""


def _resolve(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


def check_version() -> None:
    """Raise ``UnsupportedError`` if this SGLang lacks something; warn if it was not tested."""
    version = version_of("sglang")
    lacks = missing()
    if lacks:
        raise UnsupportedError(
            f"the plugin does not fit SGLang {version}: it has no {', '.join(lacks)}."
            f" Tested versions: {', '.join(TESTED)}."
        )
    if version not in TESTED:
        _log.warning(
            "fairlead: SGLang %s was not tested, only %s; everything that the plugin hooks is there",
            *(version, " and ".join(TESTED)),
        )


def check_hooks(scheduler: Any) -> None:
    """Raise ``UnsupportedError`` unless each hook is in place in the classes that ``scheduler`` uses."""
    owners = {
        "Scheduler": type(scheduler),
        "SchedulePolicy": type(scheduler.policy),
        "PrefillAdder": scheduler.get_prefill_adder_class(),
    }
    lacks = []
    for hook in HOOKS:
        _, owner, name = hook.target.rsplit(".", 2)
        function = getattr(owners[owner], name)
        while function is not None and not _holds(function, hook.function):
            function = getattr(function, "__wrapped__", None)
        if function is None:
            lacks.append(hook.target)
    if lacks:
        raise UnsupportedError(_not_applied(lacks))


def _holds(wrapper: Any, function: Callable[..., Any]) -> bool:
    """Say whether ``wrapper`` is one of ``HookRegistry``'s around ``function``."""
    return any(cell.cell_contents is function for cell in getattr(wrapper, "__closure__", None) or ())


def _not_applied(targets: Iterable[str]) -> str:
    return (
        f"the plugin's hook is not in place on {', '.join(targets)}; the log above says why"
        f" ('Failed to apply hooks'). Another plugin? {CHOICE}={NAME} leaves the others out."
    )


def refuse(scheduler: Any) -> None:
    """Raise ``UnsupportedError`` if SGLang was started with an option that the plugin does not support."""
    if scheduler.schedule_policy != "lpm":
        raise UnsupportedError(
            f"--schedule-policy {scheduler.schedule_policy}: set it to lpm for this plugin"
        )
    if scheduler.enable_priority_scheduling:
        raise UnsupportedError("--enable-priority-scheduling is an order of its own: leave it out")
    for what, is_on in (
        ("tiers of cache (--enable-hierarchical-cache)", scheduler.enable_hierarchical_cache),
        ("LMCache (--enable-lmcache)", scheduler.enable_lmcache),
        ("diffusion models", scheduler.dllm_config is not None),
        ("pipeline parallelism", pkgutil.resolve_name(_PARALLEL)().pp_size > 1),
        ("disaggregation", pkgutil.resolve_name(_DISAGG)().disaggregation_mode != "null"),
    ):
        if is_on:
            raise UnsupportedError(f"{what}: not supported by this plugin, since nobody has tried it")
    if getattr(scheduler.tree_cache, "disable", True):
        _log.warning("fairlead: the radix cache is off: the order is fair, but cannot favour cached prompts")
