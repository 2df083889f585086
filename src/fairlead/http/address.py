"""The address of an HTTP server: checked once, and then fit to be shown.

Addresses stand in logs, metrics and answers, so they hold no secrets. What could be one (a password, a
query) is refused rather than left out: who wrote it there expects that it is sent.
"""

from typing import NamedTuple
from urllib.parse import urlsplit


class Address(NamedTuple):
    """``http://host:port/prefix`` in its parts."""

    tls: bool
    host: str
    port: int
    authority: bytes
    """What the Host field says."""
    prefix: bytes
    """The path before all paths; no slash at its end."""


def parse_address(url: str) -> Address:
    """Return the parts. Raises ValueError, whose text says what is wrong and shows nothing of the address."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("it has spaces, or characters that no address has")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise ValueError("it cannot be read") from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError("it begins with neither http:// nor https://")
    if "@" in url:
        raise ValueError("it has a user or a password in it")
    if "?" in url or "#" in url:
        raise ValueError("it has a query ('?') or a fragment ('#')")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is no number from 1 to 65535")
    if not host:
        raise ValueError("it names no host")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").encode()
    return Address(tls, host, port or (443 if tls else 80), parts.netloc.encode(), prefix)
