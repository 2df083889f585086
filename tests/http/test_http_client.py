import asyncio
import contextlib
import re

import pytest

from fairlead.http.client import ClientTimeouts, Pool, UpstreamError
from fairlead.http.client_connection import ClientConnection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Upstream:
    """A scripted peer: ``script(number of the connection, reader, writer)`` runs once a connection."""

    def __init__(self, script) -> None:
        self.script = script
        self.connections = 0
        self.requests: list[bytes] = []
        self.tasks: list[asyncio.Task] = []

    async def read(self, reader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        self.requests.append(head + body)
        return head + body

    async def __call__(self, reader, writer) -> None:
        number = self.connections
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(self, number, reader, writer)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def upstream(script, **timeouts):
    peer = Upstream(script)
    server = await asyncio.start_server(peer, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ClientTimeouts(**timeouts))
    try:
        yield pool, peer
    finally:
        await pool.close()
        server.close()
        await asyncio.wait_for(asyncio.gather(*peer.tasks), 5)
        await asyncio.sleep(0.01)


class Notes:
    """A sink that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.parts: list[bytes] = []
        self.over = asyncio.Event()
        self.begun = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def head(self, status, headers) -> None:
        self.heard.append((status, dict(headers)))
        self.begun.set()

    def data(self, body) -> None:
        self.parts.append(body)
        self.heard.append("data")

    def end(self) -> None:
        self.heard.append("end")
        self.over.set()

    def error(self, error) -> None:
        self.heard.append((error.kind, error.answered))
        self.over.set()


async def ask(pool: Pool, body: bytes = b"hi") -> Notes:
    notes = Notes()
    pool.send(pool.request_bytes(b"POST", b"/v1", [(b"x-a", b"b")], body), notes)
    await notes.over.wait()
    return notes


def answering(*answers: bytes, close: bool = False):
    """A peer that gives one answer a request, then stays silent or closes."""

    async def script(peer, number, reader, writer) -> None:
        for answer in answers:
            await peer.read(reader)
            writer.write(answer)
            await writer.drain()
        if not close:
            await reader.read()

    return script


def test_connections_are_kept_and_used_again(run):
    async def main():
        async with upstream(answering(OK, OK, OK)) as (pool, peer):
            for _ in range(3):
                notes = await ask(pool)
                assert notes.heard == [(200, {b"content-length": b"2"}), "data", "end"]
                assert notes.body == b"ok"
            assert peer.connections == 1
            assert peer.requests[0].startswith(b"POST /v1 HTTP/1.1\r\nhost: 127.0.0.1:")
            assert peer.requests[0].endswith(b"\r\nx-a: b\r\ncontent-length: 2\r\n\r\nhi")

    run(main)


class WholeNotes(Notes):
    def whole(self, head, body) -> None:
        self.heard.append((head.status, "whole"))
        self.parts.append(body)
        self.over.set()


def test_an_answer_like_one_before_comes_in_one_piece_to_who_wants_it(run):
    other = OK.replace(b"Length: 2", b"Length: 3") + b"!"
    closing = OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")

    async def main():
        async with upstream(answering(OK, other, other + b"?", b"")) as (pool, peer):
            heard = []
            for _ in range(3):
                notes = WholeNotes()
                pool.send(pool.request_bytes(b"POST", b"/v1", [], b"hi"), notes)
                await notes.over.wait()
                heard.append((notes.heard, notes.body))
            assert heard[0] == ([(200, {b"content-length": b"2"}), "data", "end"], b"ok")
            assert heard[1] == ([(200, "whole")], b"ok!")
            assert heard[2][0][0] == (200, {b"content-length": b"3"})  # with a byte too many: parsed
            assert peer.connections == 1
        async with upstream(answering(closing, closing)) as (pool, _):
            for _ in range(2):
                notes = WholeNotes()
                pool.send(pool.request_bytes(b"POST", b"/v1", [], b"hi"), notes)
                await notes.over.wait()
                assert notes.heard == [
                    (200, {b"content-length": b"2", b"connection": b"close"}),
                    "data",
                    "end",
                ]

    run(main)


def test_an_answer_split_at_every_byte_is_the_same_answer(run):
    answer = CHUNKED + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Trailer: t\r\n\r\n"

    async def script(peer, number, reader, writer) -> None:
        for at in range(1, len(answer)):
            await peer.read(reader)
            writer.write(answer[:at])
            await asyncio.sleep(0.001)
            writer.write(answer[at:])
        await reader.read()

    async def main():
        async with upstream(script) as (pool, peer):
            for _ in range(1, len(answer)):
                notes = await ask(pool)
                assert notes.body == b"hello world"
                assert notes.heard[0] == (200, {b"transfer-encoding": b"chunked"})
                assert notes.heard[-1] == "end"
            assert peer.connections == 1

    run(main)


def test_a_stale_connection_is_retried_once_on_a_new_one(run):
    """The upstream closes as the second request arrives, before a byte of an answer."""

    async def script(peer, number, reader, writer) -> None:
        await peer.read(reader)
        writer.write(OK)
        if number == 0:
            await peer.read(reader)
            return
        await reader.read()

    async def main():
        async with upstream(script) as (pool, peer):
            assert (await ask(pool)).body == b"ok"
            assert (await ask(pool, b"second")).body == b"ok"
            assert pool.stale_retries == 1
            assert peer.connections == 2
            assert [r[-6:] for r in peer.requests[1:]] == [b"second", b"second"]

    run(main)


def test_a_first_use_is_never_retried(run):
    async def script(peer, number, reader, writer) -> None:
        await peer.read(reader)

    async def main():
        async with upstream(script) as (pool, peer):
            assert (await ask(pool)).heard == [("closed", False)]
            assert len(peer.requests) == 1

    run(main)


def test_a_reused_connection_is_not_retried_after_a_byte_of_the_answer(run):
    async def script(peer, number, reader, writer) -> None:
        await peer.read(reader)
        writer.write(OK)
        await peer.read(reader)
        writer.write(b"HTTP/1.1 200")
        await writer.drain()

    async def main():
        async with upstream(script) as (pool, peer):
            await ask(pool)
            assert (await ask(pool)).heard == [("closed", True)]
            assert len(peer.requests) == 2

    run(main)


def test_a_connection_that_the_upstream_closed_is_not_used(run):
    async def script(peer, number, reader, writer) -> None:
        await peer.read(reader)
        writer.write(OK)

    async def main():
        async with upstream(script) as (pool, peer):
            for _ in range(3):
                assert (await ask(pool)).body == b"ok"
                await asyncio.sleep(0.02)
            assert peer.connections == 3
            assert pool.stale_retries == 0

    run(main)


BROKEN = {
    "length and chunked": CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "not HTTP": b"hello\r\n",
    "bad chunk": CHUNKED + b"zz\r\nhi\r\n",
    "unasked upgrade": b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nzz",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X-Header: yyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 3000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_answers_that_are_not_valid_http_are_errors(run, name):
    async def main():
        async with upstream(answering(BROKEN[name])) as (pool, _):
            assert (await ask(pool)).heard[-1] == ("protocol", True)
            assert repr(pool).endswith("busy=0 idle=0>")

    run(main)


def test_a_cut_answer_is_an_error_and_a_whole_one_up_to_the_end_is_not(run):
    async def main():
        async with upstream(answering(CHUNKED + b"5\r\nhello\r\n", close=True)) as (pool, _):
            notes = await ask(pool)
            assert notes.body == b"hello"
            assert notes.heard[-1] == ("closed", True)
        async with upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", close=True)) as (
            pool,
            _,
        ):
            assert (await ask(pool)).heard[-1] == ("closed", True)
        async with upstream(answering(b"HTTP/1.1 200 OK\r\n\r\nhello", close=True)) as (pool, _):
            notes = await ask(pool)
            assert (notes.body, notes.heard[-1]) == (b"hello", "end")

    run(main)


def test_bytes_after_the_answer_end_the_connection_not_the_answer(run):
    """A second answer nobody asked for must never be taken for the next request's."""

    async def main():
        async with upstream(answering(OK + OK, OK)) as (pool, peer):
            assert (await ask(pool)).heard[-1] == "end"
            assert (await ask(pool)).heard[-1] == "end"
            assert peer.connections == 2

        async def late(peer, number, reader, writer) -> None:
            await peer.read(reader)
            writer.write(OK)
            await asyncio.sleep(0.02)
            writer.write(OK)
            await reader.read()

        async with upstream(late) as (pool, peer):
            await ask(pool)
            await asyncio.sleep(0.05)
            await ask(pool)
            assert peer.connections == 2

    run(main)


def test_interim_answers_are_dropped(run):
    async def main():
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"
        async with upstream(answering(interim + OK, OK)) as (pool, peer):
            assert (await ask(pool)).heard == [(200, {b"content-length": b"2"}), "data", "end"]
            assert (await ask(pool)).body == b"ok"
            assert peer.connections == 1

    run(main)


def test_connection_close_is_respected(run):
    async def main():
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        async with upstream(answering(closing, OK)) as (pool, peer):
            await ask(pool)
            await ask(pool)
            assert peer.connections == 2

    run(main)


def test_cancelling_closes_the_connection_and_silences_the_sink(run):
    async def main():
        gone = asyncio.Event()

        async def script(peer, number, reader, writer) -> None:
            await peer.read(reader)
            writer.write(CHUNKED + b"5\r\nhello\r\n")
            await reader.read()
            gone.set()

        async with upstream(script) as (pool, _):
            notes = Notes()
            call = pool.send(pool.request_bytes(b"POST", b"/", [], b"x"), notes)
            await notes.begun.wait()
            call.cancel()
            call.cancel()
            await asyncio.wait_for(gone.wait(), 2)
            assert notes.heard[-1] == "data"
            early = Notes()
            pool.send(pool.request_bytes(b"POST", b"/", [], b"x"), early).cancel()
            await asyncio.sleep(0.05)
            assert early.heard == []
            assert repr(pool).endswith("busy=0 idle=0>")

    run(main)


def test_time_outs_for_the_first_byte_and_for_the_next(run):
    async def script(peer, number, reader, writer) -> None:
        await peer.read(reader)
        if number:
            writer.write(CHUNKED + b"5\r\nhello\r\n")
        await reader.read()

    async def main():
        async with upstream(script, first_byte=0.1, quiet=0.1) as (pool, _):
            assert (await ask(pool)).heard == [("timeout", False)]
            assert (await ask(pool)).heard[-1] == ("timeout", True)

    run(main)


def test_a_paused_answer_does_not_time_out_and_holds_the_upstream_back(run):
    sent = [0]

    async def script(peer, number, reader, writer) -> None:
        await peer.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(200):
            writer.write(b"x" * 100_000)
            sent[0] += 100_000
            await writer.drain()
        await reader.read()

    async def main():
        async with upstream(script, quiet=0.1) as (pool, _):
            notes = Notes()
            call = pool.send(pool.request_bytes(b"POST", b"/", [], b"x"), notes)
            await notes.begun.wait()
            call.pause()
            await asyncio.sleep(0.4)
            assert not notes.over.is_set()
            assert sent[0] < 19_000_000
            call.resume()
            await notes.over.wait()
            assert notes.heard[-1] == "end"
            assert len(notes.body) == 20_000_000

    run(main)


def test_a_connection_that_is_lost_as_it_opens_is_an_error(run, monkeypatch):
    made = ClientConnection.connection_made

    def made_and_lost(connection, transport):
        made(connection, transport)
        connection.connection_lost(None)
        transport.abort()

    monkeypatch.setattr(ClientConnection, "connection_made", made_and_lost)

    async def main():
        async with upstream(answering(OK)) as (pool, _):
            notes = await ask(pool)
            assert notes.heard == [("closed", False)]

    run(main)


def test_nobody_listening_is_a_connect_error(run):
    async def main():
        async with upstream(answering(OK)) as (pool, _):
            pass
        pool = Pool(pool.url)
        assert (await ask(pool)).heard == [("connect", False)]
        with pytest.raises(UpstreamError, match="cannot connect to 127"):
            await pool.fetch(b"GET", b"/health")
        await pool.close()

    run(main)


def test_fetch_gathers_an_answer_and_times_out(run):
    async def main():
        async with upstream(answering(OK)) as (pool, peer):
            assert await pool.fetch(b"GET", b"/health") == (200, [(b"content-length", b"2")], b"ok")
            assert peer.requests[0].startswith(b"GET /health HTTP/1.1\r\n")
            assert b"content-length" not in peer.requests[0]
            with pytest.raises(UpstreamError, match="no complete answer"):
                await pool.fetch(b"GET", b"/health", timeout=0.05)
            assert repr(pool).endswith("busy=0 idle=0>")

    run(main)


def test_addresses_are_checked():
    for url in ("ftp://x", "http://", "localhost:8000"):
        with pytest.raises(ValueError, match="it "):
            Pool(url)
    pool = Pool("http://host:81/base/")
    assert pool.request_bytes(b"GET", b"/v1/models", [], b"").startswith(
        b"GET /base/v1/models HTTP/1.1\r\nhost: host:81\r\n"
    )


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"]
)
def test_fetch_reads_no_more_than_it_is_told(run, head):
    """The connection of an answer without end is closed as soon as there is too much of it."""
    sent = 0

    async def script(peer, number, reader, writer):
        nonlocal sent
        await peer.read(reader)
        writer.write(head)
        while sent < 200_000_000:
            writer.write(b"x" * 100_000)
            sent += 100_000
            await writer.drain()

    async def main():
        async with upstream(script) as (pool, _):
            with pytest.raises(UpstreamError, match="larger than"):
                await pool.fetch(b"GET", b"/metrics", most=1_000_000)

    run(main)
    assert sent < 50_000_000


@pytest.mark.parametrize(
    "length", [b"-1", b"1e400", b"9" * 400, b"18446744073709551616", b"5, 5", b" ", b"0x10"]
)
def test_a_length_that_is_none_is_no_answer(run, length):
    async def script(peer, number, reader, writer):
        await peer.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\nhello" % length)
        await writer.drain()

    async def main():
        async with upstream(script) as (pool, _):
            with pytest.raises(UpstreamError, match="not valid HTTP"):
                await pool.fetch(b"GET", b"/")

    run(main)
