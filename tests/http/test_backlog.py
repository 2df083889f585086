import asyncio
import contextlib
import socket

from fairlead.http.backlog import PIECE_BYTES
from fairlead.http.connection import UNSENT_BYTES
from fairlead.http.server import Exchange, HttpLimits, Response
from tests.http.test_http_server import Stream, serving

ASK = b"POST /stream HTTP/1.1\r\nHost: x\r\n\r\n"
PART = bytes(range(256)) * 400
MIB = 2**20
SLACK = UNSENT_BYTES + 2 * PIECE_BYTES + 2 * len(PART)
"""What a connection may hold beyond a bound: one more part, and what the transport took."""


class Streams:
    """One ``Stream`` for each request."""

    def __init__(self) -> None:
        self.all: list[Stream] = []

    def __call__(self, exchange: Exchange) -> None:
        stream = Stream()
        self.all.append(stream)
        stream(exchange)
        exchange.begin(b"HTTP/1.1 200 OK\r\n")


class Reader:
    """A client that reads only when told, through a small window."""

    def __init__(self, port: int, *asks: bytes) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.sock.sendall(b"".join(asks or (ASK,)))
        self.got = bytearray()

    async def read(self, until: bytes, at_a_time: int = MIB, pause: float = 0.0) -> bytes:
        """Read until ``until`` ends what came, or the connection does; return the body."""
        loop = asyncio.get_running_loop()
        while not self.got.endswith(until):
            data = await loop.sock_recv(self.sock, at_a_time)
            if not data:
                break
            self.got += data
            await asyncio.sleep(pause)
        return bytes(self.got)

    def close(self) -> None:
        self.sock.close()


def dechunked(raw: bytes) -> bytes:
    """Return the body of one chunked answer."""
    at, parts = raw.index(b"\r\n\r\n") + 4, []
    while at < len(raw):
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end], 16)
        parts.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


async def until(condition, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds, none of which has an event
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def streaming(**limits):
    streams = Streams()
    async with serving(HttpLimits(**limits), stream=streams) as (server, port):
        yield server, port, streams
        await asyncio.sleep(0.02)
    assert server.backlogs.waiting == 0


def test_a_slow_but_steady_reader_gets_every_byte(run):
    """It is far behind for all of the answer, which waits here meanwhile and holds nobody up."""

    async def main():
        async with streaming(answer_buffer_bytes=8 * MIB) as (server, port, streams):
            reader = Reader(port)
            await until(lambda: streams.all)
            exchange = streams.all[0].exchange
            sent = bytearray()
            for n in range(60):
                part = b"%d," % n + PART
                exchange.send(part)
                sent += part
                await asyncio.sleep(0)
            assert exchange.paused
            assert server.backlogs.waiting > 4 * MIB
            exchange.finish(b"end")
            got = await reader.read(b"0\r\n\r\n", at_a_time=30_000, pause=0.0005)
            assert dechunked(got) == bytes(sent) + b"end"
            assert streams.all[0].heard == []
            assert server.backlogs.waiting == 0
            reader.close()

    run(main)


def test_the_next_answer_waits_behind_the_one_before_and_the_connection_closes_after_both(run):
    async def main():
        async with streaming() as (server, port, streams):
            reader = Reader(port, ASK, b"GET /json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await until(lambda: streams.all)
            exchange = streams.all[0].exchange
            for _ in range(20):
                exchange.send(PART)
            exchange.finish()
            await asyncio.sleep(0.05)
            assert server.connections
            got = await reader.read(b"never")
            first, _, second = got.partition(b"\r\n0\r\n\r\n")
            assert dechunked(first + b"\r\n") == PART * 20
            assert second.endswith(b'{"ok":true}')
            await until(lambda: not server.connections)
            reader.close()

    run(main)


def test_who_falls_behind_the_bound_is_cut_and_its_handler_told_why(run):
    async def main():
        async with streaming(answer_buffer_bytes=MIB) as (server, port, streams):
            reader = Reader(port)
            await until(lambda: streams.all)
            stream = streams.all[0]
            most = 0
            while stream.heard != ["pause", "disconnected"]:
                stream.exchange.send(PART)
                most = max(most, server.backlogs.waiting)
                await asyncio.sleep(0)
            assert stream.exchange.cut == "behind"
            assert stream.exchange.gone
            assert MIB < most < MIB + SLACK
            assert server.backlogs.cut == {"behind": 1, "total": 0, "stalled": 0}
            assert server.backlogs.waiting == 0
            reader.close()

    run(main)


def test_a_source_that_can_wait_is_held_back_in_place_of_the_cut(run):
    async def main():
        async with streaming(answer_buffer_bytes=MIB) as (server, port, streams):
            reader = Reader(port)
            await until(lambda: streams.all)
            stream = streams.all[0]
            stream.holds_back = True
            sent = 0
            while not stream.heard:
                stream.exchange.send(PART)
                sent += 1
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert stream.heard == ["pause"]
            reading = asyncio.ensure_future(reader.read(b"0\r\n\r\n"))
            await until(lambda: stream.heard == ["pause", "resume"])
            stream.exchange.finish()
            assert dechunked(await reading) == PART * sent
            assert sum(server.backlogs.cut.values()) == 0
            reader.close()

    run(main)


def test_when_all_together_are_too_much_the_furthest_behind_is_cut_first(run):
    async def main():
        async with streaming(answer_buffer_total_bytes=6 * MIB) as (server, port, streams):
            readers = [Reader(port) for _ in range(4)]
            await until(lambda: len(streams.all) == 4)
            exchanges = [stream.exchange for stream in streams.all]
            most = 0
            for _ in range(100):
                # The third gets thrice as much as the others.
                for exchange in [*exchanges, exchanges[2], exchanges[2]]:
                    exchange.send(PART)
                await asyncio.sleep(0)
                most = max(most, server.backlogs.waiting)
                if exchanges[2].gone:
                    break
            assert [exchange.cut for exchange in exchanges] == ["", "", "total", ""]
            assert most < 6 * MIB + 6 * SLACK
            assert server.backlogs.cut["total"] == 1
            for exchange in exchanges:
                exchange.abort()
            for reader in readers:
                reader.close()

    run(main)


def test_at_its_time_a_reader_that_took_nothing_is_cut_and_one_that_took_little_is_not(run):
    async def main():
        async with streaming() as (server, port, streams):
            readers = [Reader(port), Reader(port)]
            await until(lambda: len(streams.all) == 2)
            for stream in streams.all:
                for _ in range(30):
                    stream.exchange.send(PART)
            ours = {reader.sock.getsockname()[1]: reader for reader in readers}
            of = {}
            for stream in streams.all:
                connection = stream.exchange._connection
                of[ours[connection._transport.get_extra_info("peername")[1]]] = stream.exchange, connection
            (dead, dead_connection), (steady, connection) = of[readers[0]], of[readers[1]]
            loop = asyncio.get_running_loop()
            waiting = connection._backlog.in_transport
            while connection._transport.get_write_buffer_size() >= waiting:
                readers[1].got += await loop.sock_recv(readers[1].sock, 30_000)
            connection.timed_out()
            assert connection.deadline > loop.time()
            async with asyncio.timeout(10):
                while not dead.gone:  # the kernel may have taken a little after the transport was full
                    dead_connection.timed_out()
                    await asyncio.sleep(0)
            assert dead.cut == "stalled"
            assert not steady.gone
            steady.finish(b"end")
            assert dechunked(await readers[1].read(b"0\r\n\r\n")) == PART * 30 + b"end"
            assert server.backlogs.cut == {"behind": 0, "total": 0, "stalled": 1}
            for reader in readers:
                reader.close()

    run(main)


def test_a_client_that_asks_and_asks_and_never_reads_gets_no_more_answers(run):
    """Its requests wait for it to take the answers before, and it is cut when it does not."""
    answered = [0]

    def big(_: Exchange) -> Response:
        answered[0] += 1
        return Response(200, PART)

    async def main():
        async with serving(HttpLimits(write_timeout=0.3, pipelined=1000), big=big) as (server, port):
            reader = Reader(port, *[b"POST /big HTTP/1.1\r\nHost: x\r\n\r\n"] * 500)
            await until(lambda: server.backlogs.waiting)
            assert server.backlogs.waiting < 2 * len(PART)
            before = answered[0]
            await until(lambda: server.backlogs.cut["stalled"])
            assert answered[0] == before < 100
            reader.close()
            reader = Reader(port, *[b"POST /big HTTP/1.1\r\nHost: x\r\n\r\n"] * 300)
            got = 0
            while got < 300 * len(PART):
                got += len(await asyncio.get_running_loop().sock_recv(reader.sock, MIB))
            reader.close()

    run(main)


def test_a_client_that_closes_for_sending_after_the_answer_still_gets_all_of_it(run):
    async def main():
        async with streaming() as (server, port, streams):
            reader = Reader(port)
            await until(lambda: streams.all)
            for _ in range(20):
                streams.all[0].exchange.send(PART)
            streams.all[0].exchange.finish()
            assert server.backlogs.waiting > MIB
            reader.sock.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.05)
            assert dechunked(await reader.read(b"never")) == PART * 20
            reader.close()

    run(main)


def test_what_is_left_to_a_client_that_never_reads_does_not_outlive_its_time(run):
    """The answer is over and fits the transport: nobody is told, and the connection must still go."""

    async def main():
        async with streaming(write_timeout=0.2, idle_timeout=0.2) as (server, port, streams):
            reader = Reader(port)
            await until(lambda: streams.all)
            exchange = streams.all[0].exchange
            while not exchange.paused and server.backlogs.waiting == 0:
                exchange.send(b"x" * 30_000)
                await asyncio.sleep(0.002)
            exchange.finish()
            await until(lambda: not server.connections)
            reader.close()

    run(main)


def test_many_small_parts_wait_as_few_large_pieces(run):
    async def main():
        async with streaming() as (server, port, streams):
            reader = Reader(port)
            await until(lambda: streams.all)
            exchange = streams.all[0].exchange
            while not exchange.paused:
                exchange.send(PART)
                await asyncio.sleep(0)
            (connection,) = server.connections
            before = len(connection._backlog._pieces)
            for _ in range(10_000):
                exchange.send(b"token")
            assert len(connection._backlog._pieces) - before <= 3
            exchange.abort()
            reader.close()

    run(main)
