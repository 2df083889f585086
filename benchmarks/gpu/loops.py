"""Closed loops against one server: each client keeps requests open, and sends the next on an answer."""

import contextlib
import http.client
import json
import math
import random
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fairlead.core.model import Costs

TIMEOUT_S = 120


class _Loops:
    """What the threads share."""

    def __init__(self, url: str, model: str, prompt_tokens: int, output_tokens: int, salt: str) -> None:
        self.host = urlsplit(url).netloc
        self.model, self.salt = model, salt
        self.prompt_tokens, self.output_tokens = prompt_tokens, output_tokens
        self.end = math.inf
        self.lock = threading.Lock()
        self.answers: dict[str, list[tuple[float, int]]] = {}
        """By client: seconds from sending to the end, and service."""
        self.failures: list[str] = []
        self.connections: list[http.client.HTTPConnection] = []

    def hang_up(self) -> None:
        """Close all connections, so that the server drops what is under way."""
        with self.lock:
            for connection in self.connections:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def run(self, client: str, lane: int) -> None:
        """Keep one request of a client open until the end."""
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT_S)
        with self.lock:
            self.connections.append(connection)
        number = 0
        try:
            while time.monotonic() < self.end:
                number += 1
                began = time.monotonic()
                service = self.ask(connection, client, f"{self.salt} {client} {lane} {number}")
                ended = time.monotonic()
                if ended < self.end:
                    with self.lock:
                        self.answers[client].append((ended - began, service))
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            if time.monotonic() < self.end:
                with self.lock:
                    self.failures.append(f"{client}: {error!r}")
        finally:
            connection.close()

    def ask(self, connection: http.client.HTTPConnection, client: str, seed: str) -> int:
        """Send a request of fresh tokens; return its service, in tokens of prompt work."""
        tokens = random.Random(seed).choices(range(2, 2000), k=self.prompt_tokens)
        body = {
            "model": self.model,
            "prompt": tokens,
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "vllm_xargs": {"client_id": client},
        }
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise ValueError(f"{answer.status}: {text[:200]!r}")
        usage = json.loads(text)["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        costs = Costs()
        return int(
            costs.extend * (usage["prompt_tokens"] - cached) + costs.output * usage["completion_tokens"]
        )


def seconds_of_batch(url: str, model: str, count: int, prompt: int, output: int, salt: str) -> float:
    """Send ``count`` equal requests at once; return the seconds until all ended. ValueError if one failed."""
    shared = _Loops(url, model, prompt, output, salt)
    ready = threading.Barrier(count + 1)

    def one(number: int) -> None:
        connection = http.client.HTTPConnection(shared.host, timeout=TIMEOUT_S)
        try:
            connection.connect()
            ready.wait(TIMEOUT_S)
            shared.ask(connection, "batch", f"{salt} {number}")
        except (OSError, http.client.HTTPException, RuntimeError, ValueError, KeyError) as error:
            shared.failures.append(repr(error))
            ready.abort()
        finally:
            connection.close()

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait(TIMEOUT_S)
    began = time.monotonic()
    for thread in threads:
        thread.join(TIMEOUT_S)
    if shared.failures:
        raise ValueError(f"{len(shared.failures)} of {count} requests failed: {shared.failures[0]}")
    return time.monotonic() - began


def percentile(values: list[float], share: float) -> float | None:
    """Return the value below which ``share`` of the sorted ``values`` lie; None if there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


def closed_loops(
    url: str,
    model: str,
    clients: Mapping[str, int],
    *,
    seconds: float,
    prompt_tokens: int,
    output_tokens: int,
    salt: str,
) -> dict[str, Any]:
    """Let ``clients`` keep as many requests open as they are given, for ``seconds``; then hang up.

    Counts what was answered within that time. Raises ValueError if a request failed.
    """
    shared = _Loops(url, model, prompt_tokens, output_tokens, salt)
    shared.answers = {client: [] for client in clients}
    lanes = [
        threading.Thread(target=shared.run, args=(client, lane), daemon=True)
        for client, count in clients.items()
        for lane in range(count)
    ]
    shared.end = time.monotonic() + seconds
    for lane in lanes:
        lane.start()
    while time.monotonic() < shared.end and not shared.failures:
        time.sleep(0.05)
    shared.hang_up()
    for lane in lanes:
        lane.join(TIMEOUT_S)
    if shared.failures:
        raise ValueError(f"{len(shared.failures)} of {len(lanes)} loops failed: {shared.failures[0]}")
    found = {}
    for client, answers in shared.answers.items():
        waits = sorted(wait for wait, _ in answers)
        found[client] = {
            "open": clients[client],
            "answers": len(answers),
            "service": sum(service for _, service in answers),
            "mean_e2e_s": sum(waits) / len(waits) if waits else None,
            "p50_e2e_s": percentile(waits, 0.5),
            "p99_e2e_s": percentile(waits, 0.99),
        }
    return {
        "seconds": seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "clients": found,
    }
