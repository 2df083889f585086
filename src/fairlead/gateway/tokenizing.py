"""Prompts as the engine's own tokens: exact lengths, and keys that match its KV-cache events.

For long prompts the tokenizer, not the look-up, is the bottleneck. So a prompt is cut into pieces
at special tokens, such as those around the messages of a chat, and the tokens of pieces seen before
are taken from a cache: in a conversation only the newest message is tokenised.

A cut is made only where it cannot change the result. Tokenizers look for special tokens first and
work on the text in between by itself, so a piece that starts with a special token gives the same
tokens alone as within the whole. That holds unless the special token takes the spaces around it
along, is looked for in normalised text, or may overlap with another one: those are never cut at. A
tokenizer for which a trial shows a difference none the less is used without cuts.
"""

import asyncio
import re
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from xxhash import xxh3_64_intdigest

from fairlead.core.keys import Digest, token_keys
from fairlead.core.model import BlockKey

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fairlead.gateway.chat_template import ChatTemplate

INLINE_CHARS = 2_000
"""As many new characters are tokenised at once, in about a millisecond; more belong in a thread."""

_HINT = "install it with: pip install 'fairlead[tokenizer]'"
_TRIAL = " Trial  of\n\n cuts: "


class TokenizerError(ValueError):
    """The folder or the installation does not give a tokenizer. The text says why and what to do."""


class TokenPrompt(NamedTuple):
    """A prompt, counted and named."""

    tokens: int
    keys: list[BlockKey]
    """Of the full blocks that an engine could reuse."""


class UnknownPromptError(ValueError):
    """The engine makes something of this request that cannot be told here; the text says what.

    The request is in order as far as we know: treat its prompt as one never seen.
    """


class TokenCache:
    """Tokens of pieces of text, least recently used out first, at most ``max_chars`` of text in all.

    Safe to use from several threads.
    """

    __slots__ = ("_lock", "_pieces", "chars", "hits", "max_chars", "misses")

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self.chars = 0
        self.hits = 0
        """Characters found, not pieces: it is length that costs."""
        self.misses = 0
        self._pieces: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = Lock()

    def get(self, piece: str) -> "array[int] | None":
        """Return the piece's tokens if they are known."""
        with self._lock:
            found = self._pieces.get(piece)
            if found is None:
                self.misses += len(piece)
            else:
                self.hits += len(piece)
                self._pieces.move_to_end(piece)
        return found

    def put(self, piece: str, tokens: "array[int]") -> None:
        """Keep a piece's tokens."""
        with self._lock:
            if piece not in self._pieces:
                self._pieces[piece] = tokens
                self.chars += len(piece)
                while self.chars > self.max_chars:
                    oldest, _ = self._pieces.popitem(last=False)
                    self.chars -= len(oldest)

    def __contains__(self, piece: str) -> bool:
        return piece in self._pieces

    def __len__(self) -> int:
        return len(self._pieces)


class PromptTokenizer:
    """Tokenises prompts for one model. Used from one event loop.

    ``template`` may be None for a model without a chat form. ``threads`` work on long texts; the
    tokenizer lets go of the interpreter meanwhile.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        template: "ChatTemplate | None",
        *,
        block_tokens: int = 16,
        digest: Digest = xxh3_64_intdigest,
        cache_chars: int = 32_000_000,
        threads: int = 2,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.block_tokens = block_tokens
        self.digest = digest
        """KV-cache events must be read with the same, or nothing would match."""
        self.cache = TokenCache(cache_chars)
        self._tokenizer = tokenizer
        self._template = template
        self._around = _added_around(tokenizer)
        self._cuts = _pattern(safe_cuts(tokenizer))
        if self._cuts is not None and not self._cuts_agree():
            self._cuts = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    async def chat(self, body: Mapping[str, Any], seed: int) -> TokenPrompt:
        """Return the prompt of a chat completion's body. Raises ``UnknownPromptError``."""
        return await _whenever(self.start_chat(body, seed))

    async def completion(self, body: Mapping[str, Any], seed: int) -> TokenPrompt:
        """Return the prompt of a plain completion's body. Raises ``UnknownPromptError``."""
        return await _whenever(self.start_completion(body, seed))

    def start_chat(self, body: Mapping[str, Any], seed: int) -> TokenPrompt | Awaitable[TokenPrompt]:
        """Return the prompt of a chat completion's body, or an awaitable of it if much of it is new.

        Raises ``UnknownPromptError``, before or when awaited.
        """
        if self._template is None:
            raise UnknownPromptError("the model's folder has no chat template")
        return self._start(self._template.render(body), bool(body.get("add_special_tokens")), seed)

    def start_completion(self, body: Mapping[str, Any], seed: int) -> TokenPrompt | Awaitable[TokenPrompt]:
        """Return the prompt of a plain completion's body, or an awaitable of it if much of it is new.

        Raises ``UnknownPromptError``, before or when awaited.
        """
        for name in ("truncate_prompt_tokens", "prompt_embeds"):
            if body.get(name) is not None:
                raise UnknownPromptError(f"'{name}' is not followed")
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            special = body.get("add_special_tokens")
            return self._start(prompt, special is None or bool(special), seed)
        if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            return self._named(prompt, seed)
        raise UnknownPromptError("several prompts in one request, or none")

    def _start(self, text: str, special: bool, seed: int) -> TokenPrompt | Awaitable[TokenPrompt]:
        if self._new_chars(text, special=special) <= INLINE_CHARS:
            return self._named(self.encode(text, special=special), seed)
        return asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: self._named(self.encode(text, special=special), seed)
        )

    def _named(self, tokens: Sequence[int], seed: int) -> TokenPrompt:
        # An engine computes at least the last token, and reuses whole blocks only: one that ends with
        # the prompt is never a hit.
        reusable = tokens if len(tokens) % self.block_tokens else tokens[:-1]
        try:
            keys = token_keys(reusable, self.block_tokens, seed, self.digest)
        except OverflowError:
            raise UnknownPromptError("a token id that no model has") from None
        return TokenPrompt(len(tokens), keys)

    def encode(self, text: str, *, special: bool) -> "array[int]":
        """Return the tokens of ``text``; with ``special``, those that the tokenizer puts around it too."""
        if special and self._around is None:
            return self._encode([text], special=True)[0]
        pieces = self._pieces(text)
        known = {piece: self.cache.get(piece) for piece in pieces}
        fresh = [piece for piece, tokens in known.items() if tokens is None]
        made = dict(zip(fresh, self._encode(fresh), strict=True))
        for piece, tokens in made.items():
            self.cache.put(piece, tokens)
        before, after = self._around if special and self._around is not None else ([], [])
        out = array("I", before)
        for piece in pieces:
            out.extend(made[piece] if piece in made else known[piece] or ())
        out.extend(array("I", after))
        return out

    def _pieces(self, text: str) -> list[str]:
        """Cut ``text`` in front of each special token where that is safe."""
        if self._cuts is None:
            return [text] if text else []
        starts = [match.start() for match in self._cuts.finditer(text)]
        if not starts or starts[0]:
            starts.insert(0, 0)
        ends = [*starts[1:], len(text)]
        return [text[start:end] for start, end in zip(starts, ends, strict=True) if end > start]

    def _new_chars(self, text: str, *, special: bool) -> int:
        """Return how many characters would have to be tokenised."""
        if len(text) <= INLINE_CHARS or (special and self._around is None):
            return len(text)
        return sum(len(piece) for piece in set(self._pieces(text)) if piece not in self.cache)

    def _encode(self, pieces: list[str], *, special: bool = False) -> "list[array[int]]":
        """Tokenise without looking left or right; several pieces side by side on all cores."""
        if not pieces:
            return []
        found = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=special)
        return [array("I", encoding.ids) for encoding in found]

    def _cuts_agree(self) -> bool:
        """Compare cut and uncut on a text with every token that is cut at, in several neighbourhoods."""
        text = _TRIAL + "".join(
            f"{token}{_TRIAL}{token}user\n{_TRIAL}{token}{token}" for token in safe_cuts(self._tokenizer)[:64]
        )
        whole = self._encode([text])[0]
        parts = self._encode(self._pieces(text))
        return whole == array("I", (token for part in parts for token in part))


async def _whenever(found: TokenPrompt | Awaitable[TokenPrompt]) -> TokenPrompt:
    return found if isinstance(found, TokenPrompt) else await found


def load_tokenizer(folder: Path, **options: Any) -> PromptTokenizer:
    """Make a ``PromptTokenizer`` from a model's folder (``tokenizer.json`` and the chat template).

    Raises ``TokenizerError``. ``options`` are those of ``PromptTokenizer``.
    """
    try:
        # An extra, so imported only where it is asked for.
        from tokenizers import Tokenizer  # noqa: PLC0415

        from fairlead.gateway.chat_template import load_template  # noqa: PLC0415
    except ImportError as error:
        raise TokenizerError(f"tokenizer mode needs the package '{error.name}'; {_HINT}") from None
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json; it should be the folder, or a copy of the tokenizer's files, "
            "that the engine serves its model from"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
        template = load_template(folder)
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for a malformed file
        raise TokenizerError(f"cannot read the tokenizer in {folder}: {error}") from None
    return PromptTokenizer(tokenizer, template, **options)


def safe_cuts(tokenizer: "Tokenizer") -> list[str]:
    """Return the special tokens in front of which a text can be cut without changing its tokens."""
    added = list(tokenizer.get_added_tokens_decoder().values())
    texts = [token.content for token in added]
    return [
        token.content
        for token in added
        if token.special
        and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        and not any(_overlap(token.content, other) for other in texts)
    ]


def _overlap(one: str, other: str) -> bool:
    """Say whether occurrences of two texts can overlap, so that finding one may hide the other."""
    if one != other and (one in other or other in one):
        return True
    shortest = min(len(one), len(other))
    return any(one.endswith(other[:n]) or other.endswith(one[:n]) for n in range(1, shortest))


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    choices = [re.escape(token) for token in tokens]
    return re.compile("|".join(choices)) if choices else None


def _added_around(tokenizer: "Tokenizer") -> tuple[list[int], list[int]] | None:
    """Return the tokens put in front of and behind any text; None if they depend on the text."""
    around: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for text in ("a", "some other text", "\n"):
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        full = tokenizer.encode(text, add_special_tokens=True).ids
        extra = len(full) - len(bare)
        at = next((n for n in range(extra + 1) if full[n : n + len(bare)] == bare), None)
        if at is None:
            return None
        around.add((tuple(full[:at]), tuple(full[at + len(bare) :])))
    if len(around) != 1:
        return None
    before, after = around.pop()
    return list(before), list(after)
