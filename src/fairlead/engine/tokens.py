"""The engine's own tokenizer: four bytes of text a token, reversible, no vocabulary.

A token id is an unsigned 32-bit integer: four bytes of UTF-8, little endian. A piece of text whose
length is no multiple of four ends in a token padded with 0xFF, a byte that UTF-8 never uses; the
special tokens use other such bytes. Text and answer of each message are cut from their own
beginning, so a conversation's tokens are a prefix of its continuation's.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeAlias

BYTES_PER_TOKEN = 4

END = 0xFFFFFFF8
"""Ends a message, and an answer that stops by itself."""

_ROLES = {"system": 0xFFFFFFF9, "user": 0xFFFFFFFA, "assistant": 0xFFFFFFFB, "tool": 0xFFFFFFFC}
_OTHER_ROLE = 0xFFFFFFFD
_ALIASES = {"developer": "system", "function": "tool"}
_NAMES = {END: "<|end|>", _OTHER_ROLE: "<|other|>"} | {token: f"<|{role}|>" for role, token in _ROLES.items()}

Tokens: TypeAlias = "array[int]"


def encode(text: str) -> Tokens:
    """Return the tokens of ``text``."""
    return _cut(text.encode())


def _cut(data: bytes) -> Tokens:
    tokens = array("I")
    tokens.frombytes(data + b"\xff" * (-len(data) % BYTES_PER_TOKEN))
    if sys.byteorder != "little":
        tokens.byteswap()
    return tokens


def from_ids(ids: Iterable[int]) -> Tokens:
    """Return given ids as tokens; OverflowError for one that is not of 32 bits."""
    return array("I", ids)


def render_chat(messages: Iterable[tuple[str, str]], preamble: bytes = b"") -> Tokens:
    """Return the prompt for (role, text) messages, up to the start of the assistant's answer.

    ``preamble`` is what a chat template would put first, such as tool definitions.
    """
    tokens = array("I")
    if preamble:
        tokens.append(_ROLES["system"])
        tokens += _cut(preamble)
    for role, text in messages:
        tokens.append(_ROLES.get(_ALIASES.get(role, role), _OTHER_ROLE))
        tokens += encode(text)
        tokens.append(END)
    tokens.append(_ROLES["assistant"])
    return tokens


def token_bytes(token: int) -> bytes:
    """Return the text bytes of one token; a special token's name."""
    name = _NAMES.get(token)
    return name.encode() if name else token.to_bytes(BYTES_PER_TOKEN, "little").rstrip(b"\xff")


def decode(tokens: Sequence[int]) -> str:
    """Return the text of ``tokens``; ids that no text encodes to become replacement characters."""
    return b"".join(map(token_bytes, tokens)).decode(errors="replace")
