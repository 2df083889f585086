"""Prompts to block keys: what the prefix index knows a prompt by.

``BytePrompts`` needs no tokenizer: the prompt's canonical bytes in fixed blocks. How many bytes a
token takes is learned for each model from the usage that engines report.
"""

from struct import Struct
from typing import Any, Protocol

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead.core.keys import seed_key
from fairlead.core.model import BLOCK_KEY_BITS, BlockKey
from fairlead.gateway.key_secret import NO_SECRET, KeySecret
from fairlead.gateway.wire import Asked, ChatAsked, CompletionAsked, EmbeddingAsked, Message

_MASK = (1 << BLOCK_KEY_BITS) - 1
_MEMORY = 0.95
"""Weight of the past in the learned bytes a token: the last twenty prompts count."""
_FIRST_GUESS = 4.0
_LEAST, _MOST = 0.25, 64.0
_CACHED_SEEDS = 4096
MOST_BLOCKS = 65_536
"""Blocks of a prompt that have keys, a million tokens: what lies behind them is taken to be never cached.
No engine keeps more of one prompt, and the dispatcher's time for a request grows with its keys."""
_TOKENS_A_BLOCK = 16
_SPAN = 8
"""Blocks that are looked up together: prompts repeat, so most spans were seen before."""
_SPANS = 16_384
"""Spans in a generation of the cache: 8 MiB of prompts, and about 8 MiB of memory."""
_ROLES = {
    role: f"\x01{role}\x02".encode()
    for role in ("system", "developer", "user", "assistant", "tool", "function")
}


class Chain(msgspec.Struct, frozen=True):
    """A prompt's keys and its size: all that takes long about it, and depends on nothing learned."""

    keys: list[BlockKey]
    size: int
    """In canonical bytes, or in tokens where a tokenizer counts them."""


class Prompt(msgspec.Struct, frozen=True):
    """A prompt as the scheduler sees it."""

    keys: list[BlockKey]
    prompt_tokens: int
    block_tokens: float


class PromptKeys(Protocol):
    """Turns requests into block keys."""

    exact: bool
    """Whether the keys are those of the engine's own token blocks, as its KV-cache events give them."""
    threaded: bool
    """Whether ``keys`` can take so long that it belongs in a thread; ``keys_now`` then says when."""

    def chain(self, kind: str, asked: Asked) -> Chain:
        """Return the prompt's keys and size, whatever it takes. Works the same in another process."""

    def prompt(self, asked: Asked, chain: Chain) -> Prompt:
        """Return the prompt that ``chain`` was made of."""

    def keys(self, kind: str, asked: Asked) -> Prompt:
        """Return the prompt of ``chain``, whatever it takes."""

    def keys_now(self, kind: str, asked: Asked) -> Prompt | None:
        """Return the prompt's keys if that takes about a millisecond, else None."""

    def learn(self, model: str, prompt: Prompt, prompt_tokens: int) -> None:
        """The engine counted ``prompt_tokens`` in ``prompt``."""


class BytePrompts:
    """Keys from bytes. A block is 64 bytes: about 16 tokens of English text.

    Two that are to give the same keys need the same ``secret``. Without one, a client can write different
    prompts with the same keys.
    """

    exact = False
    threaded = False

    def __init__(self, block_tokens: int = _TOKENS_A_BLOCK, secret: KeySecret = NO_SECRET) -> None:
        self._block_bytes = int(block_tokens * _FIRST_GUESS)
        self._secret = secret
        self._blocks = Struct(f"{self._block_bytes}s").iter_unpack
        self._spans: dict[int, list[BlockKey]] = {}
        self._old_spans: dict[int, list[BlockKey]] = {}
        self._bytes_per_token: dict[str, float] = {}
        self._seeds: dict[tuple[str, str | None], int] = {}

    def keys(self, kind: str, asked: Asked) -> Prompt:
        """Return the prompt: see ``chain``."""
        return self.prompt(asked, self.chain(kind, asked))

    def prompt(self, asked: Asked, chain: Chain) -> Prompt:
        """Return the prompt, its tokens estimated by what was learned of the model."""
        rate = self._bytes_per_token.get(asked.model, _FIRST_GUESS)
        return Prompt(chain.keys, int(chain.size / rate) + 1, self._block_bytes / rate)

    def chain(self, kind: str, asked: Asked) -> Chain:  # noqa: ARG002 - all is in ``asked``
        """Return the keys of the full blocks of the prompt's canonical bytes, and the number of bytes."""
        data = canonical(asked)
        model = asked.model
        seed = self._seeds.get((model, asked.cache_salt))
        if seed is None:
            seed = self._new_seed(model, asked.cache_salt)
        size = min(len(data), MOST_BLOCKS * self._block_bytes)
        key, digest, spans = seed, xxh3_64_intdigest, self._spans
        keys: list[BlockKey] = []
        span = self._block_bytes * _SPAN
        begin = 0
        for end in range(span, size + 1, span):
            # The name chains as the keys do, so one look-up stands for all blocks of the span.
            name = digest(data[begin:end], key)
            known = spans.get(name) or self._span(name, data[begin:end], key)
            keys += known
            key = known[-1]
            begin = end
        keys += self._chain(data[begin : size - size % self._block_bytes], key)
        return Chain(keys, len(data))

    keys_now = keys

    def _chain(self, data: bytes, key: BlockKey) -> list[BlockKey]:
        """Return the keys of whole blocks that follow the one with ``key``."""
        digest, mask = xxh3_64_intdigest, _MASK
        return [key := digest(block, key) & mask for (block,) in self._blocks(data)]

    def _span(self, name: int, data: bytes, key: BlockKey) -> list[BlockKey]:
        """Return the keys of a span that is not in the young generation, and keep them there."""
        if len(self._spans) >= _SPANS:
            # Two generations make a cheap LRU: what was not asked for since the last turn goes.
            self._old_spans = self._spans.copy()
            self._spans.clear()
        found = self._spans[name] = self._old_spans.pop(name, []) or self._chain(data, key)
        return found

    def learn(self, model: str, prompt: Prompt, prompt_tokens: int) -> None:
        """Move the model's bytes a token towards what this prompt had."""
        if prompt_tokens <= 0:
            return
        used = self._block_bytes / prompt.block_tokens
        seen = used * prompt.prompt_tokens / prompt_tokens
        if not _LEAST <= seen <= _MOST:
            seen = _LEAST if seen < _LEAST else _MOST
        known = self._bytes_per_token.get(model)
        if known is None:
            if len(self._bytes_per_token) >= _CACHED_SEEDS:
                self._bytes_per_token.clear()
            self._bytes_per_token[model] = seen
        else:
            self._bytes_per_token[model] = known * _MEMORY + seen * (1 - _MEMORY)

    def bytes_per_token(self, model: str) -> float:
        """What was learned so far."""
        return self._bytes_per_token.get(model, _FIRST_GUESS)

    def _new_seed(self, model: str, salt: str | None) -> int:
        if len(self._seeds) >= _CACHED_SEEDS:
            self._seeds.clear()
        seed = self._seeds[model, salt] = seed_key(model, "", salt or "", self._secret)
        return seed


def canonical(asked: Asked) -> bytes:
    """Return bytes that are equal, and equal as prefixes, whenever the rendered prompts are.

    Tools come first, as chat templates put them; then each message's role and content. How a client
    formats its JSON makes no difference, except inside tools and structured content.
    """
    if isinstance(asked, ChatAsked):
        parts = []
        if asked.tools or asked.chat_template_kwargs:
            parts += [bytes(asked.tools), bytes(asked.chat_template_kwargs)]
        for message in asked.messages:
            content, role = message.content, message.role
            parts.append(_ROLES.get(role) or b"\x01%b\x02" % role.encode("utf-8", "surrogatepass"))
            if type(content) is str:
                parts.append(content.encode("utf-8", "surrogatepass"))
            elif content:
                parts += [_part(part) for part in content]
            if message.tool_calls or message.name or message.tool_call_id or message.reasoning_content:
                parts.append(_extras(message))
        return b"".join(parts)
    if isinstance(asked, CompletionAsked):
        return _text(asked.prompt)
    assert isinstance(asked, EmbeddingAsked)
    return _text(asked.input)


def _part(part: object) -> bytes:
    """Text parts count as their text, as templates join them; anything else as its JSON."""
    if isinstance(part, dict) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text.encode("utf-8", "surrogatepass")
    return msgspec.json.encode(part)


def _extras(message: Message) -> bytes:
    extras = (message.name, message.tool_call_id, message.reasoning_content)
    return msgspec.json.encode(extras) + bytes(message.tool_calls)


def _text(prompt: str | list[Any]) -> bytes:
    if isinstance(prompt, str):
        return prompt.encode("utf-8", "surrogatepass")
    kinds = set(map(type, prompt))
    if kinds <= {int, bool}:
        if kinds == {int}:
            try:
                return msgspec.json.encode(prompt)[1:-1] + b","
            except OverflowError:
                pass  # beyond 64 bits
        return b"".join([b"%d," % token for token in prompt])
    return b"\x01".join([_text(p) if isinstance(p, str) else msgspec.json.encode(p) for p in prompt])
