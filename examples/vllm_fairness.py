"""Show what the plugin changes: two clients on stock vLLM, then the same two on vLLM with fairlead inside.

    python examples/vllm_fairness.py MODEL [-- OPTIONS OF VLLM]
    python examples/vllm_fairness.py --stock http://127.0.0.1:8000 --fair http://127.0.0.1:8001

The first form starts both servers itself, one after the other, with the Python that runs this script. The
second form measures servers that run already; one of the two is enough.

Client ``noisy`` keeps 24 requests open and client ``quiet`` 6, while the server computes 4 at a time. So both
always have requests waiting, and the server decides who goes next. In order of arrival each client gets its
share of the queue: four fifths and one fifth. With the plugin's ``dlpm`` both get the same service, to within
twice the quantum and a few requests. Service is prompt tokens plus twice the output tokens; no prompt is
cached, because all differ.

What it does not show: a client that keeps only one or two requests open, and so often has none waiting.
``benchmarks/plugins/closed_loop.py`` measures that.

Needs Python 3.11, vLLM, and fairlead beside it. Ends by itself, after two starts and twice ``--seconds``.
"""

import argparse
import contextlib
import http.client
import importlib.metadata
import importlib.util
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

OUTPUT_TOKENS = 32
OUTPUT_PRICE = 2
"""Service units of an output token; a prompt token that is computed is 1."""
WAITING = ("vllm:num_requests_waiting{", "vllm:num_requests_waiting ")
HINTS = (
    ("torchvision::nms does not exist", "pip uninstall -y torchvision torchaudio torchcodec"),
    ("No module named 'fairlead'", "install fairlead into the environment of this Python: docs/vllm.md"),
    ("No module named 'vllm'", "run this script with the Python of vLLM's environment"),
    ("desired CPU memory utilization", "set VLLM_CPU_KVCACHE_SPACE=1, or another number of GB"),
    ("not a valid model identifier", "MODEL is a folder, or a name on a hub that this machine can reach"),
)
"""What is seen at the end of a server's log, and what helps."""


class TroubleError(Exception):
    """Something that the user has to put right. The message says what."""


@dataclass(frozen=True)
class Answer:
    """One request that was answered to its end. Times in seconds."""

    began: float
    first: float
    ended: float
    prompt_tokens: int
    output_tokens: int

    @property
    def service(self) -> int:
        """What it took of the server, in units."""
        return self.prompt_tokens + OUTPUT_PRICE * self.output_tokens


@dataclass
class Seen:
    """What one client saw of one server within the measured time."""

    open: int
    answers: list[Answer] = field(default_factory=list)

    @property
    def service(self) -> int:
        """Units of service in all answers."""
        return sum(answer.service for answer in self.answers)

    def ttft(self, quantile: float) -> float:
        """Return a quantile of the time to first token, in seconds."""
        times = sorted(answer.first - answer.began for answer in self.answers)
        return times[min(int(quantile * len(times)), len(times) - 1)]


class Load:
    """Clients that each keep a number of requests open at one server, until ``stop``."""

    def __init__(self, url: str, model: str, opens: dict[str, int], prompt_words: int) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._model = model
        self._words = prompt_words
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[http.client.HTTPConnection] = set()
        self.failures: list[str] = []
        self.waiting: list[float] = []
        """How many requests waited in the engine, looked at every half second."""
        self.seen = {client: Seen(count) for client, count in opens.items()}
        self._threads = [
            threading.Thread(target=self._keep_asking, args=(client,), daemon=True)
            for client, count in opens.items()
            for _ in range(count)
        ]

    def run(self, warm_up: float, seconds: float) -> dict[str, Seen]:
        """Send for ``warm_up`` + ``seconds``; return the answers that ended within the last ``seconds``."""
        for thread in self._threads:
            thread.start()
        since = time.monotonic() + warm_up
        try:
            while (now := time.monotonic()) < since + seconds and not self.failures:
                time.sleep(min(0.5, since + seconds - now))
                if now >= since:
                    self.waiting.append(waiting_at(self._url.geturl()))
        finally:
            self.stop()
        if self.failures:
            raise TroubleError(f"{self._url.geturl()}: {self.failures[0]}")
        for seen in self.seen.values():
            seen.answers = [answer for answer in seen.answers if answer.ended >= since]
        return self.seen

    def stop(self) -> None:
        """Break off what is under way: vLLM ends the requests of clients that hang up."""
        self._stopped.set()
        with self._lock:
            for connection in self._connections:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _keep_asking(self, client: str) -> None:
        words = random.Random()  # other prompts in each run, so that a server has none of them cached
        while not self._stopped.is_set():
            try:
                answer = self._ask(client, " ".join(words.choices(WORDS, k=self._words)))
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self._stopped.is_set():
                    self.failures.append(f"a request failed: {error or type(error).__name__}")
                return
            if answer is not None:
                self.seen[client].answers.append(answer)

    def _ask(self, client: str, prompt: str) -> Answer | None:
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "vllm_xargs": {"client_id": client},
        }
        connection = connect(self._url, timeout=120)
        with self._lock:
            self._connections.add(connection)
        began, first, usage = time.monotonic(), 0.0, None
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
            )
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"status {response.status}: {response.read(300).decode(errors='replace')}")
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                first = first or (time.monotonic() if event["choices"] else 0.0)
                usage = event.get("usage") or usage
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
        if usage is None:
            return None
        return Answer(began, first, time.monotonic(), usage["prompt_tokens"], usage["completion_tokens"])


WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "no", "ra", "su", "ti", "vo") for b in "lmnrst"]


def connect(url: urllib.parse.SplitResult, timeout: float) -> http.client.HTTPConnection:
    """Return a connection, not opened yet."""
    if url.scheme != "http" or not url.hostname:
        raise TroubleError(f"{url.geturl()}: write the address as http://HOST:PORT")
    return http.client.HTTPConnection(url.hostname, url.port or 80, timeout=timeout)


def get(url: str, path: str) -> str:
    """Return what a server answers to a GET. Raises OSError."""
    connection = connect(urllib.parse.urlsplit(url), timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise OSError(f"{url}{path} answers {response.status}")
        return body.decode()
    except http.client.HTTPException as error:
        raise OSError(f"{url}{path}: {error or type(error).__name__}") from None
    finally:
        connection.close()


def waiting_at(url: str) -> float:
    """Return how many requests wait in the engine, by vLLM's own metrics. Raises OSError."""
    lines = get(url, "/metrics").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(WAITING))


@contextlib.contextmanager
def server(
    name: str, options: Sequence[str], environment: dict[str, str], logs: Path, wait: float
) -> Iterator[str]:
    """Run vLLM for the length of a block; give its address. ``TroubleError`` if it does not come up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = logs / f"{name}.log"
    say(f"starting {name} vLLM (up to {wait:.0f} s; log: {log})")
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603 - the user's own command line
            [*vllm_command(), *options, "--host", "127.0.0.1", "--port", str(port)],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await_server(url, process, log, wait)
        yield url
    finally:
        end(process)


def vllm_command() -> list[str]:
    """Return how vLLM is started: the ``vllm`` command ends with an error in builds for CPUs."""
    if importlib.util.find_spec("vllm") is None:
        raise TroubleError(f"there is no vLLM beside {sys.executable}: use the Python of vLLM's environment")
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:  # a build under another name, such as vllm-cpu
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]


def await_server(url: str, process: "subprocess.Popen[bytes]", log: Path, wait: float) -> None:
    """Wait until the server answers. Raises ``TroubleError`` with the end of its log if it does not."""
    end_of_wait = time.monotonic() + wait
    while True:
        with contextlib.suppress(OSError):
            get(url, "/health")
            return
        ended = process.poll() is not None
        if ended or time.monotonic() > end_of_wait:
            text = log.read_text(errors="replace")
            hints = [f"\nwhat helps: {hint}" for mark, hint in HINTS if mark in text]
            lines = [line for line in text.splitlines() if "Error" in line][-3:] or text.splitlines()[-5:]
            what = "ended by itself" if ended else f"was not up within {wait:.0f} s"
            raise TroubleError("\n".join([f"vLLM {what}; {log} ends with", *lines]) + "".join(hints))
        time.sleep(0.25)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all its processes; after 15 seconds by force."""
    for with_signal, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, with_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def measure(url: str, order: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Send both clients' load to one server; return its figures."""
    try:
        model = json.loads(get(url, "/v1/models"))["data"][0]["id"]
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise TroubleError(f"{url} is not a server that runs: {error}") from None
    opens = {"noisy": asked.noisy, "quiet": asked.quiet}
    say(
        f"sending for {asked.warm_up + asked.seconds:.0f} s:"
        f" noisy keeps {asked.noisy} requests open, quiet {asked.quiet}"
    )
    load = Load(url, model, opens, asked.prompt_words)
    seen = load.run(asked.warm_up, asked.seconds)
    for client, of_client in seen.items():
        if len(of_client.answers) < 5:
            raise TroubleError(
                f"only {len(of_client.answers)} requests of {client} ended in {asked.seconds:g} s, too few to"
                f" compare: give it --seconds {10 * asked.seconds:g}, or a smaller model"
            )
    waiting = statistics.mean(load.waiting)
    if waiting < asked.noisy / 2:
        say(
            f"only {waiting:.0f} requests waited in the engine on average, so its order had little to decide:"
            " the HTTP server is the slower part. Make requests longer (--prompt-words), or the model larger."
        )
    return summary(order, seen) | {"waiting": round(waiting, 1)}


def summary(order: str, seen: dict[str, Seen]) -> dict[str, Any]:
    """Return the figures of one server."""
    total = sum(of_client.service for of_client in seen.values())
    clients = {
        client: {
            "open": of_client.open,
            "answers": len(of_client.answers),
            "service": of_client.service,
            "share": round(of_client.service / total, 4),
            "ttft_p50_s": round(statistics.median(a.first - a.began for a in of_client.answers), 4),
            "ttft_p95_s": round(of_client.ttft(0.95), 4),
        }
        for client, of_client in seen.items()
    }
    return {"order": order, "clients": clients}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures of all servers, one below the other."""
    rows = [("server", "order", "client", "open", "answers", "service", "share", "TTFT p50", "p95")]
    for name, figures in found.items():
        for client, row in figures["clients"].items():
            counts = (str(row["open"]), str(row["answers"]), f"{row['service']:,}", f"{row['share']:.1%}")
            times = (f"{row['ttft_p50_s']:.2f} s", f"{row['ttft_p95_s']:.2f} s")
            rows.append((name, figures["order"], client, *counts, *times))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(texts + numbers))
    return "\n".join(lines)


def say(text: str) -> None:
    """Print to stderr, so that ``--json`` leaves stdout to the figures."""
    print(text, file=sys.stderr, flush=True)


def run(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure what was asked for; return the figures by server."""
    found = {}
    if not asked.model:
        for name, url, order in (("stock", asked.stock, "vLLM's fcfs"), ("fair", asked.fair, "fairlead's")):
            if url:
                found[name] = measure(url, order, asked)
        return found
    if importlib.util.find_spec("fairlead") is None:
        raise TroubleError(
            f"there is no fairlead beside {sys.executable}: docs/vllm.md says how to install it"
        )
    logs = Path(tempfile.mkdtemp(prefix="vllm-fairness-"))
    options = [asked.model, "--max-num-seqs", str(asked.max_num_seqs), *asked.vllm]
    plain = {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}  # GPUs do not read it
    with server("stock", options, plain, logs, asked.start_secs) as url:
        found["stock"] = measure(url, "vLLM's fcfs", asked)
    plugin = ["--scheduler-cls", "fairlead.plugins.vllm.DLPMScheduler"]
    told = {
        "FAIRLEAD_PLUGIN_ORDER": asked.order,
        "FAIRLEAD_PLUGIN_METRICS_FILE": str(logs / "clients.json"),
    }
    with server("fair", [*options, *plugin], plain | told, logs, asked.start_secs) as url:
        found["fair"] = measure(url, asked.order, asked)
    say(f"the plugin's own figures are in {logs / 'clients.json'}")
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; what follows ``--`` is for vLLM."""
    own = list(arguments)
    more: list[str] = []
    if "--" in own:
        more = own[own.index("--") + 1 :]
        own = own[: own.index("--")]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="folder or name of a model, to start both servers with")
    parser.add_argument("--stock", metavar="URL", help="a server without the plugin, which runs already")
    parser.add_argument("--fair", metavar="URL", help="a server with the plugin, which runs already")
    parser.add_argument("--order", default="dlpm:quantum=2000", help="the plugin's policy (%(default)s)")
    parser.add_argument("--seconds", type=positive, default=20.0, help="time to measure (%(default)s)")
    parser.add_argument("--warm-up", type=positive, default=5.0, help="seconds before that (%(default)s)")
    parser.add_argument("--start-secs", type=positive, default=300.0, help="for a start (%(default)s)")
    parser.add_argument(
        "--noisy", type=count, default=24, help="requests that noisy keeps open (%(default)s)"
    )
    parser.add_argument("--quiet", type=count, default=6, help="requests that quiet keeps open (%(default)s)")
    parser.add_argument("--max-num-seqs", type=count, default=4, help="requests in a batch (%(default)s)")
    parser.add_argument(
        "--prompt-words", type=count, default=200, help="made-up words a prompt (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = parser.parse_args(own)
    asked.vllm = more
    if bool(asked.model) == bool(asked.stock or asked.fair):
        parser.error("give a MODEL to start servers with, or --stock and --fair for servers that run")
    if more and not asked.model:
        parser.error("options after -- are for servers that this script starts: give a MODEL")
    if asked.model and asked.quiet <= asked.max_num_seqs:
        parser.error(
            f"--quiet {asked.quiet} is too few: with --max-num-seqs {asked.max_num_seqs} quiet would often"
            " have no request waiting, and there would be no order to see"
        )
    return asked


def positive(text: str) -> float:
    """Read a number of seconds."""
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"takes seconds above 0, not {text}")
    return value


def count(text: str) -> int:
    """Read a whole number from 1 to 1000."""
    value = int(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"takes a number from 1 to 1000, not {text}")
    return value


def main() -> int:
    """Run; return the exit status."""
    asked = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        found = run(asked)
    except TroubleError as error:
        say(f"vllm_fairness: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nvllm_fairness: interrupted; the servers that it started have ended")
        return 130
    print(json.dumps(found) if asked.json else "\n" + table(found))
    if len(found) == 2 and not asked.json:
        before, after = (found[name]["clients"]["quiet"] for name in ("stock", "fair"))
        print(
            f"\nquiet has {asked.quiet} of {asked.quiet + asked.noisy} requests open."
            f" It gets {before['share']:.0%} of the service under"
            f" {found['stock']['order']}, {after['share']:.0%} under {found['fair']['order']};"
            f" median TTFT {before['ttft_p50_s']:.2f} s, then {after['ttft_p50_s']:.2f} s"
        )
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
