"""How long everybody else waits while the gateway takes in one large body.

    python -m benchmarks.gateway.large_bodies [--mib 53] [--rounds 3]

The gateway runs in this process, with a timer that is due every millisecond; clients and engine run in
another one. Prints, for each kind of body, the latest that the timer was, in ms (the best of the rounds,
since a busy machine is late too), and the time of the large request itself.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from time import perf_counter

import uvloop

from fairlead.config import resolve
from fairlead.gateway.app import Gateway

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embedding": "/v1/embeddings"}


def bodies(mib: int) -> dict[str, tuple[str, bytes]]:
    """Return bodies of so many MiB by name, each with the kind of its request."""
    size = mib * 2**20

    def chat(content: bytes, more: bytes = b"") -> bytes:
        return b'{"model":"m","messages":[{"role":"user","content":%b}]%b}' % (content, more)

    def repeated(piece: bytes) -> bytes:
        return piece * (size // len(piece))

    text = b'"%b"' % repeated(b"the quick brown fox jumps over the lazy dog ")
    image = b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}]' % repeated(b"QUJDREVG")
    many = repeated(b'{"role":"user","content":"how are you?"},')
    return {
        "tokens": ("completion", b'{"model":"m","prompt":[%b1]}' % repeated(b"101,7592,2088,128000,")),
        "tokens, streamed": (
            "completion",
            b'{"model":"m","stream":true,"prompt":[%b1]}' % repeated(b"101,7592,2088,128000,"),
        ),
        "a long text": ("chat", chat(text)),
        "a long text, streamed": ("chat", chat(text, b',"stream":true')),
        "... with stream_options": ("chat", chat(text, b',"stream":true,"stream_options":{}')),
        "an image": ("chat", chat(image)),
        "many messages": ("chat", b'{"model":"m","messages":[%b{"role":"user","content":""}]}' % many),
        "many texts": ("embedding", b'{"model":"m","input":[%b""]}' % repeated(b'"how are you?",')),
        "blanks": ("chat", chat(b'"hi"', repeated(b" " * 64))),
        "nested": ("chat", chat(b'"hi"', b',"x":' + repeated(b"["))),
        "wrong at its end": ("chat", chat(text)[:-1]),
        "empty objects": ("chat", chat(b"[%b{}]" % repeated(b"{},"))),
    }


async def main(mib: int, rounds: int) -> None:
    """Measure and print."""
    load = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.gateway.large_bodies", "--load", "--mib", str(mib),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert load.stdin is not None
    assert load.stdout is not None
    engine = int(await load.stdout.readline())
    gateway = Gateway(resolve({"port": 0, "worker_urls": [f"http://127.0.0.1:{engine}"]}))
    port = await gateway.start()
    late = [0.0]
    probe = asyncio.ensure_future(_probe(late))
    print(f"{'body of ' + str(mib) + ' MiB':28} {'status':>6} {'late ms':>8} {'took ms':>8}")
    for name in bodies(0):
        best = (float("inf"), 0.0, 0)
        for _ in range(rounds):
            await asyncio.sleep(0.2)
            late[0] = 0.0
            load.stdin.write(json.dumps([port, name]).encode() + b"\n")
            status, took = json.loads(await load.stdout.readline())
            await asyncio.sleep(0.05)
            best = min(best, (late[0] * 1e3, took * 1e3, status))
        print(f"{name:28} {best[2]:6} {best[0]:8.1f} {best[1]:8.0f}", flush=True)
    probe.cancel()
    load.stdin.close()
    await load.wait()
    await gateway.close()


async def _probe(late: list[float]) -> None:
    while True:
        due = perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late[0] = max(late[0], perf_counter() - due)


async def _load(mib: int) -> None:
    """The other process: an engine that swallows bodies, and the client."""
    server = await asyncio.start_server(_engine, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    kinds = bodies(mib)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        port, name = json.loads(line)
        kind, body = kinds[name]
        began = perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {PATHS[kind]} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        took = perf_counter() - began
        writer.transport.abort()
        print(json.dumps([status, took]), flush=True)


async def _engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, rest = head.partition(b"content-length: ")
            left = int(rest.split(b"\r\n")[0]) if found else 0
            while left:
                left -= len(await reader.read(min(left, 2**20)))
            answer = b'{"data":[{"id":"m"}]}' if b"/v1/models" in head else b"{}"
            kind = b"text/plain" if b"/metrics" in head else b"application/json"
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (kind, len(answer), answer)
            )
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=53)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    uvloop.run(_load(args.mib) if args.load else main(args.mib, args.rounds))
