"""An engine that publishes KV events, reduced to what the wire shows; its faults can be ordered."""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

BLOCK = 16


def stored(
    hashes: Sequence[int | bytes], tokens: Sequence[int], parent: int | bytes | None = None, **more: Any
) -> dict[str, Any]:
    """A BlockStored in map form, as vLLM 0.32 sends it for a plain model."""
    event = {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": len(tokens) // max(len(hashes), 1),
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(hashes),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    return event | more


def removed(hashes: Sequence[int | bytes], **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0} | more


CLEARED = {"type": "AllBlocksCleared"}


def positional(event: dict[str, Any]) -> list[Any]:
    """The same event as an array with its name first."""
    return list(event.values())


class FakeEngine:
    """Publishes batches and replays them, like vLLM's ZMQ publisher. Use as an async context."""

    clock = itertools.count(1)

    def __init__(
        self, context: zmq.asyncio.Context, ports: tuple[int, int] = (0, 0), keep: int = 10_000
    ) -> None:
        self.buffer: deque[tuple[int, bytes]] = deque(maxlen=keep)
        self.sequence = 0
        self.replays = 0
        self.mute_replay = False
        self._live = context.socket(zmq.PUB)
        self._replay = context.socket(zmq.ROUTER)
        self.ports = tuple(
            socket.bind_to_random_port("tcp://127.0.0.1") if not port else _bind(socket, port)
            for socket, port in zip((self._live, self._replay), ports, strict=True)
        )

    async def publish(self, *events: Any, lose: bool = False) -> None:
        """Send one batch; with ``lose`` it reaches no subscriber, but can be replayed."""
        payload = msgspec.msgpack.encode([float(next(self.clock)), list(events), 0])
        await self.send_raw(payload, lose=lose)

    async def send_raw(self, payload: bytes, *, lose: bool = False) -> None:
        sequence, self.sequence = self.sequence, self.sequence + 1
        self.buffer.append((sequence, payload))
        if not lose:
            await self._live.send_multipart([b"kv@test", sequence.to_bytes(8, "big"), payload])

    async def serve_replays(self) -> None:
        while True:
            identity, _, start = await self._replay.recv_multipart()
            self.replays += 1
            if self.mute_replay:
                continue
            for sequence, payload in list(self.buffer):
                if sequence >= int.from_bytes(start, "big"):
                    frames = [identity, b"", b"kv@test", sequence.to_bytes(8, "big"), payload]
                    await self._replay.send_multipart(frames)
            await self._replay.send_multipart([identity, b"", b"", b"\xff" * 8, b""])

    def close(self) -> None:
        self._live.close(linger=0)
        self._replay.close(linger=0)


def _bind(socket: zmq.asyncio.Socket, port: int) -> int:
    """Bind a port that was bound a moment ago: ZeroMQ closes in the background, so it may take a while."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return port
