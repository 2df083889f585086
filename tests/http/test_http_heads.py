"""What is taken for a known head must be read exactly as the parser reads it."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.http.connection import ServerConnection
from fairlead.http.heads import RequestHead, remember, with_length
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

    def __init__(self):
        self.limits = HttpLimits(body_bytes=40)
        self.draining = False
        self.connections = set()
        self.seen = []
        self.request_heads = []

    def run(self, exchange):
        self.request_heads.append(exchange.request_head)
        self.seen.append(
            (exchange.method, exchange.target, exchange.headers, exchange.body, exchange.keep_alive)
        )
        exchange.whole(b"HTTP/1.1 200 OK\r\n", b"ok")


def read(messages, *, remembers, monkeypatch):
    loop = SimpleNamespace(time=lambda: 0.0, call_soon=lambda call: call())
    monkeypatch.setattr("asyncio.get_running_loop", lambda: loop)
    if not remembers:
        monkeypatch.setattr("fairlead.http.connection.remember", lambda data, head: None)
    server, transport = Recorder(), Transport()
    connection = ServerConnection(server)
    connection.connection_made(transport)
    for message in messages:
        connection.data_received(message)
    return server, transport.written


@given(
    st.lists(
        st.tuples(st.sampled_from(HEADS), st.integers(0, 45), st.integers(-2, 2)), min_size=2, max_size=12
    )
)
@example([(HEADS[2], 4, 0), (HEADS[2], 7, 0)])  # the first length is not the one that counts
@example([(HEADS[3], 4, 0), (HEADS[3], 5, 0)])
@example([(HEADS[0], 0, 0), (HEADS[7], 0, 0), (HEADS[0], 0, 0)])  # closed in between
@example([(HEADS[0], 3, 0), (HEADS[0], 41, 0)])
@example([(HEADS[8], 0, 0), (HEADS[8], 0, 0)])  # the body came with the head: 100 is not owed any more
@example([(HEADS[8], 5, 0), (HEADS[8], 5, 0)])
def test_known_heads_change_nothing(picks):
    messages = [head % size + b"y" * max(0, size + odd) for head, size, odd in picks]
    with pytest.MonkeyPatch.context() as patch:
        server, written = read(messages, remembers=True, monkeypatch=patch)
        other, expected = read(messages, remembers=False, monkeypatch=patch)
        assert server.seen == other.seen
        assert written == expected


def test_requests_that_look_the_same_share_their_head(monkeypatch):
    messages = [HEADS[0] % len(body) + body for body in (b"a", b"bcd", b"")]
    server, _ = read([*messages, HEADS[1] % 1 + b"e"], remembers=True, monkeypatch=monkeypatch)
    first, second, third, other = server.request_heads
    assert first is second is third is not other
    assert [headers for _, _, headers, *_ in server.seen[:2]] == [
        [(b"host", b"a"), (b"content-length", length), (b"x-session-id", b"s")] for length in (b"1", b"3")
    ]


@pytest.mark.parametrize("head", [HEADS[0], HEADS[1]])
def test_a_head_is_known_whatever_the_length(head):
    parsed = RequestHead(b"POST", b"/", [(b"content-length", b"3")], keep_alive=True, http11=True)
    known = remember(head % 3 + b"abc", parsed)
    assert known is not None
    assert known.head is parsed
    assert known.body_of(head % 5 + b"hello") == b"hello"
    assert known.body_of(head % 12 + b"hello, world") == b"hello, world"
    assert known.body_of(head % 0) == b""
    assert known.body_of(head % 5 + b"hell") is None
    assert known.body_of(head % 5 + b"hello!") is None
    assert known.body_of(head.replace(b"a", b"b") % 5 + b"hello") is None
    assert with_length(parsed.headers, 5) == [(b"content-length", b"5")]


@pytest.mark.parametrize("split", [1, 30, 70, -6, -1])
def test_every_cut_of_a_known_request_is_left_to_the_parser(split):
    whole = HEADS[0] % 5 + b"hello"
    known = remember(whole, RequestHead(b"POST", b"/", [(b"content-length", b"5")], True, True))
    assert known is not None
    assert known.body_of(whole[:split]) is None
    assert known.body_of(whole[split:]) is None
    assert known.body_of(whole + whole) is None
