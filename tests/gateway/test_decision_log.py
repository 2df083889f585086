"""The real gateway in front of embedded engines: what it recorded replays to identical decisions."""

import asyncio
import logging
import random
from pathlib import Path

import pytest

from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from fairlead.engine.server import EngineConfig, EngineServer
from fairlead.gateway.app import Gateway
from fairlead.simulate.verify import verify
from fairlead.trace.decision_reader import LogReader
from tests.gateway.mocks import Ask, MockWorker, Served, answer, chat, run, serving

CLIENTS = {
    "ann": {"weight": 2.0, "api_keys": ["ka"]},
    "bob": {"api_keys": ["kb"]},
    "cyd": {"api_keys": ["kc"]},
}
WORDS = [f"word{n} " for n in range(40)]


class Asker:
    """A client that reads its answer, or leaves after so many reads."""

    def __init__(self, leave_after: int | None) -> None:
        self.leave_after = leave_after
        self.reads = 0
        self.over = asyncio.Event()
        self.call = None

    def head(self, status, headers) -> None:
        pass

    def data(self, body) -> None:
        self.reads += 1
        if self.reads == self.leave_after:
            self.leave()

    def leave(self) -> None:
        self.call.cancel()
        self.over.set()

    def end(self) -> None:
        self.over.set()

    def error(self, error) -> None:
        self.over.set()


async def ask(served: Served, rng: random.Random) -> None:
    """Send one request of some client; it may leave while it waits, or in the middle of its answer."""
    prompt = "".join(WORDS[: rng.choice([3, 20, 40])]) * rng.choice([1, 8])
    stream = rng.random() < 0.7
    body = chat(content=prompt + str(rng.randrange(9)), stream=stream, max_tokens=rng.choice([1, 8, 40]))
    key = rng.choice([b"ka", b"kb", b"kc"])
    fate = rng.random()
    asker = Asker(leave_after=2 if fate < 0.15 else None)
    headers = [(b"authorization", b"Bearer " + key), (b"content-type", b"application/json")]
    request = served.pool.request_bytes(b"POST", b"/v1/chat/completions", headers, body)
    asker.call = served.pool.send(request, asker)
    if fate > 0.85:
        await asyncio.sleep(rng.random() * 0.05)
        asker.leave()
    await asyncio.wait_for(asker.over.wait(), 15)


async def traffic(served: Served, engines: list[EngineServer], seed: int) -> None:
    """Requests of three clients, while one engine dies and metrics are read."""
    rng = random.Random(seed)
    asked = []
    for number in range(60):
        asked.append(asyncio.ensure_future(ask(served, rng)))
        await asyncio.sleep(rng.random() * 0.01)
        if number % 10 == 9:
            assert (await served.get(b"/metrics"))[0] == 200
        if number == 30:
            await engines[0].stop()
    await asyncio.gather(*asked)


def engine(seed: int) -> EngineServer:
    return EngineServer(EngineConfig(model_name="tiny", speed=20, kv_blocks=300, seed=seed))


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("marginal", "dlpm"),
        ("d2lpm", "dlpm:scope=worker,quantum=500"),
        ("power_of_two", "vtc"),
        ("preble", "lpm"),
        ("d2lpm:quantum=500", "by the engines"),
    ],
)
def test_invariant_6_live_decisions_replay_identically(tmp_path: Path, policy: str, order: str) -> None:
    path = tmp_path / "decisions.log"

    async def main() -> None:
        engines = [engine(0), engine(1), engine(2)]
        options = {"policy": policy, "seed": 7, "worker_max_num_seqs": 3, "health_failures": 1}
        options |= {"engine_ordering": True} if order == "by the engines" else {"order": order}
        file = {"decision_log": str(path), "decision_log_max_bytes": 2**16, "decision_log_files": 50}
        async with serving(*engines, file={**file, "clients": CLIENTS}, **options) as served:
            await traffic(served, engines, 5)
            await served.settled()

    run(main)
    log = LogReader(path)
    verdict = verify(log)
    assert verdict.identical, verdict.difference
    assert not verdict.truncated
    assert verdict.events["Arrived"] == 60
    for name in ("WorkerUp", "FirstToken", "Progressed", "Finished", "Cancelled", "WorkerDown", "Tick"):
        assert verdict.events[name], name
    assert verdict.commands["Dispatch"] >= 40
    assert verdict.commands["Cancel"]
    assert log.header.setup.weights == {"ann": 2.0, "bob": 1.0, "cyd": 1.0}


def test_no_text_of_a_prompt_is_in_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(MockWorker(), file={"decision_log": str(tmp_path / "d")}) as served:
            assert (await served.post(chat(content="the secret word is xyzzy " * 40)))[0] == 200
            await served.settled()

    run(main)
    text = (tmp_path / "d").read_text()
    assert text.count('["Arrived",') == 1
    assert "xyzzy" not in text
    assert "secret" not in text


def test_what_happened_is_on_disk_soon_and_the_rest_at_the_end(tmp_path: Path) -> None:
    def names() -> list[str]:
        return [type(entry.event).__name__ for entry in LogReader(tmp_path / "d")]

    async def main() -> None:
        go_on = asyncio.Event()

        async def patient(request: Ask, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            await answer()(request, writer)

        async with serving(MockWorker(patient), file={"decision_log": str(tmp_path / "d")}) as served:
            asked = asyncio.ensure_future(served.post(chat()))
            while "Arrived" not in names():  # noqa: ASYNC110 - another thread writes it
                await asyncio.sleep(0.01)
            go_on.set()
            assert (await asked)[0] == 200

    run(main)
    assert names().count("Finished") == 1


def test_requests_are_served_on_when_the_log_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(lines: bytes, records: int) -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        async with serving(MockWorker(), file={"decision_log": str(tmp_path / "d")}) as served:
            log = served.gateway.scheduler._log
            assert log is not None
            monkeypatch.setattr(log._files, "write", full)
            for _ in range(3):
                assert (await served.post(chat()))[0] == 200
                log.flush()

    with caplog.at_level(logging.ERROR):
        run(main)
    ended = [r.getMessage() for r in caplog.records if r.name == "fairlead.decisions"]
    assert len(ended) == 1
    assert "No space left" in ended[0]


def test_without_the_option_nothing_is_recorded() -> None:
    async def main() -> None:
        async with serving(MockWorker()) as served:
            assert served.gateway.scheduler._log is None
            assert served.gateway.scheduler._decide == served.gateway.dispatcher.step

    run(main)


def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    from fairlead.config import resolve

    with pytest.raises(FileNotFoundError):
        Gateway(resolve({"decision_log": str(tmp_path / "none" / "d")}))


def test_every_policy_can_be_described_for_the_log() -> None:
    """The header needs what the gateway was configured with, in whatever form that was given."""
    from fairlead.config import resolve
    from fairlead.gateway.assembly import configured_dispatcher
    from fairlead.trace.decisions import Setup

    for policy in POLICIES.names():
        for order in ORDERINGS.names():
            config = resolve(
                {"policy": policy, "order": order, "queue_timeout_secs": 1.5, "clients": CLIENTS}
            )
            made = configured_dispatcher(config)
            setup = Setup.of(made, policy, order, 3)
            again = setup.dispatcher()
            assert again.settings == made.settings
            assert (again.routing.name, again.ordering.name) == (policy, order)


def test_invariant_6_holds_with_workers_that_have_no_room(tmp_path: Path) -> None:
    path = tmp_path / "decisions.log"

    async def main() -> None:
        full = MockWorker(answer(status=503))
        async with serving(
            full, MockWorker(), file={"decision_log": str(path)}, queue_timeout_secs=5
        ) as served:
            for _ in range(4):
                assert (await served.post(chat()))[0] == 200
            await asyncio.sleep(0.4)  # until it is asked again
            assert (await served.post(chat()))[0] == 200

    run(main)
    verdict = verify(LogReader(path))
    assert verdict.identical, verdict.difference
    assert verdict.events["Refused"] >= 1
