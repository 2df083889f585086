"""KV-cache events over ZMQ in vLLM's frames: [topic, sequence number, msgpack of a batch].

A batch is the array [time, events, data-parallel rank]. An event is a map with a ``type`` (vLLM
since June 2026), or, with ``legacy``, an array that begins with its type. A PUB socket sends every
batch; a ROUTER socket, when asked, sends the recent ones again: a client sends an empty frame and
the first sequence number it wants, 8 bytes big endian, and receives one message a batch (empty
frame, number, batch) and a last one with number -1 and no batch.

Unlike vLLM, which connects to an endpoint such as ``tcp://127.0.0.1:5557``, both sockets always bind.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import zmq
import zmq.asyncio

from fairlead.core.model import BlockKey

log = logging.getLogger("fairlead.engine")

KEPT_BATCHES = 10_000
SEND_QUEUE = 100_000
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
MEDIUM = "GPU"


class _Stored(msgspec.Struct, tag="BlockStored", gc=False):
    block_hashes: Sequence[BlockKey]
    parent_block_hash: BlockKey | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = MEDIUM
    lora_name: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved", gc=False):
    block_hashes: Sequence[BlockKey]
    medium: str | None = MEDIUM


class _Cleared(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    pass


class _LegacyStored(_Stored, tag="BlockStored", array_like=True, gc=False):
    pass


class _LegacyRemoved(_Removed, tag="BlockRemoved", array_like=True, gc=False):
    pass


class _LegacyCleared(_Cleared, tag="AllBlocksCleared", array_like=True, gc=False):
    pass


class KVEventPublisher:
    """Publishes what an engine caches and evicts. ``start`` and ``close`` on the event loop's thread.

    Raises ``zmq.ZMQError`` from ``start`` when an endpoint cannot be bound.
    """

    def __init__(
        self,
        endpoint: str,
        replay_endpoint: str | None = None,
        *,
        topic: str = "",
        legacy: bool = False,
        clock: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        """Once started, the one that was bound, its port included."""
        self.replay_endpoint = replay_endpoint
        self.topic = topic
        self._clock = clock
        """Seconds since the epoch, for a batch's time stamp."""
        self._stored, self._removed, self._cleared = (
            (_LegacyStored, _LegacyRemoved, _LegacyCleared) if legacy else (_Stored, _Removed, _Cleared)
        )
        self._encode = msgspec.msgpack.Encoder().encode
        self._events: list[object] = []
        self._sequence = 0
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=KEPT_BATCHES)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._publisher: zmq.Socket[bytes] | None = None
        self._router: zmq.asyncio.Socket | None = None
        self._replay: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Bind the sockets and begin to answer replay requests."""
        self._context = context = zmq.Context()
        try:
            self._publisher = publisher = context.socket(zmq.PUB)
            publisher.set_hwm(SEND_QUEUE)
            publisher.bind(self.endpoint)
            self.endpoint = publisher.getsockopt_string(zmq.LAST_ENDPOINT)
            if self.replay_endpoint is not None:
                self._router = router = zmq.asyncio.Context.shadow(context).socket(zmq.ROUTER)
                router.bind(self.replay_endpoint)
                self.replay_endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
                self._replay = asyncio.ensure_future(self._answer_replays(router))
        except zmq.ZMQError:
            self._close_sockets()
            raise

    async def close(self) -> None:
        """Close the sockets; batches not yet taken by the network are dropped."""
        if self._replay is not None:
            self._replay.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._replay
            self._replay = None
        self._close_sockets()

    def _close_sockets(self) -> None:
        # Each by itself: a context waits for ever for a socket that was made through a shadow of it.
        for socket in (self._publisher, self._router):
            if socket is not None:
                socket.close(linger=0)
        self._publisher = self._router = None
        if self._context is not None:
            self._context.term()
            self._context = None

    def removed(self, keys: Sequence[BlockKey]) -> None:
        """Note evicted blocks for the next batch."""
        self._events.append(self._removed(keys))

    def stored(
        self, keys: Sequence[BlockKey], parent: BlockKey | None, tokens: Sequence[int], block_tokens: int
    ) -> None:
        """Note blocks stored after ``parent``, and their tokens, for the next batch."""
        self._events.append(self._stored(keys, parent, list(tokens), block_tokens))

    def cleared(self) -> None:
        """Note that nothing is cached any more, for the next batch."""
        self._events.append(self._cleared())

    def publish(self) -> None:
        """Send what was noted as one batch, if anything was."""
        if not self._events:
            return
        batch = self._encode([self._clock(), self._events, 0])
        number = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        self._events.clear()
        self._kept.append((number, batch))
        if self._publisher is not None:
            with contextlib.suppress(zmq.Again):  # subscribers that are too slow miss it, as PUB does
                self._publisher.send_multipart((self.topic.encode(), number, batch), zmq.DONTWAIT)

    async def _answer_replays(self, router: zmq.asyncio.Socket) -> None:
        while True:
            frames = await router.recv_multipart()
            if len(frames) != 3 or frames[1] or len(frames[2]) != 8:
                log.warning("ignored a replay request of %d frames", len(frames))
                continue
            asker, _, start = frames
            for number, batch in list(self._kept):
                if number >= start:  # big endian, of equal length: compares as numbers do
                    await router.send_multipart((asker, b"", number, batch))
            await router.send_multipart((asker, b"", END_OF_REPLAY, b""))
