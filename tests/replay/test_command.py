"""The command line of ``fairlead replay``: what is refused, and how it ends."""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from fairlead.cli import main
from fairlead.replay.command import add_arguments, read_keys, read_vocabulary
from fairlead.replay.endpoint import Asking, Endpoint, ReplayError
from fairlead.replay.live import LATE_MS
from fairlead.report.results import load
from tests.replay.fake import Asked, Fake, answer, good, with_fake


def refused(url: str, **asking: Any) -> str:
    """Return what is said when the endpoint is opened and asked for a form of prompt."""

    async def body() -> str:
        endpoint = Endpoint(url, Asking(**asking))
        try:
            await endpoint.open("a")
            await endpoint.prompts("a", 16)
        except ReplayError as error:
            return str(error)
        finally:
            await endpoint.pool.close()
        return ""

    return uvloop.run(body())


def refused_by(models: Any = None, completion: Callable[[Asked], Any] = good, **asking: Any) -> str:
    said: list[str] = []

    async def body() -> None:
        said.append(await asyncio.to_thread(refused, fake.url, **asking))

    fake = Fake(completion, **({} if models is None else {"models": models}))
    with_fake(fake, body)
    return said[0]


def cards(*names: str) -> dict[str, Any]:
    return {"data": [{"id": name} for name in names]}


def test_an_endpoint_that_fits_is_not_refused() -> None:
    assert refused_by() == ""
    assert refused_by(cards("m", "n"), model="n") == ""
    assert refused_by(answer(404, {}), model="any") == ""


@pytest.mark.parametrize(
    ("models", "asking", "said"),
    [
        (cards("m", "n"), {}, "serves m, n: choose one with --model"),
        (cards(), {}, "names no model: name one with --model"),
        (cards("lama"), {"model": "llama"}, "has no model 'llama' (it serves lama); did you mean 'lama'?"),
        (answer(404, {}), {}, "status 404; name the model with --model"),
        (answer(200, b"<html>"), {}, "did not answer with a list of models"),
        (answer(401, {"error": {"message": "who?"}}), {}, "wants an API key (--api-key): who?"),
    ],
)
def test_models_that_cannot_be_used_are_told(models: Any, asking: dict[str, Any], said: str) -> None:
    assert said in refused_by(models, **asking)


@pytest.mark.parametrize(
    ("status", "form", "said"),
    [
        (404, "auto", "/v1/completions: status 404: no"),
        (401, "auto", "wants another API key (--api-key): no"),
        (429, "auto", "status 429: no"),
        (400, "tokens", "does not take token ids: status 400: no"),
        (400, "auto", "/v1/completions: status 400: no"),
        (503, "text", "/v1/completions: status 503: no"),
    ],
)
def test_completions_that_are_refused_are_told(status: int, form: str, said: str) -> None:
    assert said in refused_by(completion=lambda _: answer(status, {"error": {"message": "no"}}), form=form)


def test_ids_that_are_counted_wrong_are_not_taken_for_ids() -> None:
    def as_text(asked: Asked) -> bytes:
        return answer(200, {"choices": [], "usage": {"prompt_tokens": 999, "completion_tokens": 1}})

    assert "64 were counted as 999" in refused_by(completion=as_text, form="tokens")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://h", "http://", "http://h:99999", "http://[::1"])
def test_a_bad_address_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "judge", "--url", url]) == 1
    assert "--url: it" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main(["replay", "judge", "--url", url]) == 1
    assert "cannot connect to 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["nosuch"], "'nosuch' is neither a file nor a generator"),
        (["judge", "--speed", "0"], "--speed is a positive factor"),
        (["judge", "--timeout", "-1"], "--timeout is a positive number"),
        (["judge", "--max-concurrency", "-1"], "--max-concurrency cannot be negative"),
        (["judge", "--vocab", "9-3"], "--vocab '9-3'"),
        (["judge", "--clients", "2", "--api-key", "client-0=k"], "no key for client-1"),
    ],
)
def test_wrong_usage_is_told(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", *flags, "--url", "http://127.0.0.1:1"]) == 2
    assert said in capsys.readouterr().err


def test_keys_are_read_from_flags_and_files(tmp_path: Path) -> None:
    clients = {"ann": 1.0, "bob": 1.0}
    assert read_keys(["sk-1"], clients) == {"*": "sk-1"}
    assert read_keys(["*=sk-1==", "ann=sk=2"], clients) == {"*": "sk-1==", "ann": "sk=2"}
    (tmp_path / "keys").write_text("ann=1\n\n bob=2 \n")
    assert read_keys([f"@{tmp_path / 'keys'}"], clients) == {"ann": "1", "bob": "2"}
    for told, said in (
        (["anne=1"], "no client 'anne' .*did you mean 'ann'"),
        (["ann="], "key of 'ann' is empty"),
        (["ann=a\nb"], "characters that no key has"),
        (["@/no/such"], "No such file"),
    ):
        with pytest.raises(ValueError, match=said):
            read_keys(told, clients)


def test_a_vocabulary_is_two_ids() -> None:
    assert read_vocabulary("0-2047") == (0, 2047)
    for wrong in ("", "5", "5-5", "a-b", "-5-9", "0-4294967296"):
        with pytest.raises(ValueError, match="first and the last id"):
            read_vocabulary(wrong)


async def command(*flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fairlead", "replay", *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_a_whole_replay_leaves_its_result(tmp_path: Path) -> None:
    path = tmp_path / "found" / "out.json"

    async def body() -> None:
        sizes = [(0, 600, 5), (10, 5000, 5), (20, 300, 4)]
        rows = [
            {
                "timestamp": at,
                "input_length": size,
                "output_length": out,
                "hash_ids": [*range(-(-size // 512))],
            }
            for at, size, out in sizes
        ]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        flags = [
            str(tmp_path / "t.jsonl"),
            "--url",
            f"{fake.url}/v1/",
            "--policy",
            "d2lpm",
            "--order",
            "dlpm",
        ]
        process = await command(*flags, "--json", str(path))
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, err
        result = load(path)
        assert (result["kind"], result["policy"], result["order"], result["engine"]) == (
            "replay", "d2lpm", "dlpm", "m",
        )  # fmt: skip
        assert [len(asked.body["prompt"]) for asked in fake.asked] == [600, 300]
        assert result["outcomes"]["done"] == 2
        assert result["total_output_tokens"] == 9
        assert b"left out: 1" in err  # longer than the context that the endpoint states
        assert b"sender's own lateness" in out

    fake = Fake()
    with_fake(fake, body)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_what_there_is(tmp_path: Path, sign: signal.Signals) -> None:
    path = tmp_path / "out.json"

    async def hangs(asked: Asked) -> bytes:
        if asked.body.get("stream"):
            arrived.set()
            await asyncio.sleep(60)
        return good(asked)

    async def body() -> None:
        process = await command("judge", "--url", fake.url, "--json", str(path))
        await asyncio.wait_for(arrived.wait(), 30)
        process.send_signal(sign)
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 130, err
        result = load(path)
        assert result["settings"]["interrupted"] is True
        assert result["outcomes"]["unfinished"] == result["num_prompts"] > 0

    arrived = asyncio.Event()
    fake = Fake(hangs)
    with_fake(fake, body)


def test_ctrl_c_before_the_first_request_leaves_nothing(tmp_path: Path) -> None:
    async def hangs(asked: Asked) -> bytes:
        asking.set()
        await asyncio.sleep(60)
        return good(asked)

    async def body() -> None:
        process = await command("judge", "--url", fake.url, "--json", str(tmp_path / "out.json"))
        await asyncio.wait_for(asking.wait(), 30)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 130
        assert b"interrupted before the first request" in err
        assert not (tmp_path / "out.json").exists()

    asking = asyncio.Event()
    fake = Fake(hangs)
    with_fake(fake, body)


def test_nothing_completed_is_no_success() -> None:
    def full(asked: Asked) -> bytes:
        return answer(429, {"error": {"message": "full"}}) if asked.body.get("stream") else good(asked)

    async def body() -> None:
        process = await command("shared-prefix:rate=1000", "--requests", "5", "--url", fake.url)
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert b"5 requests: status 429: full" in err

    fake = Fake(full)
    with_fake(fake, body)


def test_the_page_names_the_flags_and_figures_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs/replay.md").read_text()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    named = set(re.findall(r"`(--[a-z-]+)", page))
    assert named <= {flag for action in parser._actions for flag in action.option_strings}
    assert {"--api-key", "--client-header", "--speed", "--timeout", "--vocab", "--lengths", "--salt"} <= named
    assert f"`--vocab {parser.get_default('vocab')}`" in page
    assert f"`--timeout` ({parser.get_default('timeout'):g} s)" in page
    assert f"P99 exceeds {LATE_MS:g} ms" in page
