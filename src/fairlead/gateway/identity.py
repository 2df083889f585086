"""Who is asking: the client that a request is charged to.

In this order: the API key; a header set by a trusted proxy; the body's ``user``, if configured; the
default client. What a client says of itself in a header is never believed, and towards the engine
the header is written anew.
"""

import ipaddress
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from fairlead.config import DEFAULT_CLIENT, MOST_NAME, Config, hash_key, key_owners

CLIENT_HEADERS = (
    b"x-llm-d-inference-fairness-id",
    b"x-gateway-inference-fairness-id",
    b"x-fairlead-client",
)
"""Names that trusted proxies may use, first one first. The second is an old alias of the first."""

ROUTING_KEY = b"x-smg-routing-key"
"""The header that tells SGLang the client."""

_CACHED = 10_000


class Client:
    """A client's name, and how it is told to engines: in header fields, and in the body to those of vLLM."""

    __slots__ = ("fields", "name", "xargs")

    def __init__(self, name: str) -> None:
        self.name = name
        value = name.encode()
        told = (CLIENT_HEADERS[0], CLIENT_HEADERS[2], ROUTING_KEY)
        self.fields = b"".join([b"%b: %b\r\n" % (field, value) for field in told])
        self.xargs = msgspec.json.encode({"client_id": name})
        """``vllm_xargs``: vLLM shows its scheduler nothing else of a request's origin."""

    def __repr__(self) -> str:
        return f"<Client {self.name}>"


class Unauthorized(Exception):  # noqa: N818 - an answer, named as HTTP names it
    """No API key, or an unknown one: status 401."""


class Identity:
    """Finds the client of a request by its headers and the peer's address."""

    def __init__(self, config: Config) -> None:
        self._owners = dict(key_owners(config))
        self._networks = [ipaddress.ip_network(network) for network in config.trusted_proxies]
        self._use_body_user = config.use_body_user
        self._by_authorization: dict[bytes, Client] = {}
        self._by_name: dict[str, Client] = {}
        self._peers: dict[str, bool] = {}
        self._default = self.client(DEFAULT_CLIENT)

    @property
    def has_keys(self) -> bool:
        """Whether clients must show a key."""
        return bool(self._owners)

    def client(self, name: str) -> Client:
        """Return the client called ``name``, the same object while it is in use often enough."""
        found = self._by_name.get(name)
        if found is None:
            if len(self._by_name) >= _CACHED:
                self._by_name.clear()
            found = self._by_name[name] = Client(name)
        return found

    def identify(self, headers: Mapping[bytes, bytes], peer: str) -> tuple[Client, bool]:
        """Return the client, and whether it was named (and not merely the default).

        ``headers`` by lower-case name; ``peer`` is the address of the connection's other end.
        Raises ``Unauthorized``.
        """
        authorization = headers.get(b"authorization")
        if self._owners and authorization is not None:
            known = self._by_authorization.get(authorization)
            return known or self._by_key(authorization), True
        if self._networks and self._trusts(peer):
            for header in CLIENT_HEADERS:
                value = headers.get(header)
                name = clean_name(value.decode("utf-8", "surrogateescape")) if value else ""
                if name:
                    return self.client(name), True
        if self._owners:
            raise Unauthorized("no API key was sent; use the header 'Authorization: Bearer KEY'")
        return self._default, False

    def by_user(self, user: str | None) -> Client:
        """Return the client that the body's ``user`` stands for, if that is configured."""
        name = clean_name(user) if user and self._use_body_user else ""
        return self.client(name) if name else self._default

    def _by_key(self, authorization: bytes) -> Client:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            name = self._owners.get(hash_key(_plain(key.strip())))
            if name is not None:
                if len(self._by_authorization) >= _CACHED:
                    self._by_authorization.clear()
                client = self._by_authorization[authorization] = self.client(name)
                return client
        raise Unauthorized("the API key is not known here")

    def _trusts(self, peer: str) -> bool:
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= _CACHED:
                self._peers.clear()
            try:
                address = ipaddress.ip_address(peer.partition("%")[0])
            except ValueError:
                return False
            mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            known = self._peers[peer] = any((mapped or address) in network for network in self._networks)
        return known


def clean_name(name: str) -> str:
    """Return ``name`` fit for a header, a label and a log line: printable and not too long.

    A name that had to be changed for that ends in a digest: two clients never become one.
    """
    name = name.strip()
    clean = name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)
    if clean == name and len(name) <= MOST_NAME:
        return name
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{clean[: MOST_NAME - len(digest) - 1]}~{digest}"


def _plain(key: bytes) -> str:
    """Return the key as text; one that looks like a stored hash is never taken for its own hash."""
    text = key.decode("utf-8", "replace")
    return "" if text.startswith("sha256:") else text
