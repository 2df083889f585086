"""docs/vllm.md, done as it says: its example on real servers, its commands, and what callers may send."""

import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.engines.plugin_load import figures_of
from tests.engines.plugin_servers import MEDIUM, make_model
from tests.engines.servers import LOGS, MODEL, ROOT, Engine

PAGE = (ROOT / "docs" / "vllm.md").read_text()


def commands(start: str) -> list[tuple[str, str]]:
    """Return the command lines in all pages' code blocks that hold ``start``, with the page's name."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            try:
                words = shlex.split(block.replace("\\\n", " "), comments=True)
            except ValueError:  # not commands
                continue
            if start in " ".join(words):
                lines = shlex_lines(block)
                found += [(path.relative_to(ROOT).as_posix(), line) for line in lines if start in line]
    return found


def shlex_lines(block: str) -> list[str]:
    """Split a block at the line ends that are outside of quotes."""
    lines, part = [], ""
    for line in block.replace("\\\n", " ").splitlines():
        part = f"{part}\n{line}" if part else line
        try:
            shlex.split(part, comments=True)
        except ValueError:
            continue
        lines.append(part)
        part = ""
    return lines


@pytest.mark.parametrize(
    ("page", "line"), [*commands("vllm serve "), *commands("-m vllm.entrypoints.openai.api_server ")]
)
def test_vllm_knows_every_option_of_the_pages_commands(page: str, line: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = shlex.split(line, comments=True)
    start = next(i for i, word in enumerate(words) if word in {"serve", "vllm.entrypoints.openai.api_server"})
    options = words[start + 1 :]
    if words[start] == "serve":
        options = ["--model", *options]
    _, unknown = make_arg_parser(FlexibleArgumentParser()).parse_known_args(options)
    assert not unknown, f"{page}: {line}"


def test_there_are_commands_to_check() -> None:
    assert {page for page, _ in commands("vllm serve ")} >= {"docs/vllm.md", "docs/in-front-of-vllm.md"}
    assert [page for page, _ in commands("vllm.entrypoints.openai.api_server ")] == ["docs/vllm.md"]


def test_the_warning_is_the_one_that_the_page_quotes(fair: list[tuple[Engine, Path]]) -> None:
    log = (LOGS / f"{fair[0][0].name}.log").read_text()
    (found,) = {line.partition("Using custom")[2] for line in log.splitlines() if "Using custom" in line}
    told = found.replace("tests.engines.plugin_switch.SwitchScheduler", "fairlead.plugins.vllm.DLPMScheduler")
    assert f"Using custom{told}" in " ".join(PAGE.split())
    assert "fairlead: requests are ordered by dlpm" in log
    assert "fairlead: requests are ordered by dlpm" in PAGE


def test_the_vllm_command_fails_as_the_page_says() -> None:
    """When it does not any more, the page can be simpler."""
    done = subprocess.run(
        [Path(sys.executable).with_name("vllm"), "serve", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    message = done.stderr.splitlines()[-1].removeprefix("importlib.metadata.")
    assert message in PAGE


def test_a_wheel_has_the_plugins(tmp_path: Path) -> None:
    """As on the page, but with the build's own needs from this environment."""
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*make, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (path,) = tmp_path.glob("fairlead-*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert b"[sglang.srt.plugins]\nfairlead = fairlead.plugins.sglang:register" in wheel.read(points)
    assert {"fairlead/plugins/vllm.py", "fairlead/plugins/sglang.py"} <= set(names)


def test_the_example_shows_what_the_page_says() -> None:
    """It starts both servers itself, as for a new user. Clients with 6 and 24 requests open."""
    make_model()
    script = [sys.executable, str(ROOT / "examples" / "vllm_fairness.py"), str(MEDIUM)]
    options = ["--seconds", "20", "--warm-up", "8", "--order", "dlpm:quantum=1000", "--json"]
    ours = [
        "--dtype",
        "float32",
        "--max-model-len",
        "4096",
        "--enforce-eager",
        "--max-num-batched-tokens",
        "768",
    ]
    done = subprocess.run(
        [*script, *options, "--", *ours, "--num-gpu-blocks-override", "300"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"\n{json.dumps(found, indent=1)}")
    assert found["fair"]["order"] == "dlpm:quantum=1000"
    before, after = (found[server]["clients"]["quiet"]["share"] for server in ("stock", "fair"))
    assert before < 0.3, "order of arrival: about its part of the queue, a fifth"
    assert after > 1.5 * before
    assert after > 0.4, "the same service for both, to within two quanta and some requests"
    for figures in found.values():
        assert figures["waiting"] > 12


def post(engine: Engine, path: str, body: bytes, **headers: str) -> int:
    """Return the status that a server answers with."""
    more = {"content-type": "application/json"} | headers
    asked = urllib.request.Request(engine.url + path, body, more)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_pages_request_is_charged_to_its_client(fair: list[tuple[Engine, Path]]) -> None:
    engine, folder = fair[0]
    (line,) = (
        part for part in re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "curl" in part
    )
    words = shlex.split(line)
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "MODEL"
    body |= {"model": MODEL, "max_tokens": 3}
    path = words[1].removeprefix("localhost:8000")
    assert post(engine, path, json.dumps(body).encode()) == 200
    assert figures_of("alice", folder)["admitted"] >= 1


def completion(client: str, **more: Any) -> bytes:
    """Return the body of a short request; ``client`` is JSON text."""
    body = {"model": MODEL, "prompt": [300, 301, 302], "max_tokens": 2} | more
    return json.dumps(body).encode()[:-1] + b', "vllm_xargs": {"client_id": %b}}' % client.encode()


def test_no_client_id_stops_a_server_or_spoils_its_figures(fair: list[tuple[Engine, Path]]) -> None:
    engine, folder = fair[0]
    for client in (
        '["mallory"]',
        "1.5",
        "-1",
        "1e999",
        str(10**30),
        "9" * 5000,
        "true",
        "null",
        "{}",
        '""',
        r'"a\nb\u0000\""',
        r'"\ud800"',
        '"' + "x" * 1_000_000 + '"',
    ):
        assert post(engine, "/v1/completions", completion(client)) < 600, client[:40]
    for more in ({"priority": 10**12}, {"max_tokens": -1}, {"n": 2}, {"session_id": "x" * 100_000}):
        assert post(engine, "/v1/completions", completion('"strange"', **more)) < 600
    assert post(engine, "/v1/completions", completion('"after"')) == 200
    figures_of("after", folder)
    told = json.loads((folder / "figures.json").read_text())
    assert told["ignored"] == 0
    assert max(map(len, told["clients"])) <= 256
    log = (LOGS / f"{engine.name}.log").read_text().splitlines()
    assert not [line for line in log if "Traceback" in line and "EngineCore" in line]


def test_a_session_has_an_account_of_its_own(fair: list[tuple[Engine, Path]]) -> None:
    engine, folder = fair[0]
    before = told(folder, "alice")
    plain = {"model": MODEL, "prompt": [300, 301], "max_tokens": 2}
    assert post(engine, "/v1/completions", json.dumps(plain).encode(), **{"X-Session-ID": "alice"}) == 200
    assert figures_of("session:alice", folder)["admitted"] == 1
    assert told(folder, "alice") == before


def told(folder: Path, client: str) -> int:
    clients = json.loads((folder / "figures.json").read_text())["clients"]
    return int(clients[client]["admitted"]) if client in clients else 0
