"""Real engines and the gateway as processes of the tests: started, awaited, killed, shown when they fail."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import openai

from fairlead.demo.processes import free_ports

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-engines"
MODEL_FOLDER = VENV / "models" / "tiny"
LOGS = VENV / "logs"
MODEL = "tiny"
BLOCK_TOKENS = 32
"""The smallest block that vLLM has on a CPU."""
KV_BLOCKS = 300
"""Few, so that the tests see blocks evicted."""
SEQUENCES = 4
"""Most requests in an engine's batch; few, so that requests have to wait for each other."""

KEYS = {"alice": "key-of-alice", "bob": "key-of-bob", "mallory": "key-of-mallory"}


def get(url: str, timeout: float = 5.0) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read()


def answers(url: str) -> bool:
    """Say whether there is a good answer to a GET."""
    try:
        get(url)
    except (OSError, urllib.error.URLError):
        return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until ``condition`` holds; AssertionError after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


class Server:
    """A process with a log. ``stop`` ends it and all of its children."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], logs: Path = LOGS) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self._command = command
        self._environment = os.environ | environment
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: dict[str, openai.OpenAI] = {}

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, url: str, seconds: float) -> None:
        """Wait for a good answer; an AssertionError shows the end of the log."""
        try:
            wait_for(lambda: answers(url) or not self.runs, seconds, f"{self.name} at {url}")
            assert self.runs, f"{self.name} ended by itself"
        except AssertionError as error:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
            raise AssertionError(f"{error}\n--- end of {self.log}\n{tail}") from None

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        """End it; after 15 seconds by force. Its children do not survive."""
        while self._clients:
            self._clients.popitem()[1].close()
        if self._process is None:
            return
        group = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, with_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _client(self, url: str, key: str) -> openai.OpenAI:
        """Return a client that does not retry by itself; one a key, since each keeps connections."""
        if key not in self._clients:
            self._clients[key] = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
        return self._clients[key]

    def kill(self) -> None:
        """End it as a crash would."""
        self.stop(signal.SIGKILL)


class Engine(Server):
    """A vLLM server on the CPU. ``more`` are further options, or others in place of those below."""

    def __init__(
        self, number: int, more: dict[str, str] | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.port, self.events_port, self.replay_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events_port}",
            "replay_endpoint": f"tcp://127.0.0.1:{self.replay_port}",
            "topic": f"kv@{number}@{MODEL}",
        }
        options = {
            "--model": str(MODEL_FOLDER),
            "--served-model-name": MODEL,
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--max-model-len": "4096",
            "--max-num-seqs": str(SEQUENCES),
            "--block-size": str(BLOCK_TOKENS),
            "--num-gpu-blocks-override": str(KV_BLOCKS),
            "--kv-cache-memory-bytes": str(64 * 2**20),
            "--kv-events-config": json.dumps(events),
        } | (more or {})
        flags = ["--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details"]
        # The module, since the `vllm` command does not start in the CPU build.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
        for name, value in options.items():
            command += [name, value]
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two engines share the cores
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        super().__init__(f"engine-{number}", command, settings | (environment or {}))

    def wait_up(self) -> None:
        """Wait until it serves, and has served: the first requests of a fresh engine take seconds."""
        self.wait_ready(self.url + "/health", 240)
        for _ in range(3):
            self.client().completions.create(model=MODEL, prompt="warm up", max_tokens=4)

    def client(self) -> openai.OpenAI:
        return self._client(self.url, "none")

    def empty_cache(self) -> None:
        """Forget all prefixes; for servers in vLLM's development mode, with nothing under way."""
        asked = urllib.request.Request(f"{self.url}/reset_prefix_cache", method="POST")
        with urllib.request.urlopen(asked, timeout=10):
            pass


class Gateway(Server):
    """``fairlead serve`` in front of engines, with three clients that it knows by their keys."""

    def __init__(self, name: str, engines: list[Engine], *options: str) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "fairlead", "serve", "--port", str(self.port)]
        command += ["--worker-urls", *(engine.url for engine in engines)]
        command += ["--api-key", *(f"{client}={key}" for client, key in KEYS.items())]
        command += ["--health-interval-secs", "0.5", "--load-interval-secs", "0.5", *options]
        super().__init__(name, command, {})

    def wait_up(self) -> None:
        self.wait_ready(self.url + "/ready", 30)

    def client(self, name: str) -> openai.OpenAI:
        """Return a client by its name in ``KEYS``; a name that is not there has a key that nobody knows."""
        return self._client(self.url, KEYS.get(name, "unknown"))

    def metric(self, family: str) -> dict[str, float]:
        """Return the samples of one family of ``/metrics`` by the text of their labels."""
        found = {}
        for line in get(self.url + "/metrics").decode().splitlines():
            if line.startswith((family + " ", family + "{")):
                labels, value = line[len(family) :].rsplit(" ", 1)
                found[labels] = float(value)
        return found

    def of_worker(self, family: str, engine: Engine) -> float:
        """Return the sample of one worker."""
        return self.metric(family)[f'{{worker="{engine.url}"}}']


@contextlib.contextmanager
def gateway(name: str, engines: list[Engine], *options: str) -> Iterator[Gateway]:
    """Run a gateway for the length of a block."""
    one = Gateway(name, engines, *options)
    one.start()
    try:
        one.wait_up()
        yield one
        assert one.runs, f"the gateway ended by itself; see {one.log}"
        trouble = [line for line in one.log.read_text().splitlines() if "Traceback" in line]
        assert not trouble, f"the gateway's log {one.log} has a traceback"
    finally:
        one.stop()
