"""Prompts to block keys: what the prefix index knows a prompt by.

``BytePrompts`` needs no tokenizer: the prompt's canonical bytes in fixed blocks. How many bytes a
token takes, and how many tokens an image, is learned from the usage that engines report (``estimates``).
"""

from struct import Struct
from typing import Any, Protocol

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from fairlead.core.keys import seed_key
from fairlead.core.model import BLOCK_KEY_BITS, BlockKey
from fairlead.gateway.estimates import Learned
from fairlead.gateway.key_secret import KeySecret
from fairlead.gateway.wire import Asked, ChatAsked, CompletionAsked, EmbeddingAsked, Message

_MASK = (1 << BLOCK_KEY_BITS) - 1
_FIRST_GUESS = 4.0
_LEAST, _MOST = 1.0, 8.0
"""Bytes a token. A tokenizer's smallest token is a byte, and no text but blanks has more in the mean: who
sends blanks is counted too many tokens rather than too few."""
_TELLING_BYTES = 1024
"""Shorter prompts tell less of their text: most of them is what the chat template adds."""
_PART_TOKENS = 512.0
_LEAST_PART, _MOST_PART = 16.0, 16_384.0
_PART_BYTES = int(_PART_TOKENS * _FIRST_GUESS)
"""A part that is no text stands as so many bytes: an image's own say nothing of its tokens."""
_TEXT_PARTS = {"text", "refusal", "thinking", "input_text", "output_text"}
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
    parts: int = 0
    """Images and other parts that are no text."""


class Prompt(msgspec.Struct, frozen=True):
    """A prompt as the scheduler sees it."""

    keys: list[BlockKey]
    prompt_tokens: int
    block_tokens: float
    size: int = 0
    """In canonical bytes: what ``learn`` compares with the engine's count."""
    parts: int = 0
    """Images and other parts that are no text."""


class PromptKeys(Protocol):
    """Turns requests into block keys."""

    exact: bool
    """Whether the keys are those of the engine's own token blocks, as its KV-cache events give them."""
    threaded: bool
    """Whether ``keys`` can take so long that it belongs in a thread; ``keys_now`` then says when."""

    def chain(self, kind: str, asked: Asked) -> Chain:
        """Return the prompt's keys and size, whatever it takes. Works the same in another process."""

    def prompt(self, client: str, asked: Asked, chain: Chain) -> Prompt:
        """Return the client's prompt that ``chain`` was made of."""

    def keys(self, client: str, kind: str, asked: Asked) -> Prompt:
        """Return the prompt of ``chain``, whatever it takes."""

    def keys_now(self, client: str, kind: str, asked: Asked) -> Prompt | None:
        """Return the prompt's keys if that takes about a millisecond, else None."""

    def learn(self, client: str, model: str, prompt: Prompt, prompt_tokens: int) -> None:
        """Learn from what the engine counted: ``prompt_tokens`` in the client's ``prompt``."""


class BytePrompts:
    """Keys from bytes. A block is 64 bytes: about 16 tokens of English text.

    Two that are to give the same keys need the same ``secret``. With ``NO_SECRET``, a client can write
    different prompts with the same keys.
    """

    exact = False
    threaded = False

    def __init__(self, block_tokens: int = _TOKENS_A_BLOCK, *, secret: KeySecret) -> None:
        self._block_bytes = int(block_tokens * _FIRST_GUESS)
        self._secret = secret
        self._blocks = Struct(f"{self._block_bytes}s").iter_unpack
        self._spans: dict[int, list[BlockKey]] = {}
        self._old_spans: dict[int, list[BlockKey]] = {}
        self._media_seed = seed_key("", secret=secret)
        self._bytes_per_token = Learned(_FIRST_GUESS, _LEAST, _MOST)
        self._tokens_per_part = Learned(_PART_TOKENS, _LEAST_PART, _MOST_PART)
        self._seeds: dict[tuple[str, str | None], int] = {}

    def keys(self, client: str, kind: str, asked: Asked) -> Prompt:
        """Return the prompt: see ``chain``."""
        return self.prompt(client, asked, self.chain(kind, asked))

    def prompt(self, client: str, asked: Asked, chain: Chain) -> Prompt:
        """Return the prompt, its tokens estimated by what was learned of the client and the model."""
        size, parts = chain.size, chain.parts
        rate = self._bytes_per_token.of(client, asked.model)
        if not parts:
            return Prompt(chain.keys, int(size / rate) + 1, self._block_bytes / rate, size)
        tokens = (size - parts * _PART_BYTES) / rate + parts * self._tokens_per_part.of(client, asked.model)
        return Prompt(chain.keys, int(tokens) + 1, self._block_bytes * tokens / size, size, parts)

    def chain(self, kind: str, asked: Asked) -> Chain:  # noqa: ARG002 - all is in ``asked``
        """Return the keys of the full blocks of the prompt's canonical bytes, and the number of bytes."""
        data, parts = canonical(asked, self._media_seed)
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
        return Chain(keys, len(data), parts)

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

    def learn(self, client: str, model: str, prompt: Prompt, prompt_tokens: int) -> None:
        """Learn of the client's text, or of images and the like where the prompt has some."""
        if prompt_tokens <= 0:
            return
        size, parts = prompt.size, prompt.parts
        if not parts:
            self._bytes_per_token.see(client, model, size / prompt_tokens, min(1.0, size / _TELLING_BYTES))
            return
        text = (size - parts * _PART_BYTES) / self._bytes_per_token.of(client, model)
        self._tokens_per_part.see(client, model, (prompt_tokens - text) / parts)

    def bytes_per_token(self, client: str, model: str) -> float:
        """Return what was learned so far."""
        return self._bytes_per_token.of(client, model)

    def _new_seed(self, model: str, salt: str | None) -> int:
        if len(self._seeds) >= _CACHED_SEEDS:
            self._seeds.clear()
        seed = self._seeds[model, salt] = seed_key(model, "", salt or "", self._secret)
        return seed


def canonical(asked: Asked, media_seed: int = 0) -> tuple[bytes, int]:
    """Return bytes that are equal, and equal as prefixes, whenever the rendered prompts are.

    Tools come first, as chat templates put them; then each message's role and content. How a client
    formats its JSON makes no difference, except inside tools and structured content. Parts that are no
    text stand as ``_PART_BYTES`` made of a hash with ``media_seed``; their number is returned too.
    """
    if isinstance(asked, ChatAsked):
        out: list[bytes] = []
        media = 0
        if asked.tools or asked.chat_template_kwargs:
            out += [bytes(asked.tools), bytes(asked.chat_template_kwargs)]
        for message in asked.messages:
            content, role = message.content, message.role
            out.append(_ROLES.get(role) or b"\x01%b\x02" % role.encode("utf-8", "surrogatepass"))
            if type(content) is str:
                out.append(content.encode("utf-8", "surrogatepass"))
            elif content:
                for part in content:
                    text = _text_of(part)
                    media += text is None
                    out.append(_stand_in(part, media_seed) if text is None else text)
            if message.tool_calls or message.name or message.tool_call_id or message.reasoning_content:
                out.append(_extras(message))
        return b"".join(out), media
    if isinstance(asked, CompletionAsked):
        return _text(asked.prompt), 0
    assert isinstance(asked, EmbeddingAsked)
    return _text(asked.input), 0


def _text_of(part: object) -> bytes | None:
    """Return a part's text, as templates join them; other parts of text as their JSON; None for the rest."""
    if not isinstance(part, dict):
        return msgspec.json.encode(part)
    kind, text = part.get("type"), part.get("text")
    if kind == "text" and isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    return msgspec.json.encode(part) if kind in _TEXT_PARTS else None


def _stand_in(part: object, seed: int) -> bytes:
    digest = xxh3_128_digest(msgspec.json.encode(part), seed)
    return digest * (_PART_BYTES // len(digest))


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
