"""What is taken for a known head must be read exactly as the parser reads it."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.http import heads
from fairlead.http.connection import ServerConnection
from fairlead.http.heads import HeadCache, RequestHead, with_length
from fairlead.http.server import HttpLimits

HEADS = (
    b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\nx-session-id: s\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nContent-Length: %d\r\nHost: a\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-Length: %d\r\nContent-Length: 4\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-Content-Length: %d\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 00%d\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nContent-Length: 2\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nHost: b\r\n\r\n",
    b"POST /v1/x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n",
    b"GET /length: HTTP/1.1\r\nHost: a\r\n\r\n%d",
    b"\r\nPOST /v1/x HTTP/1.1\r\nHost: a\r\ncontent-length: %d\r\n\r\n",
)


class Transport:
    """Keeps what is written."""

    def __init__(self):
        self.written = b""

    def get_extra_info(self, name):
        return None

    def write(self, data):
        self.written += data

    def close(self):
        self.written += b"|closed"

    def is_closing(self):
        return False

    def can_write_eof(self):
        return False


class Recorder:
    """As much of a server as a connection needs; answers everything at once."""

    def __init__(self, *, remembers):
        self.limits = HttpLimits(body_bytes=40)
        self.draining = False
        self.connections = set()
        self.heads = HeadCache()
        self.seen = []
        if not remembers:
            self.heads.learn = lambda data, head: None

    def run(self, exchange):
        self.seen.append(
            (exchange.method, exchange.target, exchange.headers, exchange.body, exchange.keep_alive)
        )
        exchange.whole(b"HTTP/1.1 200 OK\r\n", b"ok")


def read(messages, *, remembers, monkeypatch):
    loop = SimpleNamespace(time=lambda: 0.0, call_soon=lambda call: call())
    monkeypatch.setattr("asyncio.get_running_loop", lambda: loop)
    server, transport = Recorder(remembers=remembers), Transport()
    connection = ServerConnection(server)
    connection.connection_made(transport)
    for message in messages:
        connection.data_received(message)
    return server.seen, transport.written


@given(
    st.lists(
        st.tuples(st.sampled_from(HEADS), st.integers(0, 45), st.integers(-2, 2)), min_size=2, max_size=12
    )
)
@example([(HEADS[2], 4, 0), (HEADS[2], 7, 0)])  # the first length is not the one that counts
@example([(HEADS[3], 4, 0), (HEADS[3], 5, 0)])
@example([(HEADS[0], 3, 0), (HEADS[0], 41, 0)])
def test_known_heads_change_nothing(picks):
    messages = [head % size + b"y" * max(0, size + odd) for head, size, odd in picks]
    with pytest.MonkeyPatch.context() as patch:
        assert read(messages, remembers=True, monkeypatch=patch) == read(
            messages, remembers=False, monkeypatch=patch
        )


@pytest.mark.parametrize("head", HEADS[:2])
def test_a_head_is_known_whatever_the_length(head):
    cache = HeadCache()
    parsed = RequestHead(b"POST", b"/", [(b"content-length", b"3")], keep_alive=True, http11=True)
    cache.learn(head % 3 + b"abc", parsed)
    assert cache.find(head % 5 + b"hello") == (parsed, b"hello")
    assert cache.find(head % 5 + b"hell") is None
    assert cache.find(head % 5 + b"hello!") is None
    assert cache.find(head % 0) == (parsed, b"")
    assert with_length(parsed.headers, 5) == [(b"content-length", b"5")]


def test_the_cache_is_bounded_and_keeps_what_is_used(monkeypatch):
    monkeypatch.setattr(heads, "HEADS", 4)
    cache = HeadCache()

    def message(number):
        return b"POST /%d HTTP/1.1\r\ncontent-length: 1\r\n\r\nx" % number

    first = RequestHead(b"POST", b"/0", [(b"content-length", b"1")], keep_alive=True, http11=True)
    cache.learn(message(0), first)
    for number in range(1, 50):
        cache.learn(message(number), RequestHead(b"POST", b"/", first.headers, keep_alive=True, http11=True))
        if cache.find(message(0)) is None:
            cache.learn(message(0), RequestHead(b"POST", b"/", first.headers, keep_alive=True, http11=True))
        found = cache.find(message(0))
        assert found is not None
        assert found[0] is first
        assert len(cache) <= 8


def test_long_heads_are_not_kept():
    cache = HeadCache()
    parsed = RequestHead(b"POST", b"/", [(b"content-length", b"1")], keep_alive=True, http11=True)
    cache.learn(b"POST / HTTP/1.1\r\nx: %b\r\ncontent-length: 1\r\n\r\nx" % (b"x" * heads.HEAD_BYTES), parsed)
    assert not len(cache)
