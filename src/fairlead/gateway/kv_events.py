"""Follows one engine's KV-cache events, so that its cache is known rather than guessed.

For each worker that offers events the gateway makes one ``KvEvents`` and runs it as a task::

    events = KvEvents(worker, source, keys, emit=dispatch, on_state=log)
    task = asyncio.create_task(events.run())    # until cancelled; never raises for what an engine does

``emit`` is called, from the event loop and in order, with ``CacheCleared``, ``CacheStored`` and
``CacheEvicted`` of that worker. Each change of what is known begins with a ``CacheCleared``:

- ``precise=True``: from here on events tell everything; the whole cache follows as ``CacheStored``.
- ``precise=False``: events are lost, incomplete or cannot be used; what was sent is the best guess.

So a worker is added with ``WorkerUp(precise=False)`` and becomes precise by itself. After a
``WorkerDown`` that made the dispatcher forget a cache which the engine may still have, and on any
other change of ``precise`` behind our back, call ``resync()``. ``on_state`` hears each transition
with its reason, and ``state`` is a snapshot for metrics.

How knowledge is kept true:

- A gap in the sequence numbers is filled from the engine's replay socket. A replay starts at the
  last batch we have: if it comes back the same, the engine is still the one we knew; if not, it was
  restarted and everything is read again from its first batch.
- Where a replay cannot reach back far enough, what the engine cached before is unknown. Its blocks
  show when others continue them; while they do, the state is ``partial`` and the speculative index
  is used. It is precise again once the engine clears its cache or nothing has continued an unknown
  block for ``settle_blocks`` blocks.
- A lost connection or an undecodable message ends what is known at once. We connect anew, after
  a pause that grows while that keeps happening.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from fairlead.core import outside
from fairlead.core.events import CacheCleared, CacheEvicted, CacheStored
from fairlead.core.keys import Digest, blake2b_digest
from fairlead.core.model import WorkerId
from fairlead.gateway.key_secret import NO_SECRET, KeySecret
from fairlead.gateway.kv_view import Change, Forgot, Gained, IncompatibleError, KvView, Lost
from fairlead.gateway.kv_wire import WireError, decode_batch, decode_message
from fairlead.http.address import parse_address

CacheEvent = CacheCleared | CacheStored | CacheEvicted

log = logging.getLogger("fairlead.workers")

_SLICE = 16  # batches, or chains, after which other tasks get their turn
_SLICE_BYTES = 2**17  # likewise
_MOST_BYTES = 2**21  # of a batch; one of 130,000 tokens has half of that
_MOST_BATCHES = 1_000  # that wait for us; more are lost, and replayed
_MOST_TOPIC = 256
_ENDPOINT = re.compile(r"tcp://[^/]*:(\d{1,5})", re.ASCII)
_IDLE_MS = 500
_HEARTBEAT_MS = 5_000
_SILENCE_MS = 15_000  # a peer that answers no heartbeat for this long is gone


class KvSource(NamedTuple):
    """Where an engine publishes. ``replay`` and ``topic`` may be empty: no replays, all topics."""

    endpoint: str
    replay: str = ""
    topic: str = ""


class KeySettings(NamedTuple):
    """How prompts are turned into keys; the same as for requests, or nothing would match."""

    model: str
    """The engine's base model, as requests name it."""
    block_tokens: int = 16
    """An engine's block has to be a multiple of it."""
    digest: Digest = blake2b_digest
    max_blocks: int = 1_000_000
    secret: KeySecret = NO_SECRET


class KvState(NamedTuple):
    """What is known about one worker's cache, for metrics and people."""

    phase: str
    """``connecting``, ``precise``, ``partial`` or ``lost``; only ``precise`` is not guessed."""
    reason: str
    sequence: int
    """Of the last batch taken in; -1 before the first."""
    updated_us: int
    """When that was; 0 before the first."""
    blocks: int
    """Engine blocks known to be held."""
    batches: int
    gaps: int
    """Times that batches were missing, whether or not a replay filled them."""
    sessions: int
    """Connections made."""
    orphans: int
    foreign: int
    dropped: int


class SourceError(ValueError):
    """An engine's answer about its events that cannot be used. The text says why."""


class _LostError(Exception):
    """What was known is not valid any more; the text says why."""


class _Link(NamedTuple):
    """One connection to a publisher. ``monitor`` speaks after the handshake only if it broke off."""

    context: zmq.asyncio.Context
    live: zmq.asyncio.Socket
    monitor: zmq.asyncio.Socket


def source_from(body: bytes, worker_url: str) -> KvSource:
    """Read the answer of an engine's ``GET /kv_event_sources``.

    The host is always the worker's own, as we know it: an engine binds addresses that are none from here,
    and must not send us to other machines. Raises ``SourceError`` if it publishes nothing, what cannot
    be followed, or several ranks whose caches one URL mixes.
    """
    try:
        ranks = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"not JSON: {error}") from None
    found = [rank for rank in ranks.values() if isinstance(rank, dict)] if isinstance(ranks, dict) else []
    if len(found) != 1:
        raise SourceError(f"{len(found)} publishers behind one address; one is needed")
    only: Mapping[str, Any] = found[0]
    if not only.get("enable_kv_cache_events") or only.get("publisher") != "zmq":
        raise SourceError("KV-cache events are off; see --kv-events-config of vLLM")
    host = parse_address(worker_url).host
    endpoint, replay = (_reachable(only.get(name), host) for name in ("endpoint", "replay_endpoint"))
    if not endpoint:
        raise SourceError("the engine names no endpoint")
    topic = only.get("topic") or ""
    if not isinstance(topic, str) or len(topic) > _MOST_TOPIC:
        raise SourceError("the engine's topic is no text, or a long one")
    return KvSource(endpoint, replay, topic)


def _reachable(endpoint: object, host: str) -> str:
    """Return where ``endpoint`` is on ``host``; nothing for none."""
    if not endpoint:
        return ""
    found = _ENDPOINT.fullmatch(endpoint) if isinstance(endpoint, str) else None
    port = outside.whole(int(found[1]), 65_535, 1) if found else None
    if port is None:
        raise SourceError("its endpoint is not tcp://HOST:PORT")
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class KvEvents:
    """One worker's subscription; see the module's text.

    ``now`` gives microseconds on the clock of all events. ``pause_s`` is the first and the longest
    pause before another connection; ``replay_timeout_s`` how long a replay may stay silent. ``ignore`` hears
    of messages that make no sense.
    """

    def __init__(
        self,
        worker: WorkerId,
        source: KvSource,
        keys: KeySettings,
        *,
        emit: Callable[[CacheEvent], None],
        now: Callable[[], int],
        on_state: Callable[[KvState], None] | None = None,
        pause_s: tuple[float, float] = (0.5, 30.0),
        replay_timeout_s: float = 10.0,
        settle_blocks: int = 2048,
        ignore: Callable[[str, object], None] = lambda figure, said: None,  # noqa: ARG005
    ) -> None:
        self.worker = worker
        self.source = source
        self._emit = emit
        self._now = now
        self._on_state = on_state
        self._ignore = ignore
        self._pause_s = pause_s
        self._replay_timeout_s = replay_timeout_s
        self._settle_blocks = settle_blocks
        self._view = KvView(keys.model, keys.block_tokens, keys.digest, keys.max_blocks, keys.secret)
        self._whole = False
        """The view has all that the engine holds, and not only what was cached since we listen."""
        self._last = (-1, b"")
        """Sequence and digest of the last batch taken in: what a replay is checked against."""
        self._phase, self._reason = "connecting", f"no connection to {source.endpoint} yet"
        self._resync = False
        self._updated = self._batches = self._gaps = self._sessions = 0

    @property
    def state(self) -> KvState:
        """Return a snapshot."""
        counts = self._view.counts
        return KvState(
            self._phase,
            self._reason,
            self._last[0],
            self._updated,
            len(self._view),
            self._batches,
            self._gaps,
            self._sessions,
            counts.orphans,
            counts.foreign,
            counts.dropped,
        )

    @property
    def precise(self) -> bool:
        """Whether the worker's cache is known from events."""
        return self._phase == "precise"

    def resync(self) -> None:
        """Say everything that is known once more, within a second; nothing is said until then."""
        self._resync = True

    async def run(self) -> None:
        """Follow the events until cancelled."""
        clock = asyncio.get_running_loop().time
        context = zmq.asyncio.Context()
        first, longest = self._pause_s
        pause = first
        try:
            while True:
                began = clock()
                try:
                    await self._session(context)
                except (_LostError, zmq.ZMQError) as error:
                    self._fall_back("lost", str(error))
                except (WireError, IncompatibleError) as error:
                    self._ignore("kv_events", str(error))
                    self._forget(whole=False)
                    self._fall_back("lost", str(error))
                except (
                    Exception
                ) as error:  # whatever happened, what was known of the cache is not valid any more
                    log.exception("following the KV-cache events of %s failed", self.worker)
                    self._forget(whole=False)
                    self._fall_back("lost", f"a fault of ours: {error!r}")
                if clock() - began > longest:
                    pause = first
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
        finally:
            context.destroy(linger=0)

    # -- what is known -----------------------------------------------------------------------------

    def _fall_back(self, phase: str, reason: str) -> None:
        """Say that the worker's cache is only approximated from now on."""
        if self.precise:
            self._emit(CacheCleared(self._now(), self.worker, precise=False))
        self._enter(phase, reason)

    async def _announce(self, reason: str) -> None:
        """Become precise, and say everything that is held."""
        self._resync = False
        self._emit(CacheCleared(self._now(), self.worker, precise=True))
        self._enter("precise", reason)
        for count, chain in enumerate(self._view.chains(), 1):
            self._emit(CacheStored(self._now(), self.worker, chain.keys, chain.parent))
            if count % _SLICE == 0:
                await asyncio.sleep(0)
                if self._resync:
                    return  # all of it is wanted once more, from the start

    def _enter(self, phase: str, reason: str) -> None:
        changed = (phase, reason) != (self._phase, self._reason)
        self._phase, self._reason = phase, reason
        if changed and self._on_state is not None:
            self._on_state(self.state)

    async def _judge(self, reason: str) -> None:
        """Become precise if what is known is all that counts; else say why it is not."""
        if self._whole or self._view.since_orphan >= self._settle_blocks:
            if not self.precise:
                await self._announce(reason)
        else:
            self._fall_back("partial", reason)

    def _forget(self, *, whole: bool) -> None:
        """Start the view anew; ``whole`` if the engine holds nothing either."""
        self._view.clear()
        self._whole = whole
        self._last = (-1, b"")

    def _take(self, sequence: int, payload: bytes) -> None:
        """Take one batch into the view, and tell the changes if the rest is told."""
        self._batches += 1
        for event in decode_batch(payload):
            for change in self._view.apply(event):
                if self.precise and not self._resync:
                    self._tell(change)
                if isinstance(change, Forgot):
                    self._whole = True
        self._last = (sequence, _digest(payload))
        self._updated = self._now()

    def _tell(self, change: Change) -> None:
        match change:
            case Gained(keys, parent):
                self._emit(CacheStored(self._now(), self.worker, keys, parent))
            case Lost(keys):
                self._emit(CacheEvicted(self._now(), self.worker, keys))
            case Forgot():
                self._emit(CacheCleared(self._now(), self.worker, precise=True))

    # -- one connection ----------------------------------------------------------------------------

    async def _session(self, context: zmq.asyncio.Context) -> None:
        """Connect, catch up and follow. Ends with an exception that says why."""
        live = context.socket(zmq.SUB)
        monitor = live.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            live.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            live.set(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
            live.set(zmq.RECONNECT_IVL_MAX, int(self._pause_s[1] * 1000))
            live.set(zmq.RCVHWM, _MOST_BATCHES)
            live.set(zmq.MAXMSGSIZE, _MOST_BYTES)
            live.subscribe(self.source.topic)
            live.connect(self.source.endpoint)
            while (await recv_monitor_message(monitor))["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                pass  # an attempt that broke off; ZeroMQ makes others
            self._sessions += 1
            link = _Link(context, live, monitor)
            await self._catch_up(link)
            await self._follow(link)
        finally:
            live.disable_monitor()
            live.close(linger=0)

    async def _follow(self, link: _Link) -> None:
        live, monitor = link.live, link.monitor
        poller = zmq.asyncio.Poller()
        poller.register(live, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        newest = -1  # on one connection the numbers only grow
        looked_back = False
        while True:
            ready = dict(await poller.poll(_IDLE_MS))
            taken = 0 if live in ready else _SLICE_BYTES
            while taken < _SLICE_BYTES:
                frames = await _receive_now(live)
                if frames is None:
                    break
                sequence, payload = decode_message(frames)
                if sequence <= newest:
                    raise _LostError(f"sequence number {sequence} came after {newest}")
                newest = sequence
                taken += _SLICE_BYTES // _SLICE + len(payload)
                await self._live(link, sequence, payload)
            if monitor in ready:
                raise _LostError("the connection broke off")
            if not ready and not looked_back and self.source.replay:
                # Batches between the first catch-up and the moment that our subscription reached the
                # publisher were sent to nobody. Later ones show the gap; on an idle engine we have to look.
                looked_back = True
                await self._catch_up(link)
            if self._phase == "partial":
                await self._judge(self._reason)
            elif self._resync and self.precise:
                await self._announce(self._reason)
            await asyncio.sleep(0)

    async def _live(self, link: _Link, sequence: int, payload: bytes) -> None:
        """Take one live batch, after those that are missing before it."""
        if sequence > self._last[0] + 1:
            self._gaps += self._last[0] >= 0
            await self._catch_up(link)
        if sequence <= self._last[0]:
            return  # a replay has brought it
        if sequence > self._last[0] + 1:
            reason = f"the batches before {sequence} are lost for good"
            self._forget(whole=False)
            self._fall_back("partial", reason)
        elif sequence == 0:
            self._whole = True  # we were there from the start
        self._take(sequence, payload)

    # -- catching up -------------------------------------------------------------------------------

    async def _catch_up(self, link: _Link) -> None:
        """Read from the replay socket what was missed."""
        if not self.source.replay:
            self._forget(whole=False)
            self._fall_back("partial", "the engine replays nothing, so what it cached before is unknown")
            return
        if self._last[0] >= 0 and await self._replay_from_last(link):
            await self._judge("caught up" if self._whole else self._reason)
            return
        # A new engine, or one that we lost sight of for too long. What comes is told when it is complete.
        self._fall_back("connecting", "reading all that the engine has")
        self._forget(whole=True)
        count = 0
        async with aclosing(self._replay(link, 0)) as batches:
            async for sequence, payload in batches:
                if not count and sequence:
                    self._whole = False
                self._take(sequence, payload)
                count += 1
        known = "all events" if self._whole else "not the first events"
        await self._judge(f"read {count} batches: {known} of the engine")

    async def _replay_from_last(self, link: _Link) -> bool:
        """Continue after the last batch that we have. False if the engine does not have it, or another."""
        last, known = self._last, False
        async with aclosing(self._replay(link, last[0])) as batches:
            async for sequence, payload in batches:
                if known:
                    self._take(sequence, payload)
                elif (sequence, _digest(payload)) != last:
                    return False
                known = True
        return known

    async def _replay(self, link: _Link, start: int) -> AsyncGenerator[tuple[int, bytes]]:
        """Ask for the batches from ``start`` on.

        An engine that dies while it is asked would be silent until the time-out: the live connection
        tells at once.
        """
        ask = link.context.socket(zmq.DEALER)
        poller = zmq.asyncio.Poller()
        poller.register(ask, zmq.POLLIN)
        poller.register(link.monitor, zmq.POLLIN)
        try:
            ask.set(zmq.MAXMSGSIZE, _MOST_BYTES)
            ask.connect(self.source.replay)
            await ask.send_multipart([b"", start.to_bytes(8, "big")])
            taken, newest = 0, -1
            while True:
                ready = dict(await poller.poll(int(self._replay_timeout_s * 1000)))
                if link.monitor in ready:
                    raise _LostError("the connection broke off")
                if not ready:
                    raise _LostError(f"no answer from the replay socket {self.source.replay}")
                frames = await ask.recv_multipart()
                sequence, payload = decode_message(frames)
                if sequence < 0:
                    return
                if sequence <= newest:
                    raise _LostError(f"in a replay, sequence number {sequence} came after {newest}")
                newest = sequence
                yield sequence, payload
                taken += _SLICE_BYTES // _SLICE + len(payload)
                if taken >= _SLICE_BYTES:
                    taken = 0
                    await asyncio.sleep(0)
        finally:
            ask.close(linger=0)


async def _receive_now(socket: zmq.asyncio.Socket) -> list[bytes] | None:
    """Return a message that has arrived already, or None."""
    try:
        return await socket.recv_multipart(flags=zmq.NOBLOCK)
    except zmq.Again:
        return None


def _digest(payload: bytes) -> bytes:
    """Tell two batches of the same number apart. They hold the time, so a restarted engine's differ."""
    return blake2b(payload, digest_size=16).digest()
