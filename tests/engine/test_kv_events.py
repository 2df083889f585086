"""KV-cache events as a subscriber sees them, over real ZMQ sockets."""

import asyncio

import msgspec
import pytest
import xxhash
import zmq
import zmq.asyncio

from fairlead.core.keys import seed_key, token_keys
from fairlead.engine.kv_events import KVEventPublisher
from fairlead.engine.server import EngineConfig, EngineServer
from tests.engine.http_calls import call, serve

ANY = "tcp://127.0.0.1:*"
DIGEST = xxhash.xxh3_64_intdigest
END = b"\xff" * 8


# What vLLM's own subscribers decode with: events as tagged maps, or as arrays before June 2026.
class Stored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[int | bytes]
    medium: str | None


class Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class LegacyStored(Stored, tag="BlockStored", array_like=True):
    pass


class LegacyRemoved(Removed, tag="BlockRemoved", array_like=True):
    pass


class LegacyCleared(Cleared, tag="AllBlocksCleared", array_like=True):
    pass


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Stored | Removed | Cleared]
    data_parallel_rank: int | None = None


class LegacyBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[LegacyStored | LegacyRemoved | LegacyCleared]
    data_parallel_rank: int | None = None


async def replay(endpoint: str, start: int) -> list[tuple[int, bytes]]:
    """Ask for the batches from ``start`` on, as a subscriber that missed some does."""
    with zmq.asyncio.Context() as context:
        asker = context.socket(zmq.DEALER)
        asker.linger = 0
        asker.connect(endpoint)
        await asker.send_multipart([b"", start.to_bytes(8, "big")])
        batches = []
        while True:
            empty, number, batch = await asyncio.wait_for(asker.recv_multipart(), 60)
            assert empty == b""
            if number == END:
                assert batch == b""
                asker.close()
                return batches
            batches.append((int.from_bytes(number, "big"), batch))


async def talk(server: EngineServer, *lengths: int) -> None:
    for n in lengths:
        prompt = chr(65 + n % 26) * n
        sent = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True}
        assert (await call(server.port, "POST", "/v1/completions", sent)).status == 200


@pytest.mark.parametrize(("legacy", "kind"), [(False, Batch), (True, LegacyBatch)])
def test_a_subscriber_can_follow_the_cache(legacy, kind):
    """Folding all events gives the cache; keys computed from the token ids are the engine's own."""

    async def body(server: EngineServer) -> None:
        assert server.events is not None
        await talk(server, 400, 700, 400, 650, 900, 777)
        batches = await replay(str(server.events.replay_endpoint), 0)
        assert [number for number, _ in batches] == list(range(len(batches)))
        tokens_of: dict[object, list[int]] = {}
        evictions = 0
        for _, raw in batches:
            batch = msgspec.msgpack.decode(raw, type=kind)
            assert batch.ts > 1.7e9
            assert batch.data_parallel_rank == 0
            for event in batch.events:
                if isinstance(event, Removed):
                    evictions += len(event.block_hashes)
                    for key in event.block_hashes:
                        del tokens_of[key]
                    continue
                assert isinstance(event, Stored)
                assert (event.block_size, event.medium) == (8, "GPU")
                assert event.lora_id is event.lora_name is None
                assert len(event.token_ids) == 8 * len(event.block_hashes)
                parent = event.parent_block_hash
                prefix = tokens_of[parent] if parent is not None else []
                for i, key in enumerate(event.block_hashes):
                    prefix = [*prefix, *event.token_ids[8 * i : 8 * i + 8]]
                    tokens_of[key] = prefix
                    assert key == token_keys(prefix, 8, seed_key("m"), DIGEST)[-1]
        assert evictions > 0
        assert len(tokens_of) == server.engine.pool.cached
        assert set(server.engine.pool.keys()) == set(tokens_of)

    serve(body, kv_events=ANY, kv_replay=ANY, legacy_events=legacy, block_size=8, kv_blocks=40)


def test_live_events_come_in_order_under_the_topic() -> None:
    """A subscriber that joins late sees every batch from its first on, in the same frames."""

    async def body(server: EngineServer) -> None:
        assert server.events is not None
        with zmq.asyncio.Context() as context:
            subscriber = context.socket(zmq.SUB)
            subscriber.linger = 0
            subscriber.subscribe("kv@w1")
            subscriber.connect(server.events.endpoint)
            for n in range(100, 200):  # joining takes a moment that PUB does not tell
                await talk(server, n)
                if await subscriber.poll(20):
                    break
            await talk(server, 300, 301)
            last = server.events._sequence - 1
            numbers = []
            while not numbers or numbers[-1] < last:
                topic, number, raw = await asyncio.wait_for(subscriber.recv_multipart(), 60)
                assert topic == b"kv@w1"
                numbers.append(int.from_bytes(number, "big"))
                assert msgspec.msgpack.decode(raw, type=Batch).events
            assert numbers == list(range(numbers[0], last + 1))
            subscriber.close()

    serve(body, kv_events=ANY, kv_topic="kv@w1")


def test_replay_starts_where_asked_and_survives_nonsense() -> None:
    async def body(server: EngineServer) -> None:
        assert server.events is not None
        endpoint = str(server.events.replay_endpoint)
        await talk(server, 100, 101, 102)
        everything = await replay(endpoint, 0)
        assert await replay(endpoint, 2) == everything[2:]
        assert await replay(endpoint, len(everything)) == []
        with zmq.asyncio.Context() as context:
            asker = context.socket(zmq.DEALER)
            asker.linger = 0
            asker.connect(endpoint)
            await asker.send_multipart([b"nonsense"])
            await asker.send_multipart([b"", b"short"])
            await asker.send_multipart([b"", (1).to_bytes(8, "big")])
            frames = await asyncio.wait_for(asker.recv_multipart(), 60)
            assert frames == [b"", (1).to_bytes(8, "big"), everything[1][1]]
            asker.close()

    serve(body, kv_events=ANY, kv_replay=ANY)


@pytest.mark.parametrize(("legacy", "kind"), [(False, Batch), (True, LegacyBatch)])
def test_resetting_the_cache_is_told(legacy, kind):
    async def body(server: EngineServer) -> None:
        assert server.events is not None
        await talk(server, 200)
        assert (await call(server.port, "POST", "/reset_prefix_cache")).status == 200
        _, raw = (await replay(str(server.events.replay_endpoint), 0))[-1]
        (event,) = msgspec.msgpack.decode(raw, type=kind).events
        assert isinstance(event, Cleared)

    serve(body, kv_events=ANY, kv_replay=ANY, legacy_events=legacy)


def test_sources_are_announced() -> None:
    async def body(server: EngineServer) -> None:
        assert server.events is not None
        source = (await call(server.port, "GET", "/kv_event_sources")).json["0"]
        assert source["endpoint"] == server.events.endpoint
        assert source["endpoint"].startswith("tcp://127.0.0.1:")
        assert source["replay_endpoint"] == server.events.replay_endpoint

    serve(body, kv_events=ANY, kv_replay=ANY)


def test_an_endpoint_in_use_is_an_error_and_leaves_nothing_open() -> None:
    async def body() -> None:
        first = KVEventPublisher(ANY, clock=lambda: 0.0)
        first.start()
        second = EngineServer(EngineConfig(kv_events=ANY, kv_replay=first.endpoint))
        with pytest.raises(zmq.ZMQError, match="in use"):
            await second.start()
        await first.close()
        await second.start()
        await second.stop()

    asyncio.run(body())
