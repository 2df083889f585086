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

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead.core.keys import Digest, seed_key, token_keys
from fairlead.gateway.key_secret import KeySecret
from fairlead.gateway.prompt import MOST_BLOCKS, Chain, Prompt, canonical
from fairlead.gateway.wire import Asked, ChatAsked, CompletionAsked, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fairlead.gateway.chat_template import ChatTemplate

INLINE_CHARS = 2_000
"""As many new characters are tokenised at once, in about a millisecond; more belong in a thread."""

_HINT = "install it with: pip install 'fairlead[tokenizer]'"
_BYTES_A_TOKEN = 4  # of a prompt that cannot be told, until the engine counts it
_READ_BY_TEMPLATES = (
    "add_generation_prompt", "chat_template", "continue_final_message", "documents", "mm_processor_kwargs",
    "reasoning_effort", "truncate_prompt_tokens",
)  # fmt: skip
_TRIAL = " Trial  of\n\n cuts: "


class TokenizerError(ValueError):
    """The folder or the installation does not give a tokenizer. The text says why and what to do."""


class UnknownPromptError(ValueError):
    """The engine makes something of this request that cannot be told here; the text says what.

    The request is in order as far as we know: treat its prompt as one never seen.
    """


class TokenCache:
    """Tokens of pieces of text, least recently used out first, at most ``max_chars`` of text in all.

    Safe to use from several threads.
    """

    __slots__ = ("_lock", "_pieces", "chars", "hits", "max_chars")

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self.chars = 0
        self.hits = 0
        """Characters found, not pieces: it is length that costs."""
        self._pieces: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = Lock()

    def get(self, piece: str) -> "array[int] | None":
        """Return the piece's tokens if they are known."""
        with self._lock:
            found = self._pieces.get(piece)
            if found is not None:
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


class TokenPrompts:
    """Keys of the engine's own token blocks: a ``PromptKeys`` for one model and its LoRA adapters.

    ``template`` may be None for a model without a chat form. ``adapters`` maps the names under which
    adapters are served to that of their base model; it may be replaced or filled at any time.
    ``keys`` may be called from any thread, and lets go of the interpreter while it tokenises; a prompt
    of which little is new is done at once by ``keys_now``.
    """

    exact = True
    threaded = True

    def __init__(
        self,
        tokenizer: "Tokenizer",
        template: "ChatTemplate | None",
        *,
        secret: KeySecret,
        block_tokens: int = 16,
        digest: Digest = xxh3_64_intdigest,
        cache_chars: int = 32_000_000,
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.block_tokens = block_tokens
        self.digest = digest
        """KV-cache events must be read with the same, or nothing would match."""
        self.adapters = adapters or {}
        self.cache = TokenCache(cache_chars)
        self.unknown = 0
        """Requests whose prompt could not be told."""
        self.unknown_reason = ""
        """Of the last one."""
        self._tokenizer = tokenizer
        self._template = template
        self._secret = secret
        self._around = _added_around(tokenizer)
        self._cuts = _pattern(safe_cuts(tokenizer))
        if self._cuts is not None and not self._cuts_agree():
            self._cuts = None

    def chain(self, kind: str, asked: Asked) -> Chain:
        """Return the prompt's keys and tokens, whatever it takes."""
        prompt = self.keys("", kind, asked)
        return Chain(prompt.keys, prompt.prompt_tokens)

    def prompt(self, client: str, asked: Asked, chain: Chain) -> Prompt:  # noqa: ARG002 - nothing is estimated
        """Return the prompt."""
        return Prompt(chain.keys, chain.size, float(self.block_tokens))

    def keys(self, client: str, kind: str, asked: Asked) -> Prompt:  # noqa: ARG002 - all clients' are alike
        """Return the prompt's keys, whatever it takes. A prompt that cannot be told has none."""
        try:
            return self._prompt(*self._text(kind, asked), asked)
        except UnknownPromptError as error:
            return self._untold(asked, str(error))

    def keys_now(self, client: str, kind: str, asked: Asked) -> Prompt | None:  # noqa: ARG002 - as above
        """Return the prompt's keys if that takes about a millisecond.

        None if it takes longer: then call ``keys``, in a thread.
        """
        try:
            text, special = self._text(kind, asked)
            if isinstance(text, str) and self._new_chars(text, special=special) > INLINE_CHARS:
                return None
            return self._prompt(text, special, asked)
        except UnknownPromptError as error:
            return self._untold(asked, str(error))

    def learn(self, client: str, model: str, prompt: Prompt, prompt_tokens: int) -> None:
        """Ignore: there is nothing to learn about counts that are exact."""

    def _text(self, kind: str, asked: Asked) -> tuple[str | list[int], bool]:
        """Return the text to tokenise, or tokens, and whether the tokenizer adds its own around it."""
        if isinstance(asked, ChatAsked):
            if self._template is None:
                raise UnknownPromptError("the model's folder has no chat template")
            return self._template.render(_body(asked)), bool(asked.add_special_tokens)
        if not isinstance(asked, CompletionAsked):
            raise UnknownPromptError(f"no tokens are made for a request of kind '{kind}'")
        if asked.truncate_prompt_tokens is not None:
            raise UnknownPromptError("'truncate_prompt_tokens' is not followed")
        prompt = asked.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return prompt, asked.add_special_tokens is None or bool(asked.add_special_tokens)
        if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            return prompt, False
        raise UnknownPromptError("several prompts in one request, or none")

    def _prompt(self, text: str | list[int], special: bool, asked: Asked) -> Prompt:
        tokens: Sequence[int] = self.encode(text, special=special) if isinstance(text, str) else text
        # An engine computes at least the last token, and reuses whole blocks only: one that ends with
        # the prompt is never a hit.
        reusable = tokens if len(tokens) % self.block_tokens else tokens[:-1]
        reusable = reusable[: MOST_BLOCKS * self.block_tokens]
        base = self.adapters.get(asked.model)
        lora = asked.model if base is not None else ""
        model = asked.model if base is None else base
        seed = seed_key(model, lora, asked.cache_salt or "", self._secret)
        try:
            keys = token_keys(reusable, self.block_tokens, seed, self.digest)
        except OverflowError:
            raise UnknownPromptError("a token id that no model has") from None
        return Prompt(keys, max(1, len(tokens)), float(self.block_tokens))

    def _untold(self, asked: Asked, reason: str) -> Prompt:
        self.unknown += 1
        self.unknown_reason = reason
        return Prompt([], max(1, len(canonical(asked)[0]) // _BYTES_A_TOKEN), float(self.block_tokens))

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
        """Tokenise each piece by itself, several at a time on all cores."""
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


def _body(asked: ChatAsked) -> dict[str, Any]:
    """Return what a chat template reads of a request."""
    body: dict[str, Any] = {name: getattr(asked, name) for name in _READ_BY_TEMPLATES}
    body["messages"] = [_message(one) for one in asked.messages]
    for name in ("tools", "chat_template_kwargs"):
        body[name] = _decoded(getattr(asked, name))
    return body


def _message(message: Message) -> dict[str, Any]:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    fields["tool_calls"] = _decoded(message.tool_calls)
    return fields


def _decoded(raw: msgspec.Raw) -> Any:
    text = bytes(raw)
    return msgspec.json.decode(text) if text else None


def load_prompts(folder: Path, *, secret: KeySecret, **options: Any) -> TokenPrompts:
    """Make a ``TokenPrompts`` from a model's folder (``tokenizer.json`` and the chat template).

    Raises ``TokenizerError``. ``secret`` and ``options`` are those of ``TokenPrompts``.
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
    return TokenPrompts(tokenizer, template, secret=secret, **options)


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
