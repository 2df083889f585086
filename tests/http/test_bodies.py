import asyncio
import contextlib
import gc

from fairlead.http.bodies import COUNTED_BYTES
from fairlead.http.server import Exchange, HttpLimits, Response
from tests.http.test_backlog import until
from tests.http.test_http_server import error_of, serving, statuses

MIB = 2**20
HEAD = b"POST /take HTTP/1.1\r\nHost: x\r\n"


class Taker:
    """Takes bodies and keeps them until it is told to answer."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.bodies: list = []

    def __call__(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.bodies.append(exchange.take_body())

    def answer(self, n: int) -> None:
        self.bodies[n] = None
        self.exchanges[n].reply(Response(200, b"taken"))


@contextlib.asynccontextmanager
async def taking(**limits):
    taker = Taker()
    async with serving(HttpLimits(**limits), take=taker) as (server, port):
        yield server, port, taker
    taker.bodies.clear()
    gc.collect()
    assert server.bodies.held == 0


async def send(port: int, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
    return reader, writer


def sized(size: int) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % size


def test_large_bodies_come_in_pieces_and_are_whole(run):
    """By length or in chunks; in one write or in many small ones, whose pieces are put together."""
    body = bytes(range(256)) * 12_000

    async def main():
        async with taking() as (server, port, taker):
            _, one = await send(port, sized(len(body)), body)
            chunks = [
                b"%x\r\n%b\r\n" % (len(p), p) for p in (body[n : n + 100] for n in range(0, len(body), 100))
            ]
            _, two = await send(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
            await until(lambda: len(taker.bodies) == 2)
            assert server.bodies.held == 2 * len(body)
            for large in taker.bodies:
                assert len(large) == len(body)
                assert 1 < len(large.parts) < len(body) / 60_000
                assert b"".join(large.parts) == large.whole() == body
            del large
            taker.answer(0)
            assert server.bodies.held == len(body)
            one.close()
            two.close()

    run(main)


def test_a_body_is_no_longer_counted_when_its_client_leaves(run):
    async def main():
        async with taking() as (server, port, _taker):
            _, writer = await send(port, sized(4 * MIB), b"x" * MIB)
            await until(lambda: server.bodies.held == MIB)
            writer.transport.abort()
            await until(lambda: server.bodies.held == 0)

    run(main)


def test_when_bodies_take_too_much_the_next_large_one_is_refused_and_small_ones_are_not(run):
    async def main():
        async with taking(bodies_total_bytes=4 * MIB) as (server, port, taker):
            holders = [await send(port, sized(MIB), b"x" * MIB) for _ in range(4)]
            await until(lambda: len(taker.bodies) == 4)
            reader, writer = await send(port, sized(MIB), b"x" * MIB)
            got = await reader.read(4096)
            assert statuses(got) == [503]
            assert error_of(got)["code"] == "bodies_full"
            assert b"retry-after: 1\r\n" in got
            assert server.bodies.refused == 1
            assert server.bodies.held == 4 * MIB
            small_reader, small = await send(port, sized(COUNTED_BYTES), b"x" * COUNTED_BYTES)
            await until(lambda: len(taker.bodies) == 5)
            taker.answer(4)
            assert statuses(await small_reader.read(4096)) == [200]
            taker.answer(0)
            again_reader, again = await send(port, sized(MIB // 2), b"x" * (MIB // 2))
            await until(lambda: len(taker.bodies) == 6)
            for _, each in [*holders, (reader, writer), (small_reader, small), (again_reader, again)]:
                each.transport.abort()

    run(main)


def test_of_bodies_still_coming_the_largest_is_refused_for_a_smaller_one(run):
    """Else one who announces much and sends it slowly would keep everybody out."""

    async def main():
        async with taking(bodies_total_bytes=4 * MIB) as (server, port, taker):
            slow_reader, slow = await send(port, sized(8 * MIB), b"x" * 3 * MIB)
            await until(lambda: server.bodies.held == 3 * MIB)
            _, writer = await send(port, sized(2 * MIB), b"x" * 2 * MIB)
            await until(lambda: len(taker.bodies) == 1)
            assert statuses(await slow_reader.read(4096)) == [503]
            assert server.bodies.held == 2 * MIB
            slow.transport.abort()
            writer.transport.abort()

    run(main)


def test_a_refused_body_behind_an_answer_waits_for_that_answer(run):
    async def main():
        async with taking(bodies_total_bytes=120_000) as (server, port, taker):
            first = HEAD + b"Content-Length: 2\r\n\r\nhi"
            reader, writer = await send(port, first + sized(MIB) + b"x" * 100_000)
            await until(lambda: taker.bodies and server.bodies.held == 100_000)
            _, other = await send(port, sized(50_000), b"x" * 50_000)
            await until(lambda: len(taker.bodies) == 2)
            assert server.bodies.refused == 1
            assert server.bodies.held == 50_000
            taker.answer(0)
            got = b""
            while statuses(got) != [200, 503]:
                data = await reader.read(4096)
                assert data
                got += data
            writer.transport.abort()
            other.transport.abort()

    run(main)


def test_a_flood_of_tiny_chunks_is_refused(run):
    """Each costs a call: a megabyte of them would hold everybody for a second."""

    async def main():
        async with taking() as (_, port, _taker):
            reader, writer = await send(
                port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1_000_000
            )
            got = await reader.read(4096)
            assert statuses(got) == [400]
            assert "chunks" in error_of(got)["message"]
            writer.transport.abort()

    run(main)


def test_one_connection_is_read_once_in_a_turn_of_the_loop(run):
    """libuv would read on while there is more, up to 8 MB, before it looks at anybody else."""

    async def main():
        async with taking() as (server, port, taker):
            turns = 0
            _, writer = await send(port, sized(16 * MIB))
            before = 0
            most = 0
            writer.write(b"x" * 16 * MIB)
            while not taker.bodies:
                await asyncio.sleep(0)
                turns += 1
                most = max(most, server.bodies.held - before)
                before = server.bodies.held
            assert most <= 256_000 * 2
            writer.transport.abort()

    run(main)
