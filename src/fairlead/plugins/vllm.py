"""Fair schedulers for vLLM. Only vLLM imports this module.

``vllm serve MODEL --scheduler-cls fairlead.plugins.vllm.DLPMScheduler`` with this package installed beside
vLLM. vLLM still schedules: batches, chunks, blocks and preemption are its own. Only its waiting queue is
replaced, by one that asks the core's ordering policy who goes next.

``FAIRLEAD_PLUGIN_ORDER`` names another policy than ``dlpm``; see ``fairlead.plugins.settings`` for the rest.

What is hooked, and why:

- ``waiting`` is a queue that answers ``peek_request`` by the policy. A preempted request goes first, as in
  vLLM. vLLM stops at the first request that has no room.
- vLLM pops a request to admit it, and also to skip it for this step (a grammar that is not compiled yet, a
  LoRA adapter without a slot). Which of the two it was is known when vLLM uses the queue again, or when the
  step is scheduled. A request that runs is then charged its prompt, less what vLLM found cached.
- ``BlockPool.cache_full_blocks`` reports blocks that enter the prefix cache. Evictions need no hook.
- ``_preempt_request`` and ``finish_requests`` say how much of a request had been computed.
"""

import inspect
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vllm.v1.core.block_pool import BlockPool  # type: ignore[import-not-found]
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator  # type: ignore[import-not-found]
from vllm.v1.core.kv_cache_manager import KVCacheManager  # type: ignore[import-not-found]
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # type: ignore[import-not-found]
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput  # type: ignore[import-not-found]
from vllm.v1.core.sched.request_queue import RequestQueue  # type: ignore[import-not-found]
from vllm.v1.core.sched.scheduler import Scheduler  # type: ignore[import-not-found]
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs  # type: ignore[import-not-found]
from vllm.v1.kv_cache_interface import FullAttentionSpec  # type: ignore[import-not-found]
from vllm.v1.request import Request, RequestStatus  # type: ignore[import-not-found]
from vllm.version import __version__ as vllm_version  # type: ignore[import-not-found]

from fairlead.core.model import BlockKey, ClientId
from fairlead.core.outside import MOST_US, amount
from fairlead.plugins.book import WAITING, Book
from fairlead.plugins.figures import Figures, FiguresFile
from fairlead.plugins.keys import LazyKeys
from fairlead.plugins.settings import PluginSettings, client_of, plugin_ordering, read_settings

TESTED = ("0.32", "0.33")
"""Versions of vLLM that the tests run with."""
TICK_S = 1.0
"""How often the policy is told of the time, to forget idle clients."""

_log = logging.getLogger("vllm.fairlead")


class UnsupportedError(RuntimeError):
    """The plugin does not support this vLLM or its options. The message says which, and what to do."""


class BlockHashes(LazyKeys):
    """A prompt's keys, made from vLLM's own block hashes.

    vLLM reuses a block by its hash alone, so its hashes are as hard to forge as its cache: see
    ``--prefix-caching-hash-algo``. Python's hash of them is drawn anew in each process.
    """

    __slots__ = ("hashes", "known", "per_block")

    def __init__(self, hashes: Sequence[Any], length: int, per_block: int) -> None:
        super().__init__(length)
        self.hashes = hashes
        self.per_block = per_block
        """Hashes a block: more than 1 where blocks of several sizes are cached."""
        self.known = 0
        """How many blocks were cached when it was last looked up."""

    def hash_at(self, index: int) -> Any:
        """Return vLLM's hash of block ``index``."""
        return self.hashes[(index + 1) * self.per_block - 1]

    def key_at(self, index: int) -> BlockKey:
        """Return a number for vLLM's hash of block ``index``."""
        return hash(self.hash_at(index))


class PrefixCache:
    """Looks up what vLLM's prefix cache holds, without changing reference counts or statistics.

    For a model with several kinds of attention it looks at the blocks of full attention. The other kinds can
    make the hit shorter; vLLM finds that out when it admits the request.
    """

    def __init__(self, scheduler: Any) -> None:
        manager = scheduler.kv_cache_manager
        self.pool = manager.block_pool
        groups = manager.kv_cache_config.kv_cache_groups
        full = [n for n, group in enumerate(groups) if isinstance(group.kv_cache_spec, FullAttentionSpec)]
        self.usable = bool(manager.enable_caching and full)
        self.group = full[0] if full else 0
        self._groups = [self.group]
        self.hash_tokens: int = scheduler.hash_block_size
        self.block_tokens: int = self.hash_tokens
        if full:
            self.block_tokens = manager.coordinator.single_type_managers[self.group].block_size

    def keys(self, request: Any) -> BlockHashes:
        """Return the keys of what a request may find cached; none if it asks not to look."""
        if not self.usable or request.skip_reading_prefix_cache or not request.block_hashes:
            return BlockHashes((), 0, 1)
        length = (request.num_prompt_tokens - 1) // self.block_tokens
        return BlockHashes(request.block_hashes, length, self.block_tokens // self.hash_tokens)

    def has(self, keys: BlockHashes, index: int) -> bool:
        """Say whether block ``index`` of a prompt is cached."""
        return self.pool.get_cached_block(keys.hash_at(index), self._groups) is not None

    def matched(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of a prompt are cached.

        If a block is cached, those before it are too. So bisection finds the end of the match. It starts at
        the last known end and doubles its stride: two look-ups if nothing has changed.
        """
        if not isinstance(keys, BlockHashes):
            raise TypeError(f"keys of this cache are needed, not {type(keys).__name__}")
        known, last = keys.known, len(keys)
        stride = 1
        if known and not self.has(keys, known - 1):
            high = known - 1
            probe = high - 1
            while probe >= 0 and not self.has(keys, probe):
                high, probe, stride = probe, probe - 2 * stride, 2 * stride
            low = max(probe + 1, 0)
        else:
            low = probe = known
            while probe < last and self.has(keys, probe):
                low, probe, stride = probe + 1, probe + stride, 2 * stride
            high = min(probe, last)
        while low < high:
            middle = (low + high) // 2
            if self.has(keys, middle):
                low = middle + 1
            else:
                high = middle
        keys.known = low
        return low

    def watch(self, book: Book) -> None:
        """Tell ``book`` of blocks that enter the cache from now on."""
        plain = self.pool.cache_full_blocks

        def cache_full_blocks(
            request: Any,
            blocks: Any,
            num_cached_blocks: int,
            num_full_blocks: int,
            block_size: int,
            kv_cache_group_id: int,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            new: Sequence[BlockKey] = ()
            if len(book) and kv_cache_group_id == self.group:
                keys = BlockHashes(request.block_hashes, num_full_blocks, block_size // self.hash_tokens)
                first = num_cached_blocks
                while first < num_full_blocks and self.has(keys, first):
                    first += 1
                new = keys[first:]
            done = plain(
                request,
                blocks,
                num_cached_blocks,
                num_full_blocks,
                block_size,
                kv_cache_group_id,
                *args,
                **kwargs,
            )
            if new:
                book.stored(new)
            return done

        self.pool.cache_full_blocks = cache_full_blocks


class FairQueue(RequestQueue):  # type: ignore[misc]
    """vLLM's waiting queue in the policy's order, preempted requests first."""

    def __init__(self, book: Book, cache: PrefixCache, settings: PluginSettings) -> None:
        self._book = book
        self._cache = cache
        self._settings = settings
        self._requests: dict[int, Any] = {}
        """vLLM's requests that never ran, by the core's number."""
        self._preempted: deque[Any] = deque()
        self._peeked: Any = None
        self._popped: Any = None
        """Popped, and not known yet whether to be admitted or skipped."""
        self.admitted: set[str] = set()
        """Requests admitted from here, until it is cleared."""

    def add_request(self, request: Any) -> None:
        """Queue a request that came."""
        entry = self._book.entries.get(request.request_id)
        if entry is not None:
            self.prepend_request(request)
            return
        self._peeked = None
        keys = self._cache.keys(request)
        entry = self._book.arrived(
            request.request_id,
            self._client(request),
            request.num_prompt_tokens,
            keys,
            self._cache.block_tokens,
            int((amount(request.arrival_time, MOST_US / 1e6) or 0.0) * 1e6),
        )
        self._requests[entry.item.rid] = request

    def _client(self, request: Any) -> ClientId:
        """Return whom a request is charged to. What ``vllm_xargs`` has is the caller's own word."""
        more = getattr(request.sampling_params, "extra_args", None)
        client = more.get("client_id") if isinstance(more, dict) else None
        return client_of(self._settings, client, getattr(request, "session_id", None))

    def peek_request(self) -> Any:
        """Return who goes next. Raises IndexError if nobody waits."""
        self.settle()
        if self._preempted:
            self._peeked = self._preempted[0]
        else:
            item = self._book.head()
            if item is None:
                raise IndexError("peek from an empty queue")
            self._peeked = self._requests[item.rid]
        return self._peeked

    def pop_request(self) -> Any:
        """Take out who was seen by ``peek_request``, whatever came between. Raises IndexError if empty."""
        request = self._peeked if self._peeked is not None else self.peek_request()
        self._remove(request)
        self._popped = request
        return request

    def prepend_request(self, request: Any) -> None:
        """Take back a request that was preempted, or skipped for this step."""
        self.settle()
        self._peeked = None
        entry = self._book.entries[request.request_id]
        if entry.state == WAITING:
            self._book.put_back(entry)
        else:
            self._preempted.appendleft(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Take back requests one by one."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Any) -> None:
        """Take a request out for good, if it is here."""
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Take requests out for good; those that are not here are passed over."""
        self.settle()
        for request in requests:
            entry = self._book.entries.get(request.request_id)
            if entry is None:
                continue
            if entry.queued or request in self._preempted:
                self._remove(request)
            self._requests.pop(entry.item.rid, None)

    def _remove(self, request: Any) -> None:
        self._peeked = None
        entry = self._book.entries[request.request_id]
        if entry.queued:
            self._book.take(entry)
        else:
            self._preempted.remove(request)

    def settle(self, scheduled: Mapping[str, int] | None = None) -> None:
        """Find out whether the request that was popped last runs now; if so, charge it.

        ``scheduled`` is what the step computes of each request, once vLLM has counted that as computed.
        """
        request, self._popped = self._popped, None
        if request is None or request.status != RequestStatus.RUNNING:
            return
        name = request.request_id
        entry = self._book.entries[name]
        cached = request.num_computed_tokens - (scheduled.get(name, 0) if scheduled else 0)
        self._book.admitted(entry, request.num_tokens, cached)
        self._requests.pop(entry.item.rid, None)
        self.admitted.add(name)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __len__(self) -> int:
        return len(self._book) + len(self._preempted)

    def __iter__(self) -> Iterator[Any]:
        """Walk all requests, preempted ones first; the others in no particular order."""
        yield from self._preempted
        for item in self._book:
            yield self._requests[item.rid]


class _Fair:
    """Goes in front of one of vLLM's schedulers as a base class, and makes it fair."""

    waiting: Any
    requests: dict[str, Any]
    """All requests that have not ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config = _argument("vllm_config", args, kwargs)
        refuse(config)
        super().__init__(*args, **kwargs)
        self._next_tick = 0.0
        self._file: FiguresFile | None = None
        self.open_book(config, read_settings(os.environ))

    def open_book(self, config: Any, settings: PluginSettings) -> None:
        """Begin to order by ``settings``, with nobody waiting and nothing charged yet."""
        ordering = plugin_ordering(settings)
        cache = PrefixCache(self)
        check_cache(config, cache, needed=ordering.uses_match)
        figures = Figures()
        self.book = Book(ordering, cache.matched, figures)
        if ordering.uses_match and cache.usable:
            cache.watch(self.book)
        self.waiting = FairQueue(self.book, cache, settings)
        if settings.metrics_file:
            rank = config.parallel_config.data_parallel_index
            path = f"{settings.metrics_file}.{rank}" if rank else settings.metrics_file
            self._file = FiguresFile(path, figures, ordering, settings)
        _log.info("fairlead: requests are ordered by %s", settings.order)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step as vLLM does, and charge the requests that it admits."""
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + TICK_S
            self.book.ordering.tick(int(now * 1_000_000))
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        queue = self.waiting
        queue.settle(output.num_scheduled_tokens)
        for new in output.scheduled_new_reqs:
            if new.req_id not in queue.admitted:  # a session that goes on: it never left its place
                request = self.requests[new.req_id]
                self.book.admitted(self.book.entries[new.req_id], request.num_tokens, new.num_computed_tokens)
        queue.admitted.clear()
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Process a step's tokens as vLLM does, and charge them."""
        found = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        entries, requests = self.book.entries, self.requests
        tokens: dict[ClientId, int] = {}
        for of_frontend in found.values():
            for output in of_frontend.outputs:
                name = output.request_id
                entry = entries.get(name)
                if entry is None:
                    continue
                if new := output.new_token_ids:
                    client = entry.client
                    tokens[client] = tokens.get(client, 0) + len(new)
                if output.finish_reason is not None and name not in requests:
                    self.book.ended(name)
        self.book.decoded(tokens)
        return found

    def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """End requests as vLLM does, and take back what was charged and not computed."""
        if request_ids is None:
            names = list(self.requests)
        elif isinstance(request_ids, str):
            names = [request_ids]
        else:
            names = request_ids = list(request_ids)
        computed = {name: self.requests[name].num_computed_tokens for name in names if name in self.requests}
        found = super().finish_requests(request_ids, *args, **kwargs)  # type: ignore[misc]
        for name, count in computed.items():
            if name not in self.requests:
                self.book.ended(name, count)
        return found

    def shutdown(self) -> None:
        """End as vLLM does, and write the figures for the last time."""
        super().shutdown()  # type: ignore[misc]
        if self._file is not None:
            self._file.close()

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self.book.preempted(self.book.entries[request.request_id], request.num_computed_tokens)
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]


class SyncDLPMScheduler(_Fair, Scheduler):  # type: ignore[misc]
    """The form of ``DLPMScheduler`` for engines without asynchronous scheduling."""


class DLPMScheduler(_Fair, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler with fair turns. Use it as ``--scheduler-cls``.

    Where vLLM schedules synchronously (on CPUs, for pooling models, with ``--no-async-scheduling``) an
    instance of ``SyncDLPMScheduler`` is made instead.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the form that fits."""
        config = _argument("vllm_config", args, kwargs)
        if not config.scheduler_config.async_scheduling:
            return SyncDLPMScheduler(*args, **kwargs)
        return super().__new__(cls)


def _argument(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the scheduler's first argument, by whatever way it was given."""
    return kwargs[name] if name in kwargs else args[0]


_METHODS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Scheduler, ("schedule", "update_from_output", "finish_requests", "shutdown", "_preempt_request")),
    (RequestStatus, ("RUNNING",)),
    (Request, ("num_tokens",)),
)
_ATTRIBUTES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Scheduler, ("waiting", "requests", "hash_block_size", "kv_cache_manager")),
    (KVCacheManager, ("enable_caching", "coordinator", "block_pool", "kv_cache_config")),
    (KVCacheCoordinator, ("single_type_managers",)),
    (Request, ("request_id", "status", "sampling_params", "arrival_time", "num_prompt_tokens")),
    (Request, ("num_computed_tokens", "block_hashes", "skip_reading_prefix_cache")),
)
"""What is set by constructors."""
_FIELDS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (SchedulerOutput, ("scheduled_new_reqs", "num_scheduled_tokens")),
    (NewRequestData, ("req_id", "num_computed_tokens")),
    (EngineCoreOutput, ("request_id", "new_token_ids", "finish_reason")),
    (EngineCoreOutputs, ("outputs",)),
)
_PARAMETERS: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (
        *(BlockPool, "cache_full_blocks"),
        ("request", "blocks", "num_cached_blocks", "num_full_blocks", "block_size", "kv_cache_group_id"),
    ),
    (BlockPool, "get_cached_block", ("block_hash", "kv_cache_group_ids")),
)


def missing() -> list[str]:
    """Return what the plugin hooks or reads and this vLLM does not have."""
    found = [
        f"{owner.__name__}.{name}"
        for known, has in (
            (_METHODS, hasattr),
            (_ATTRIBUTES, lambda owner, name: name in owner.__init__.__code__.co_names),
            (_FIELDS, lambda owner, name: name in owner.__annotations__),
        )
        for owner, names in known
        for name in names
        if not has(owner, name)
    ]
    for owner, name, names in _PARAMETERS:
        function = getattr(owner, name, None)
        if function is None or tuple(inspect.signature(function).parameters)[1 : len(names) + 1] != names:
            found.append(f"{owner.__name__}.{name}({', '.join(names)})")
    return found + [f"RequestQueue without {name}" for name in sorted(FairQueue.__abstractmethods__)]


def refuse(config: Any) -> None:
    """Raise ``UnsupportedError`` if this vLLM, or what it was told, does not go with the plugin."""
    lacks = missing()
    if lacks:
        raise UnsupportedError(
            f"fairlead's scheduler does not fit vLLM {vllm_version}: it has no {', '.join(lacks)}."
            f" Tested versions: {', '.join(TESTED)}."
        )
    if not vllm_version.startswith(tuple(f"{version}." for version in TESTED)):
        _log.warning(
            "fairlead: vLLM %s was not tested, only %s; everything that the plugin hooks is there",
            *(vllm_version, " and ".join(TESTED)),
        )
    policy = config.scheduler_config.policy
    if policy != "fcfs":
        raise UnsupportedError(f"--scheduling-policy {policy} is an order of its own: leave it at fcfs")
    if config.kv_transfer_config is not None or config.ec_transfer_config is not None:
        raise UnsupportedError(
            "KV and encoder-cache connectors (--kv-transfer-config, --ec-transfer-config) are not supported:"
            " requests that wait for a transfer leave the queue and come back past it, uncharged"
        )
    if getattr(config.model_config, "is_diffusion", False):
        raise UnsupportedError("diffusion models need vLLM's own scheduler for them")


def check_cache(config: Any, cache: PrefixCache, *, needed: bool) -> None:
    """Warn if a policy uses the prefix cache and it is off; raise if it cannot be read."""
    if not needed or cache.usable:
        return
    if config.cache_config.enable_prefix_caching:
        raise UnsupportedError(
            "this model has no layer of full attention, so a match does not say what can be reused: set"
            " FAIRLEAD_PLUGIN_ORDER to vtc or fcfs"
        )
    _log.warning("fairlead: prefix caching is off: the order is fair, but cannot favour cached prompts")
