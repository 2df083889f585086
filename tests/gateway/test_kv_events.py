"""The subscription: true while events come, honest when they do not."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import zmq.asyncio

from fairlead.core.events import CacheCleared, CacheEvicted, CacheStored
from fairlead.core.keys import seed_key, token_keys
from fairlead.gateway.kv_events import KeySettings, KvEvents, KvSource, KvState, SourceError, source_from
from tests.gateway.kv_fakes import BLOCK, CLEARED, FakeEngine, removed, stored

SETTINGS = KeySettings(model="m", block_tokens=BLOCK)


def tokens(number: int, blocks: int = 1) -> list[int]:
    """Token ids of some blocks that no other number shares."""
    return [1000 * number + i for i in range(BLOCK * blocks)]


def keys(number: int, blocks: int = 1) -> list[int]:
    return token_keys(tokens(number, blocks), BLOCK, seed_key("m"))


class Listener:
    """What the dispatcher would know, from the events alone."""

    def __init__(self, source: KvSource, **options: Any) -> None:
        self.held: set[int] = set()
        self.precise = False
        self.states: list[KvState] = []
        self.ignored: list[object] = []
        self.events = KvEvents(
            "w",
            source,
            SETTINGS,
            emit=self.emit,
            now=lambda: 7,
            on_state=self.states.append,
            ignore=lambda figure, said: self.ignored.append(said),
            pause_s=(0.01, 0.05),
            replay_timeout_s=options.pop("replay_timeout_s", 2.0),
            **options,
        )

    def emit(self, event: CacheCleared | CacheStored | CacheEvicted) -> None:
        assert event.worker == "w"
        match event:
            case CacheCleared():
                self.held.clear()
                self.precise = event.precise
            case CacheStored():
                assert self.precise, "the dispatcher refuses blocks of a worker that is not precise"
                assert event.parent is None or event.parent in self.held
                self.held.update(event.keys)
            case CacheEvicted():
                assert self.precise
                assert self.held.issuperset(event.keys)
                self.held.difference_update(event.keys)

    def knows(self, *numbers: int) -> bool:
        return self.precise and self.held == {key for number in numbers for key in keys(number)}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to happen; the limit is only there to fail instead of hang."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is state of several tasks
            await asyncio.sleep(0.005)


class Stage:
    """An engine and a listener, both running."""

    def __init__(self, context: zmq.asyncio.Context, keep: int) -> None:
        self.context = context
        self.keep = keep
        self.tasks: list[asyncio.Task[None]] = []
        self.engine = self.start_engine()

    def start_engine(self, ports: tuple[int, int] = (0, 0)) -> FakeEngine:
        engine = FakeEngine(self.context, ports, self.keep)
        self.tasks.append(asyncio.create_task(engine.serve_replays()))
        return engine

    def restart_engine(self) -> None:
        """Kill it; another takes its address, with an empty cache and sequence numbers from 0."""
        self.engine.close()
        self.tasks.pop(0).cancel()
        self.engine = self.start_engine((self.engine.ports[0], self.engine.ports[1]))

    def listen(self, *, replay: bool = True, **options: Any) -> Listener:
        live, back = self.engine.ports
        source = KvSource(f"tcp://127.0.0.1:{live}", f"tcp://127.0.0.1:{back}" if replay else "", "kv@")
        listener = Listener(source, **options)
        self.tasks.append(asyncio.create_task(listener.events.run()))
        return listener


def play(scene: Callable[[Stage], Awaitable[None]], keep: int = 10_000) -> None:
    @asynccontextmanager
    async def stage() -> Any:
        context = zmq.asyncio.Context()
        one = Stage(context, keep)
        try:
            yield one
        finally:
            for task in one.tasks:
                task.cancel()
                with suppress(asyncio.CancelledError, zmq.ZMQError):
                    await task
            context.destroy(linger=0)

    async def run() -> None:
        async with stage() as one:
            await scene(one)

    asyncio.run(run())


def test_an_idle_engine_is_exact_and_empty() -> None:
    async def scene(stage: Stage) -> None:
        listener = stage.listen()
        await until(listener.knows)
        assert listener.events.state.phase == "precise"

    play(scene)


def test_what_was_cached_before_we_came_is_replayed_and_what_comes_follows() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)), stored([2], tokens(2)))
        await stage.engine.publish(removed([1]))
        listener = stage.listen()
        await until(lambda: listener.knows(2))
        await stage.engine.publish(stored([3], tokens(3)))
        await until(lambda: listener.knows(2, 3))
        await stage.engine.publish(removed([2]))
        await until(lambda: listener.knows(3))
        await stage.engine.publish(CLEARED)
        await until(listener.knows)
        assert listener.events.state.sequence == 4

    play(scene)


def test_a_gap_is_filled_by_a_replay_and_nothing_is_forgotten() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        listener = stage.listen()
        await until(lambda: listener.knows(1))
        await stage.engine.publish(stored([2], tokens(2)))
        await until(lambda: listener.knows(1, 2))
        await stage.engine.publish(removed([1]), stored([3], tokens(3)), lose=True)
        await stage.engine.publish(stored([4], tokens(4)))
        await until(lambda: listener.knows(2, 3, 4))
        assert listener.events.state.gaps == 1
        assert [state.phase for state in listener.states if state.phase != "precise"] == ["connecting"]

    play(scene)


def test_a_gap_that_no_replay_reaches_is_admitted_until_nothing_unknown_is_used() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        listener = stage.listen(settle_blocks=2)
        await until(lambda: listener.knows(1))
        await stage.engine.publish(stored([2], tokens(2)))
        await until(lambda: listener.knows(1, 2))
        for number in (3, 4, 5):
            await stage.engine.publish(stored([number], tokens(number)), lose=True)
        await stage.engine.publish(stored([6], tokens(6), parent=3))
        await until(lambda: listener.events.state.phase == "partial")
        assert not listener.precise
        assert listener.held == set()
        assert listener.events.state.orphans == 1
        await stage.engine.publish(stored([7], tokens(7)))
        await stage.engine.publish(stored([8], tokens(8)))
        await until(lambda: listener.knows(5, 7, 8))

    play(scene, keep=2)


def test_joining_late_is_partial_until_the_engine_clears_its_cache() -> None:
    async def scene(stage: Stage) -> None:
        for number in (1, 2, 3):
            await stage.engine.publish(stored([number], tokens(number)))
        listener = stage.listen()
        await until(lambda: listener.events.state.phase == "partial")
        assert not listener.precise
        await stage.engine.publish(CLEARED, stored([4], tokens(4)))
        await until(lambda: listener.knows(4))

    play(scene, keep=2)


def test_without_a_replay_socket_only_the_start_or_a_clear_makes_it_exact() -> None:
    async def scene(stage: Stage) -> None:
        listener = stage.listen(replay=False)
        await until(lambda: listener.events.state.phase == "partial")
        await asyncio.sleep(0.1)  # the subscription has to reach the publisher: nothing else shows that
        await stage.engine.publish(stored([1], tokens(1)))
        await until(lambda: listener.knows(1))
        await stage.engine.publish(stored([2], tokens(2)), lose=True)
        await stage.engine.publish(stored([3], tokens(3)))
        await until(lambda: listener.events.state.phase == "partial")
        assert not listener.precise
        await stage.engine.publish(CLEARED)
        await until(listener.knows)

    play(scene)


def test_a_restarted_engine_is_read_anew_even_if_its_numbers_would_continue() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        await stage.engine.publish(stored([2], tokens(2)))
        listener = stage.listen()
        await until(lambda: listener.knows(1, 2))
        stage.restart_engine()
        await stage.engine.publish(stored([3], tokens(3)))
        await stage.engine.publish(stored([4], tokens(4)))
        await stage.engine.publish(stored([5], tokens(5)))
        await until(lambda: listener.knows(3, 4, 5))
        assert "lost" in [state.phase for state in listener.states]
        assert listener.events.state.sessions == 2

    play(scene)


def test_a_silent_replay_socket_means_speculation_and_then_another_try() -> None:
    async def scene(stage: Stage) -> None:
        stage.engine.mute_replay = True
        await stage.engine.publish(stored([1], tokens(1)))
        listener = stage.listen(replay_timeout_s=0.05)
        await until(lambda: any("no answer" in state.reason for state in listener.states))
        assert not listener.precise
        stage.engine.mute_replay = False
        await until(lambda: listener.knows(1))

    play(scene)


def test_an_engine_that_dies_while_it_replays_is_lost_at_once_and_not_after_the_time_out() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        listener = stage.listen(replay_timeout_s=3600)
        await until(lambda: listener.knows(1))
        stage.engine.mute_replay = True
        asked = stage.engine.replays
        await stage.engine.publish(stored([2], tokens(2)), lose=True)
        await stage.engine.publish(stored([3], tokens(3)))
        await until(lambda: stage.engine.replays > asked)
        stage.restart_engine()
        await until(lambda: "broke off" in " ".join(state.reason for state in listener.states))
        await stage.engine.publish(stored([4], tokens(4)))
        await until(lambda: listener.knows(4))

    play(scene)


def test_garbage_ends_what_is_known_with_its_reason() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        listener = stage.listen()
        await until(lambda: listener.knows(1))
        await stage.engine.send_raw(b"\xc1")
        await until(lambda: listener.events.state.phase == "lost")
        assert not listener.precise
        assert "msgpack" in listener.events.state.reason
        assert any("msgpack" in str(said) for said in listener.ignored)
        assert stage.engine.buffer.pop()[1] == b"\xc1"
        await until(lambda: listener.knows(1))

    play(scene)


def test_blocks_that_ours_do_not_divide_are_refused_with_the_sizes() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], range(BLOCK + 1)))
        listener = stage.listen()
        await until(lambda: listener.events.state.phase == "lost")
        assert "17 tokens, which is no multiple of 16" in listener.events.state.reason

    play(scene)


def test_a_batch_without_end_is_not_taken_in() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        listener = stage.listen()
        await until(lambda: listener.knows(1))
        await stage.engine.send_raw(b"x" * 3_000_000)
        await until(lambda: "broke off" in " ".join(state.reason for state in listener.states))
        stage.engine.buffer.pop()
        await until(lambda: listener.knows(1))

    play(scene)


def test_a_replay_whose_numbers_do_not_grow_is_left() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        stage.engine.buffer.append(stage.engine.buffer[0])
        listener = stage.listen()
        await until(lambda: "0 came after 0" in listener.events.state.reason)
        assert not listener.precise
        stage.engine.buffer.pop()
        await until(lambda: listener.knows(1))

    play(scene)


def test_a_fault_of_ours_ends_what_is_believed_and_not_the_following() -> None:
    async def scene(stage: Stage) -> None:
        listener = stage.listen()
        await until(listener.knows)
        told = listener.events._emit
        listener.events._emit = lambda event: 1 / 0 if isinstance(event, CacheStored) else told(event)
        await stage.engine.publish(stored([1], tokens(1)))
        await until(lambda: "a fault of ours" in " ".join(state.reason for state in listener.states))
        assert not listener.precise
        listener.events._emit = told
        await until(lambda: listener.knows(1))

    play(scene)


def test_resync_says_everything_again() -> None:
    async def scene(stage: Stage) -> None:
        await stage.engine.publish(stored([1], tokens(1)))
        listener = stage.listen()
        await until(lambda: listener.knows(1))
        listener.emit(CacheCleared(7, "w", precise=False))  # someone else made the dispatcher forget
        listener.events.resync()
        await stage.engine.publish(stored([2], tokens(2)))
        await until(lambda: listener.knows(1, 2))

    play(scene)


def test_an_address_where_nobody_is_stays_speculative_and_says_so() -> None:
    async def scene(stage: Stage) -> None:
        port = stage.engine.ports[0]
        stage.engine.close()
        listener = stage.listen()
        await until(lambda: str(port) in listener.events.state.reason)
        assert listener.events.state.phase == "connecting"
        assert not listener.precise

    play(scene)


SOURCE = {
    "enable_kv_cache_events": True,
    "publisher": "zmq",
    "endpoint": "tcp://*:5557",
    "replay_endpoint": "tcp://0.0.0.0:5558",
    "topic": "kv@w1",
}


def test_an_engines_answer_gives_addresses_that_can_be_reached() -> None:
    body = json.dumps({"0": SOURCE}).encode()
    source = source_from(body, "http://engine-7:8000")
    assert source == KvSource("tcp://engine-7:5557", "tcp://engine-7:5558", "kv@w1")
    assert source_from(body, "http://[::1]:8000").endpoint == "tcp://[::1]:5557"
    assert source_from(body, "http://[::1]:8000").replay == "tcp://[::1]:5558"
    plain = json.dumps({"0": SOURCE | {"replay_endpoint": None, "topic": None}}).encode()
    assert source_from(plain, "http://e") == KvSource("tcp://e:5557", "", "")


@pytest.mark.parametrize("host", ["10.0.0.7", "metadata.internal", "[::ffff:7f00:1]", "user@10.0.0.7", ""])
def test_an_engine_cannot_send_us_to_another_machine(host: str) -> None:
    body = json.dumps({"0": SOURCE | {"endpoint": f"tcp://{host}:5557"}}).encode()
    assert source_from(body, "http://engine-7:8000").endpoint == "tcp://engine-7:5557"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<html>", "not JSON"),
        ("{}", "0 publishers"),
        ("[]", "0 publishers"),
        (json.dumps({"0": SOURCE, "1": SOURCE}), "2 publishers"),
        (json.dumps({"0": SOURCE | {"publisher": "null"}}), "are off"),
        (json.dumps({"0": SOURCE | {"endpoint": None}}), "no endpoint"),
        *(
            (json.dumps({"0": SOURCE | {name: endpoint}}), "not tcp://HOST:PORT")
            for name in ("endpoint", "replay_endpoint")
            for endpoint in (
                "ipc:///run/secret.sock",
                "inproc://x",
                "tcp://a",
                "tcp://a:0",
                "tcp://a:65536",
                "tcp://a:5557;x",
                "tcp://a:99999999999",
                "tcp://a:\u0665",
                "tcp://a/b:5557",
                "udp://a:5557",
                5557,
                ["tcp://a:5557"],
            )
        ),
        (json.dumps({"0": SOURCE | {"topic": "x" * 1000}}), "topic"),
        (json.dumps({"0": SOURCE | {"topic": 7}}), "topic"),
        ("[" * 100_000, "not JSON"),
        ('{"0": 1e999}', "not JSON"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(answer: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        source_from(answer.encode(), "http://e")
