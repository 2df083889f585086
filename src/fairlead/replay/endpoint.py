"""The endpoint that a workload is sent to: what it serves, what it accepts, and who is asking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from fairlead.core.model import ClientId
from fairlead.core.params import nearest
from fairlead.http.address import parse_address
from fairlead.http.client import ClientTimeouts, Pool, UpstreamError
from fairlead.replay.answers import decode_usage, error_text
from fairlead.replay.prompts import (
    USUAL,
    Measure,
    Prompts,
    TextPrompts,
    TokenPrompts,
    Vocabulary,
    token_sample,
)

CLIENT_HEADER = "x-fairlead-client"
"""The header that names the client to ``fairlead engine``, and to a gateway that trusts the sender."""
COMPLETIONS = b"/v1/completions"
_STREAM = b'"temperature":0,"stream":true,"stream_options":{"include_usage":true}'
_PATIENCE_S = 60.0
_FOREVER_S = 1e9
_SAMPLE_TOKENS = 64
_SAMPLE_WORDS = (300, 900)


class ReplayError(Exception):
    """The endpoint cannot be used like this. The text says why, and what to do."""


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How requests are made."""

    model: str = ""
    """Empty: the only one that the endpoint serves."""
    keys: Mapping[ClientId, str] | None = None
    """API key by client; ``*`` is for all others."""
    client_header: str = CLIENT_HEADER
    """Names the client; empty: not sent."""
    form: str = "auto"
    """``tokens``, ``text``, or ``auto``: tokens if the endpoint takes them."""
    exact_lengths: bool = True
    """Ask for ``min_tokens`` and ``ignore_eos``; without, answers may be shorter than the workload's."""
    vocabulary: Vocabulary = USUAL
    salt: str = ""


class Endpoint:
    """One OpenAI-compatible server. ``open`` it, read what it said, use ``pool`` and ``request``."""

    def __init__(self, url: str, asking: Asking) -> None:
        """Raise ReplayError for an address that cannot be one."""
        try:
            parse_address(url)  # without a password or a query, which would not be sent
            parts = urlsplit(url)
            path = parts.path.rstrip("/").removesuffix("/v1")
            # Only our own time-out ends a request, so that every one ends in a known way.
            timeouts = ClientTimeouts(connect=30.0, first_byte=_FOREVER_S, quiet=_FOREVER_S)
            self.pool = Pool(parts._replace(path=path).geturl(), timeouts)
        except ValueError as error:
            raise ReplayError(f"--url: {error} (write http://host:port)") from None
        self.url = f"{parts.scheme}://{parts.netloc}{path}"
        self.asking = asking
        self.model = asking.model
        self.max_model_len = 0
        """Context length that the endpoint states; 0: it does not."""
        self.notes: list[str] = []
        """What a reader of the results must know."""
        self._heads: dict[ClientId, list[tuple[bytes, bytes]]] = {}

    async def open(self, client: ClientId) -> None:
        """Find model and context length. ``client`` is who asks. Raises ReplayError."""
        status, body = await self._fetch(b"GET", b"/v1/models", client)
        cards: list[_Card] = []
        if status == 200:
            try:
                cards = msgspec.json.decode(body, type=_Cards).data
            except msgspec.DecodeError:
                raise ReplayError(f"{self.url}/v1/models did not answer with a list of models") from None
        elif status in {401, 403}:
            raise ReplayError(f"{self.url} wants an API key (--api-key): {error_text(body)}")
        elif not self.model:
            raise ReplayError(f"{self.url}/v1/models: status {status}; name the model with --model")
        self._choose(cards)

    def _choose(self, cards: Sequence[_Card]) -> None:
        names = [card.id for card in cards]
        if not self.model:
            if len(names) != 1:
                said = f"serves {', '.join(names)}: choose" if names else "names no model: name"
                raise ReplayError(f"{self.url} {said} one with --model")
            self.model = names[0]
        elif names and self.model not in names:
            hint = nearest(self.model, names)
            raise ReplayError(f"{self.url} has no model '{self.model}' (it serves {', '.join(names)}){hint}")
        for card in cards:
            if card.id == self.model:
                self.max_model_len = card.max_model_len or 0

    async def prompts(self, client: ClientId, block_tokens: int) -> Prompts:
        """Find out which form of prompt it takes, by asking for one token. Raises ReplayError."""
        form, salt = self.asking.form, self.asking.salt
        if form != "text":
            sample = token_sample(self.asking.vocabulary, _SAMPLE_TOKENS)
            status, body = await self._ask(client, sample)
            usage = decode_usage(body) if status == 200 else None
            counted = usage.prompt_tokens if usage else 0
            if status == 200 and counted in {0, _SAMPLE_TOKENS}:
                return TokenPrompts(block_tokens, self.asking.vocabulary, salt)
            said = f"status {status}: {error_text(body)}"
            if status == 200:
                said = f"{_SAMPLE_TOKENS} were counted as {counted}"
            if form == "tokens" or status not in {200, 400, 415, 422, 500, 501}:
                raise ReplayError(f"{self.url}{COMPLETIONS.decode()} does not take token ids: {said}")
            self.notes.append(f"prompts are text, for the endpoint does not take token ids ({said})")
        return await self._measured(client, block_tokens)

    async def _measured(self, client: ClientId, block_tokens: int) -> Prompts:
        """Learn how long words are from two prompts of different length."""
        plain = TextPrompts(block_tokens, Measure(), self.asking.salt)
        counts = []
        for words in _SAMPLE_WORDS:
            status, body = await self._ask(client, plain.sample(words))
            if status != 200:
                raise ReplayError(f"{self.url}{COMPLETIONS.decode()}: status {status}: {error_text(body)}")
            usage = decode_usage(body)
            counts.append(usage.prompt_tokens if usage else 0)
        short, long = _SAMPLE_WORDS
        if counts[0] < 1 or counts[1] <= counts[0]:
            self.notes.append("the endpoint does not count tokens: prompts have one word a token")
            return plain
        each = (counts[1] - counts[0]) / (long - short)
        measure = Measure(each, max(0.0, counts[0] - each * short))
        self.notes.append(f"prompts are text of estimated length: {each:.3g} tokens a word were measured")
        return TextPrompts(block_tokens, measure, self.asking.salt)

    async def _ask(self, client: ClientId, prompt: bytes) -> tuple[int, bytes]:
        exact = b',"ignore_eos":true' if self.asking.exact_lengths else b""
        body = self._body(client, prompt, b'"max_tokens":1,"temperature":0' + exact)
        status, answer = await self._fetch(b"POST", COMPLETIONS, client, body)
        if status in {401, 403}:
            raise ReplayError(f"{self.url} wants another API key (--api-key): {error_text(answer)}")
        if status == 404:
            raise ReplayError(f"{self.url}{COMPLETIONS.decode()}: status 404: {error_text(answer)}")
        return status, answer

    async def _fetch(
        self, method: bytes, path: bytes, client: ClientId, body: bytes = b""
    ) -> tuple[int, bytes]:
        try:
            status, _, answer = await self.pool.fetch(
                method, path, self.headers(client), body, timeout=_PATIENCE_S
            )
        except UpstreamError as error:
            raise ReplayError(f"{self.url}: {error}") from None
        return status, answer

    def request(self, client: ClientId, prompt: bytes, output_tokens: int, session: str) -> bytes:
        """Return the bytes of one streamed completion."""
        length = b'"max_tokens":%d' % output_tokens
        if self.asking.exact_lengths:
            length += b',"min_tokens":%d,"ignore_eos":true' % output_tokens
        body = self._body(client, prompt, b"%b,%b" % (length, _STREAM))
        headers = self.headers(client)
        if session:
            headers = [*headers, (b"x-session-id", _field(session))]
        return self.pool.request_bytes(b"POST", COMPLETIONS, headers, body)

    def _body(self, client: ClientId, prompt: bytes, rest: bytes) -> bytes:
        model, user = msgspec.json.encode(self.model), msgspec.json.encode(_clean(client))
        # By this the plugin inside vLLM knows clients. Servers other than vLLM may not take it, as little as
        # they take exact lengths.
        xargs = b'"vllm_xargs":{"client_id":%b},' % user if self.asking.exact_lengths else b""
        return b'{"model":%b,"user":%b,%b"prompt":%b,%b}' % (model, user, xargs, prompt, rest)

    def headers(self, client: ClientId) -> list[tuple[bytes, bytes]]:
        """Return the header fields of a client's requests."""
        found = self._heads.get(client)
        if found is None:
            found = [(b"content-type", b"application/json")]
            if self.asking.client_header:
                found.append((self.asking.client_header.lower().encode(), _field(client)))
            keys = self.asking.keys or {}
            key = keys.get(client, keys.get("*", ""))
            if key:
                found.append((b"authorization", b"Bearer " + key.encode()))
            self._heads[client] = found
        return found


def _clean(text: str) -> str:
    """Return ``text`` without what would break a header or JSON."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _field(text: str) -> bytes:
    return _clean(text).encode()
