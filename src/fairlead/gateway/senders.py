"""Reads a request's head: who asks, and which header fields the worker gets.

The heads of one client's requests are mostly alike, so this is worked out once for each head that
the server knows again, and found on it afterwards.
"""

from fairlead.config import Config
from fairlead.gateway.identity import CLIENT_HEADERS, ROUTING_KEY, Client, Identity
from fairlead.http.messages import HOP_BY_HOP
from fairlead.http.server import Exchange

_NEVER_PASSED = frozenset({*HOP_BY_HOP, *CLIENT_HEADERS, ROUTING_KEY, b"host", b"expect", b"accept-encoding"})
"""Fields of the client's connection, and claims of identity. Answers have to be readable on their way,
so compression is not offered."""


class Sender:
    """Who asks, by the head alone."""

    __slots__ = ("client", "fields", "named", "passed", "peer", "session")

    def __init__(self, peer: str, client: Client, named: bool, session: str, passed: bytes) -> None:
        self.peer = peer
        """Where it was asked from: the same head may mean another client elsewhere."""
        self.client = client
        self.named = named
        """Whether the client was named; the default client may yet be by the body."""
        self.session = session
        self.passed = passed
        """Fields that the worker gets, each ended by CRLF, but for those that name the client."""
        self.fields = passed + client.fields

    def __repr__(self) -> str:
        return f"<Sender {self.client.name} at {self.peer}>"


class Senders:
    """Reads heads."""

    def __init__(self, config: Config, identity: Identity) -> None:
        self._identity = identity
        self._own = b""
        if config.worker_authorization:
            self._own = b"authorization: %b\r\n" % config.worker_authorization
        replaced = {b"authorization"} if identity.has_keys or config.worker_api_key else set()
        self._dropped = _NEVER_PASSED | replaced

    def of(self, exchange: Exchange) -> Sender:
        """Return the sender of a request. Raises ``Unauthorized``."""
        head = exchange.request_head
        known = head.notes
        if isinstance(known, Sender) and known.peer == exchange.peer:
            return known
        headers = dict(head.headers)
        client, named = self._identity.identify(headers, exchange.peer)
        drop = self._dropped
        connection = headers.get(b"connection")
        if connection is not None:
            # Whatever Connection names belongs to the client's connection, not to the request.
            drop = drop.union(token.strip().lower() for token in connection.split(b","))
        passed = [b"%b: %b\r\n" % field for field in head.headers if field[0] not in drop]
        session = headers.get(b"x-session-id", b"").decode("latin-1")
        sender = Sender(exchange.peer, client, named, session, b"".join(passed) + self._own)
        head.notes = sender
        return sender
