"""The secret that all block keys of a gateway depend on: without it a client could forge them."""

from hashlib import blake2b


class KeySecret(bytes):
    """At most 64 bytes; empty is no secret. It never shows itself as text."""

    __slots__ = ()

    @classmethod
    def of(cls, text: str) -> "KeySecret":
        """Return the secret that a text of any length stands for: the same text, the same keys."""
        return cls(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest())

    def __repr__(self) -> str:
        return "KeySecret(...)"

    __str__ = __repr__


NO_SECRET = KeySecret()
