"""What one request costs the gateway in Python, without sockets: both ends are fake transports.

    python -m benchmarks.gateway.hot_path [--policy d2lpm] [--order dlpm] [--requests 5000]
        [--decision-log FILE] [--profile]

Prints microseconds of CPU a request, plain and as a stream of 100 chunks, best of several rounds; what
the kernel and the event loop add is measured by a load generator, not here.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import time

import uvloop

from fairlead import config as configuration
from fairlead.core import events as ev
from fairlead.core.model import Limits
from fairlead.gateway.app import Gateway
from fairlead.http.client_connection import ClientConnection
from fairlead.http.connection import ServerConnection

WORDS = ["kato", "mira", "shuel", "dorven", "ber", "lo", "sta", "ne", "qui", "an"]
ROUNDS = 60
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"tiny","choices":'
    b'[{"index":0,"delta":{"content":" tok"},"finish_reason":null,"logprobs":null}]}\n\n'
)
USAGE = b'"usage":{"prompt_tokens":500,"completion_tokens":100,"total_tokens":600}'


class FakeTransport:
    """Counts what is written to it."""

    def __init__(self) -> None:
        self.written = 0

    def get_extra_info(self, name: str) -> object:
        """Name the peer."""
        return ("127.0.0.1", 1) if name == "peername" else None

    def write(self, data: bytes) -> None:
        """Count."""
        self.written += len(data)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def abort(self) -> None:
        """Do nothing."""

    close = abort


def request(session: int, *, stream: bool) -> bytes:
    pick = random.Random(session)
    text = " ".join(pick.choice(WORDS) for _ in range(400))
    messages = [{"role": "system", "content": text}, {"role": "user", "content": f"session {session}"}]
    fields = {"model": "tiny", "stream": stream, "max_tokens": 100, "temperature": 0, "messages": messages}
    body = json.dumps(fields, separators=(",", ":")).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer testkey\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def answers(*, stream: bool) -> list[bytes]:
    """Return what the worker sends, one item a read."""
    if not stream:
        text = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
        body = text + b'"content":"%b"}}],%b}' % (b"hello " * 40, USAGE)
        return [
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        ]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    last = b'data: {"id":"c","choices":[],%b}\n\ndata: [DONE]\n\n' % USAGE
    return [head + chunked(CHUNK), *[chunked(CHUNK)] * 99, chunked(last) + b"0\r\n\r\n"]


async def measure(gateway: Gateway, requests: list[bytes], answer: list[bytes], count: int) -> float:
    """Return microseconds a request, sent one after the other."""
    server = ServerConnection(gateway.server)
    server.connection_made(FakeTransport())  # type: ignore[arg-type] # as much of one as is used
    flows = gateway.flows
    began = time.process_time()
    for number in range(count):
        server.data_received(requests[number % len(requests)])
        (flow,) = flows.values()
        assert flow.call is not None
        connection = flow.call.connection
        assert connection is not None
        for part in answer:
            connection.data_received(part)
    used = time.process_time() - began
    server.connection_lost(None)
    return used / count * 1e6


async def prepared(policy: str, order: str, decision_log: str) -> Gateway:
    """Return a gateway with two workers whose connections are fake."""
    flags = {
        "policy": policy,
        "order": order,
        "api_key": ["bench=testkey"],
        "worker_urls": ["http://127.0.0.1:1", "http://127.0.0.1:2"],
        "decision_log": decision_log,
    }
    gateway = Gateway(configuration.resolve({}, {}, flags))
    for worker in gateway.workers:
        gateway.scheduler.step(ev.WorkerUp(gateway.scheduler.now_us(), worker.id, Limits()))
        connection = ClientConnection(worker.pool)
        connection.connection_made(FakeTransport())  # type: ignore[arg-type] # as above
        worker.pool.adopt(connection)
    return gateway


async def main_async(args: argparse.Namespace) -> None:
    gateway = await prepared(args.policy, args.order, args.decision_log)
    for stream, count in ((False, args.requests), (True, max(1, args.requests // 10))):
        requests = [request(session, stream=stream) for session in range(64)]
        answer = answers(stream=stream)
        await measure(gateway, requests, answer, 10 * count)
        best = min([await measure(gateway, requests, answer, count) for _ in range(ROUNDS)])
        print(f"{'stream of 100 chunks' if stream else 'plain':>22}: {best:8.1f} us CPU")
        if args.profile:
            profile = cProfile.Profile()
            profile.enable()
            await measure(gateway, requests, answer, count)
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    await gateway.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="d2lpm")
    parser.add_argument("--order", default="dlpm")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--decision-log", default="", metavar="FILE", help="write one, to see what it costs")
    parser.add_argument("--profile", action="store_true", help="and say where the time goes")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main_async(parser.parse_args()))


if __name__ == "__main__":
    main()
