"""Prompts of real length, made of block keys: equal keys give equal text, so an engine's cache hits.

A block's content follows from its key, the salt and nothing else; what comes after the last full block
is the request's own. Prompts come out as JSON, ready to be put into a body: as a list of token ids, or
as a text of words whose length in tokens is only estimated.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import shake_128
from typing import NamedTuple, Protocol

from fairlead.core.model import BlockKey
from fairlead.trace.model import Turn

_DRAWS = 1 << 16
_KEPT_TOKENS = 6_000_000
"""Tokens of blocks whose JSON is kept: some 30 MB."""

_TEXT = (
    "able area army baby back ball bank base bird blue boat body book born both call calm card care case"
    " city coal coat cold cook corn cost dark data date dear deep door down draw each east easy edge even"
    " ever face fact fair fall farm fast feet felt film find fine fire fish five flat food foot form four"
    " free full game girl give glad gold good gray grew hair half hand hard head hear heat held help here"
    " high hill hold home hope hour idea inch iron join jump just keep kind king knew know lake land last"
    " late lead left less life lift line list live long look lost loud love made mail main make many mark"
    " mean meat meet mile milk mind moon more most"
)
_WORDS = _TEXT.split()
"""Short everyday words: one token each, with the space before, in most vocabularies."""


class Prompts(Protocol):
    """Turns a turn's keys and length into the JSON of its prompt."""

    form: str
    """``tokens`` or ``text``."""

    def of(self, turn: Turn, name: str) -> bytes:
        """Return the prompt as JSON. ``name`` tells the request from all others of the workload."""


class Vocabulary(NamedTuple):
    """Token ids that prompts are made of, first to last."""

    low: int = 1000
    high: int = 1999
    """The default lies above what some vocabularies keep for control tokens and single bytes, and within
    every vocabulary of 2,000 and more."""


USUAL = Vocabulary()


class TokenPrompts:
    """Prompts as token ids: exact lengths, and hits as the keys say down to the engine's own blocks."""

    form = "tokens"

    def __init__(self, block_tokens: int, vocabulary: Vocabulary, salt: str) -> None:
        self._block = block_tokens
        ids = range(vocabulary.low, vocabulary.high + 1)[:_DRAWS]
        self._maker = _Maker([b"%d" % token for token in ids], b",", salt, block_tokens)

    def of(self, turn: Turn, name: str) -> bytes:
        """Return a list of exactly ``turn.prompt_tokens`` ids."""
        block, keys = self._block, turn.keys[: turn.prompt_tokens // self._block]
        shared = self._maker.shared
        parts = [shared(key, block) for key in keys]
        rest = turn.prompt_tokens - block * len(keys)
        if rest:
            parts.append(self._maker.own(name, rest))
        return b"[%b]" % b",".join(parts)


class Measure(NamedTuple):
    """How long words are, as learned from an endpoint's ``usage``."""

    tokens_a_word: float = 1.0
    extra: float = 0.0
    """Tokens that the endpoint adds to a prompt, such as the one that begins it."""


class TextPrompts:
    """Prompts as words. Lengths are right on average: ``measure`` is learned before the run, then fixed."""

    form = "text"

    def __init__(self, block_tokens: int, measure: Measure, salt: str) -> None:
        self._block = block_tokens
        self._measure = measure
        words = [word.encode() for word in _WORDS]
        self._maker = _Maker(words, b" ", salt, round(block_tokens / measure.tokens_a_word) + 1)

    def of(self, turn: Turn, name: str) -> bytes:
        """Return a text of about ``turn.prompt_tokens`` tokens."""
        block, keys = self._block, turn.keys[: turn.prompt_tokens // self._block]
        shared, parts, at = self._maker.shared, [], 0
        for i, key in enumerate(keys, 1):
            end = self._words(i * block)
            if end > at:  # keys chain, so the same key is always the same block of its prompt
                parts.append(shared(key, end - at))
                at = end
        rest = self._words(turn.prompt_tokens) - at
        if rest > 0 or not parts:
            parts.append(self._maker.own(name, max(1, rest)))
        return b'"%b"' % b" ".join(parts)

    def sample(self, words: int) -> bytes:
        """Return a text of so many words, for measuring."""
        return b'"%b"' % self._maker.own(f"sample of {words}", words)

    def _words(self, tokens: int) -> int:
        return round((tokens - self._measure.extra) / self._measure.tokens_a_word)


class _Maker:
    """Draws pieces of a given number of units (ids or words), the same for the same name."""

    def __init__(self, units: Sequence[bytes], between: bytes, salt: str, usual: int) -> None:
        self._table = (list(units) * -(-_DRAWS // len(units)))[:_DRAWS]
        self._between = between
        self._state = shake_128(salt.encode("utf-8", "surrogatepass") + b"\0")
        kept = max(64, _KEPT_TOKENS // max(1, usual))
        self.shared: Callable[[BlockKey, int], bytes] = lru_cache(kept)(self._shared)

    def _shared(self, key: BlockKey, units: int) -> bytes:
        return self._draw(b"key %d" % key, units)

    def own(self, name: str, units: int) -> bytes:
        """Return what only the request ``name`` says."""
        return self._draw(b"own " + name.encode("utf-8", "surrogatepass"), units)

    def _draw(self, name: bytes, units: int) -> bytes:
        state = self._state.copy()
        state.update(name)
        draws = struct.unpack(f"<{units}H", state.digest(2 * units))
        return self._between.join(map(self._table.__getitem__, draws))


def token_sample(vocabulary: Vocabulary, tokens: int) -> bytes:
    """Return a prompt of so many ids as JSON, the highest one included, to see whether it is taken."""
    low, high = vocabulary
    return b"[%b]" % b",".join([b"%d" % max(low, high - i) for i in range(tokens)])
