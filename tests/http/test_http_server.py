import asyncio
import contextlib
import json
import re

import pytest

from fairlead.http.server import Exchange, HttpLimits, Response, Router, Server, json_response

HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\n"


class Stream:
    """Answers in parts, driven by the test; notes what it hears of the client."""

    def __init__(self, holds_back: bool = False) -> None:
        self.holds_back = holds_back
        self.exchange: Exchange | None = None
        self.heard: list[str] = []
        self.started = asyncio.Event()
        self.changed = asyncio.Event()

    def __call__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        exchange.listener = self
        self.started.set()

    def _note(self, word: str) -> None:
        self.heard.append(word)
        self.changed.set()

    def disconnected(self) -> None:
        self._note("disconnected")

    def pause(self) -> bool:
        self._note("pause")
        return self.holds_back

    def resume(self) -> None:
        self._note("resume")


def echo(exchange: Exchange) -> Response:
    return Response(200, exchange.method + b" " + exchange.target + b" " + exchange.body, b"text/plain")


async def nap(exchange: Exchange) -> Response:
    await asyncio.sleep(0.05)
    return Response(200, b"slept " + exchange.body, b"text/plain")


async def boom(exchange: Exchange) -> Response:
    raise ValueError("secret detail")


def boom_now(exchange: Exchange) -> Response:
    raise ValueError("secret detail")


@contextlib.asynccontextmanager
async def serving(limits=None, **extra):
    router = Router()
    for method, path, handler in [
        ("POST", "/echo", echo),
        ("GET", "/echo", echo),
        ("POST", "/nap", nap),
        ("POST", "/boom", boom),
        ("POST", "/boom_now", boom_now),
        ("GET", "/json", lambda x: json_response({"ok": True})),
    ]:
        router.add(method, path, handler)
    for name, handler in extra.items():
        router.add("POST", "/" + name, handler)
    server = Server(router, limits)
    port = await server.listen()
    try:
        yield server, port
    finally:
        await server.close()
        assert not server.connections


async def talk(port: int, *parts: bytes, eof: bool = False, pause: float = 0.02) -> bytes:
    """Send the parts, then read until the server closes or is quiet for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for n, part in enumerate(parts):
            if n:
                await asyncio.sleep(pause)
            writer.write(part)
        if eof:
            writer.write_eof()
        got = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while data := await asyncio.wait_for(reader.read(65536), 0.2):
                got += data
        return got
    finally:
        # Not wait_closed(): of a connection that the server has reset, uvloop may never say so.
        writer.transport.abort()


def statuses(raw: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


def error_of(raw: bytes) -> dict:
    return json.loads(raw.partition(b"\r\n\r\n")[2])["error"]


def test_a_request_split_at_every_byte_is_one_request(run):
    """Reads may end anywhere; the request is the same."""
    request = HEAD + b"Content-Length: 5\r\n\r\nhello"

    async def main():
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for at in range(1, len(request)):
                writer.write(request[:at])
                await asyncio.sleep(0.001)
                writer.write(request[at:])
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert await reader.readexactly(16) == b"POST /echo hello"
            writer.close()

    run(main)


def test_chunked_bodies_are_put_together(run):
    async def main():
        async with serving() as (_, port):
            body = b"2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: dropped\r\n\r\n"
            got = await talk(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)
            assert got.endswith(b"POST /echo hello")

    run(main)


BAD = {
    "two equal lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "length list": HEAD + b"Content-Length: 2, 2\r\n\r\nhi",
    "signed length": HEAD + b"Content-Length: +2\r\n\r\nhi",
    "negative length": HEAD + b"Content-Length: -2\r\n\r\nhi",
    "hex length": HEAD + b"Content-Length: 0x2\r\n\r\nhi",
    "huge length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nhi",
    "empty length": HEAD + b"Content-Length: \r\n\r\nhi",
    "length and chunked": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding behind a tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "coding in HTTP/1.0": b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk size signed": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\nhi\r\n0\r\n\r\n",
    "chunk size hex prefix": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "chunk size overflow": HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhi\r\n",
    "chunk longer than said": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhix\r\n0\r\n\r\n",
    "chunk line feed only": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n",
    "chunk extension line feed": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;a\nhi\r\n0\r\n\r\n",
    "length in a trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "space before colon": HEAD + b"Content-Length : 2\r\n\r\nhi",
    "folded header": HEAD + b"X-A: b\r\n c\r\n\r\n",
    "folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"POST /echo HTTP/1.1\nHost: x\n\n",
    "bare line feed in headers": b"POST /echo HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "bare line feed at the end": b"POST /echo HTTP/1.1\r\nHost: x\r\n\n",
    "bare carriage return": b"POST /echo HTTP/1.1\r\nHost: x\rX: y\r\n\r\n",
    "NUL in a value": HEAD + b"X: a\x00b\r\n\r\n",
    "NUL in a name": HEAD + b"X\x00: b\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no name": HEAD + b": b\r\n\r\n",
    "no colon": HEAD + b"foo\r\n\r\n",
    "no host": b"POST /echo HTTP/1.1\r\n\r\n",
    "two hosts": HEAD + b"Host: y\r\n\r\n",
    "not a path": b"GET echo HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "unknown method": b"BREW /echo HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_ambiguous_framing_is_refused_and_the_connection_closed(run, name):
    """One clear error, nothing after it: a smuggled second request gets no answer."""

    async def main():
        async with serving() as (server, port):
            got = await talk(port, BAD[name], b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", eof=True)
            assert len(statuses(got)) == 1
            assert statuses(got)[0] in {400, 501, 505}
            assert b"connection: close\r\n" in got
            assert error_of(got)["message"]
            await asyncio.sleep(0.02)
            assert not server.connections

    run(main)


def test_a_smuggled_request_in_the_same_packet_gets_no_answer(run):
    async def main():
        async with serving() as (_, port):
            attack = HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            got = await talk(port, attack + b"GET /json HTTP/1.1\r\nHost: x\r\n\r\n")
            assert statuses(got) == [400]

    run(main)


@pytest.mark.parametrize("version", [b"2.0", b"0.9"])
def test_other_versions_are_refused(run, version):
    async def main():
        async with serving() as (_, port):
            assert statuses(await talk(port, b"GET /echo HTTP/%b\r\nHost: x\r\n\r\n" % version)) == [505]

    run(main)


def test_pipelined_requests_are_answered_in_order_one_at_a_time(run):
    """The second must wait for a slow first, and an error at the end comes last."""

    async def main():
        async with serving() as (_, port):
            first = b"POST /nap HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
            got = await talk(port, first + HEAD + b"Content-Length: 3\r\n\r\ntwo" + b"BAD BAD\r\n\r\n")
            assert statuses(got) == [200, 200, 400]
            assert got.index(b"slept one") < got.index(b"POST /echo two")

    run(main)


def test_requests_sent_while_an_answer_is_under_way_wait_for_it(run):
    async def main():
        async with serving() as (_, port):
            first = b"POST /nap HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
            got = await talk(
                port, first, HEAD + b"Content-Le", b"ngth: 3\r\n\r\ntwo", HEAD + b"\r\n", pause=0.01
            )
            assert statuses(got) == [200, 200, 200]
            assert got.index(b"slept one") < got.index(b"POST /echo two")

    run(main)


def test_too_many_pipelined_requests_are_refused_after_the_answers(run):
    async def main():
        async with serving(HttpLimits(pipelined=4)) as (_, port):
            got = await talk(port, b"POST /nap HTTP/1.1\r\nHost: x\r\n\r\n" + (HEAD + b"\r\n") * 8)
            assert statuses(got) == [200, 200, 200, 200, 400]

    run(main)


def test_a_flood_behind_a_pending_answer_is_not_read(run):
    """What a client sends ahead is bounded: the socket is simply not read any more."""

    async def main():
        stream = Stream()
        async with serving(stream=stream) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.started.wait()
            one = HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 64 * 2**20:
                    writer.write(one * 64)
                    sent += len(one) * 64
                    await asyncio.wait_for(writer.drain(), 0.2)
            assert sent < 64 * 2**20
            assert stream.exchange is not None
            stream.exchange.reply(Response(200, b"done"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            writer.transport.abort()

    run(main)


def test_expect_continue_is_answered_before_the_body(run):
    async def main():
        async with serving() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hi")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
            assert statuses(await talk(port, HEAD + b"Expect: magic\r\nContent-Length: 2\r\n\r\n")) == [417]

    run(main)


def test_expect_continue_over_the_limit_gets_the_refusal_instead(run):
    async def main():
        async with serving(HttpLimits(body_bytes=10)) as (_, port):
            got = await talk(port, HEAD + b"Expect: 100-continue\r\nContent-Length: 11\r\n\r\n")
            assert statuses(got) == [413]

    run(main)


def test_bodies_over_the_limit_are_refused_with_and_without_a_length(run):
    async def main():
        async with serving(HttpLimits(body_bytes=10)) as (_, port):
            assert statuses(await talk(port, HEAD + b"Content-Length: 11\r\n\r\n" + b"x" * 11)) == [413]
            chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n6\r\naaaaaa\r\n6\r\naaaaaa\r\n0\r\n\r\n"
            got = await talk(port, chunked)
            assert statuses(got) == [413]
            assert "limit of 10 bytes" in error_of(got)["message"]
            assert statuses(await talk(port, HEAD + b"Content-Length: 10\r\n\r\n" + b"x" * 10)) == [200]

    run(main)


def test_a_refused_client_that_is_still_sending_can_read_why(run):
    """Closing at once would reset the connection and destroy the error on its way."""

    async def main():
        async with serving(HttpLimits(body_bytes=1000)) as (_, port):
            body = b"x" * 3_000_000
            assert statuses(await talk(port, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)) == [
                413
            ]

    run(main)


def test_header_abuse_is_refused(run):
    async def main():
        async with serving(HttpLimits(header_bytes=500, header_count=10)) as (_, port):
            assert statuses(await talk(port, HEAD + b"X: y\r\n" * 11 + b"\r\n")) == [431]
            assert statuses(await talk(port, HEAD + b"X: " + b"y" * 600 + b"\r\n\r\n")) == [431]
            assert statuses(await talk(port, b"GET /" + b"y" * 600 + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == [
                414
            ]
            trailers = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: yyyyyyyy\r\n" * 60 + b"\r\n"
            assert statuses(await talk(port, trailers)) == [431]

    run(main)


@pytest.mark.parametrize(
    "parts",
    [
        [b"POST /echo"] + [b"o"] * 40,
        [HEAD] + [b"X: y\r\n"] * 40,
        [HEAD + b"Content-Length: 1000\r\n\r\n"] + [b"x"] * 40,
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n"] + [b"1\r\nx\r\n"] * 40,
    ],
    ids=["request line", "headers", "body", "chunks"],
)
def test_slow_senders_are_timed_out_however_they_trickle(run, parts):
    async def main():
        limits = HttpLimits(header_timeout=0.1, body_timeout=0.1, idle_timeout=5)
        async with serving(limits) as (server, port):
            got = await talk(port, *parts, pause=0.02)
            assert statuses(got) == [408]
            await asyncio.sleep(0.05)
            assert not server.connections

    run(main)


def test_idle_and_silent_connections_are_closed(run):
    async def main():
        async with serving(HttpLimits(header_timeout=0.1, idle_timeout=0.1)) as (server, port):
            assert await talk(port, b"") == b""
            assert statuses(await talk(port, HEAD + b"\r\n")) == [200]
            assert not server.connections

    run(main)


def test_the_handler_hears_at_once_that_the_client_is_gone(run):
    async def main():
        stream = Stream()
        async with serving(stream=stream) as (_, port):
            for begun in (False, True):
                stream.started.clear()
                stream.changed.clear()
                stream.heard.clear()
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /stream HTTP/1.1\r\nHost: x\r\n\r\n")
                await stream.started.wait()
                exchange = stream.exchange
                if begun:
                    exchange.begin(b"HTTP/1.1 200 OK\r\n")
                    exchange.send(b"data: 1\n\n")
                writer.close()
                await asyncio.wait_for(stream.changed.wait(), 2)
                assert stream.heard == ["disconnected"]
                assert exchange.gone
                exchange.send(b"nothing happens")
                exchange.finish()

    run(main)


def test_half_closed_sockets_get_an_error_and_release_the_handler(run):
    async def main():
        stream = Stream()
        async with serving(stream=stream) as (server, port):
            got = await talk(port, b"POST /stream HTTP/1.1\r\nHost: x\r\n\r\n", eof=True)
            assert statuses(got) == [400]
            assert "keep it open" in error_of(got)["message"]
            assert stream.heard == ["disconnected"]
            got = await talk(port, HEAD + b"Content-Length: 10\r\n\r\nabc", eof=True)
            assert statuses(got) == [400]
            assert "middle of the request" in error_of(got)["message"]
            assert await talk(port, b"", eof=True) == b""
            assert not server.connections

    run(main)


def test_a_client_loss_cancels_a_coroutine_handler(run):
    cancelled = []

    async def forever(exchange: Exchange) -> Response:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return Response()

    async def main():
        async with serving(forever=forever) as (_, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /forever HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.05)
            writer.close()
            await asyncio.sleep(0.05)
            assert cancelled == [True]

    run(main)


def test_http10_clients_get_an_answer_that_ends_with_the_connection(run):
    async def main():
        stream = Stream()
        async with serving(stream=stream) as (_, port):
            task = asyncio.ensure_future(talk(port, b"POST /stream HTTP/1.0\r\n\r\n"))
            await stream.started.wait()
            stream.exchange.begin(b"HTTP/1.1 200 OK\r\n")
            stream.exchange.send(b"one")
            stream.exchange.finish(b"two")
            got = await task
            assert got == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nonetwo"

    run(main)


def test_head_is_answered_without_a_body(run):
    async def main():
        async with serving() as (_, port):
            got = await talk(
                port, b"HEAD /json HTTP/1.1\r\nHost: x\r\n\r\nGET /json HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            assert statuses(got) == [200, 200]
            assert got.count(b'{"ok":true}') == 1
            assert got.count(b"content-length: 11\r\n") == 2

    run(main)


def test_absolute_targets_are_reduced_to_their_path(run):
    async def main():
        async with serving() as (_, port):
            assert statuses(await talk(port, b"GET http://x/json?a HTTP/1.1\r\nHost: x\r\n\r\n")) == [200]

    run(main)


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
)
def test_an_offer_of_h2c_is_declined_and_the_request_served(run, framing):
    """Java's HTTP client makes this offer with every first request."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"

    async def main():
        async with serving() as (_, port):
            request = b"PUT /echo HTTP/1.1\r\nHost: x\r\n" + offer + framing
            assert statuses(await talk(port, request)) == [405]
            got = await talk(port, HEAD + offer + framing[:-3], framing[-3:] + HEAD + b"\r\n")
            assert statuses(got) == [200, 200]
            assert b"POST /echo hello" in got

    run(main)


def test_unknown_paths_and_methods_are_clear_errors(run):
    async def main():
        async with serving() as (_, port):
            got = await talk(port, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            assert statuses(got) == [404]
            assert error_of(got)["code"] == "unknown_url"
            got = await talk(port, b"DELETE /echo HTTP/1.1\r\nHost: x\r\n\r\n")
            assert statuses(got) == [405]
            assert b"allow: GET, HEAD, POST\r\n" in got

    run(main)


@pytest.mark.parametrize("path", ["boom", "boom_now"])
def test_a_handler_that_raises_is_a_500_without_details(run, path, caplog):
    async def main():
        async with serving() as (_, port):
            got = await talk(port, b"POST /%b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
            assert statuses(got) == [500]
            assert b"secret" not in got

    run(main)
    assert "secret detail" in caplog.text


def test_draining_ends_present_answers_and_closes_idle_connections(run):
    async def main():
        async with serving() as (server, port):
            idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
            busy = asyncio.ensure_future(talk(port, b"POST /nap HTTP/1.1\r\nHost: x\r\n\r\n"))
            await asyncio.sleep(0.02)
            assert await server.drain(5)
            assert await idle_reader.read() == b""
            got = await busy
            assert statuses(got) == [200]
            assert b"connection: close\r\n" in got
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            idle_writer.close()

    run(main)


def test_draining_gives_up_after_its_time(run):
    async def main():
        stream = Stream()
        async with serving(stream=stream) as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await stream.started.wait()
            assert not await server.drain(0.05)
            await server.close()
            assert stream.heard == ["disconnected"]
            writer.close()

    run(main)


def test_an_answer_shorter_than_announced_is_cut_not_padded(run):
    async def main():
        stream = Stream()
        async with serving(stream=stream) as (_, port):
            task = asyncio.ensure_future(talk(port, b"POST /stream HTTP/1.1\r\nHost: x\r\n\r\n"))
            await stream.started.wait()
            stream.exchange.begin(b"HTTP/1.1 200 OK\r\n", 10)
            stream.exchange.finish(b"abc")
            got = await task
            assert not got.endswith(b"abc\r\n")
            with pytest.raises(RuntimeError):
                stream.exchange.begin(b"HTTP/1.1 200 OK\r\n")

    run(main)
