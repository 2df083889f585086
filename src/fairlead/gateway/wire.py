"""OpenAI's requests and answers, as far as a scheduler needs to read them.

Bodies go through unchanged. A request is decoded once, into structs that name only the fields used
here; everything else in it is skipped, not rejected: the engine knows its own options.
"""

import re
from typing import Any

import msgspec

from fairlead.core.outside import whole

NO_RAW = msgspec.Raw(b"")
MOST_TOKENS = 2**24
"""More output tokens than a KV pool holds: a larger limit is none."""
MOST_ANSWERS = 2**14
"""The largest ``n`` that an engine takes (vLLM); a larger one is refused there."""
MOST_BEST_OF = 20
"""The largest ``best_of`` of OpenAI's interface. Engines of today ignore the field."""


class BadRequest(Exception):  # noqa: N818 - an answer, named as HTTP names it
    """A body that cannot be served: status 400, or 404 for an unknown model."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class StreamOptions(msgspec.Struct, gc=False):
    """``stream_options`` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: Any = None


class Message(msgspec.Struct, gc=False):
    """One message of a chat; the parts that a chat template renders."""

    role: str
    content: str | list[Any] | None = None
    name: str | None = None
    tool_calls: msgspec.Raw = NO_RAW
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Most(msgspec.Struct, frozen=True, gc=False):
    """The most that one request can take of an engine, by what it asks for."""

    prompts: int = 1
    """Prompts in it: each can be as long as the engine's KV pool."""
    sequences: int = 1
    """Answers to all of its prompts."""
    output: int | None = None
    """Output tokens of all its sequences; None if it sets no limit."""
    limit: int | None = None
    """Output tokens of each sequence, as ``Asked.limit`` has it."""


Number = int | float | bool | None
"""A number as JSON has it: what does not fit the field is for the engine to refuse."""


class Asked(msgspec.Struct, kw_only=True):
    """What all generation requests have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Number = None
    max_completion_tokens: Number = None
    n: Any = None
    prompt_logprobs: Any = None
    prompt_logprob_token_ids: Any = None
    user: str | None = None
    cache_salt: str | None = None

    @property
    def limit(self) -> int | None:
        """The most output tokens of a sequence that the caller allows; None if that is no limit.

        Of two names the newer one counts. Engines refuse limits below 1, or take them for none.
        """
        older, newer = self.max_tokens, self.max_completion_tokens
        limit = None if older is None else _limit(older)
        if newer is not None and (older is None or limit is not None):
            limit = _limit(newer)
        return limit

    @property
    def most(self) -> Most:
        """The most that the request can take of an engine."""
        prompts = self._prompts()
        sequences = prompts * self._answers()
        limit = output = self.limit
        if output is not None:
            if self.max_completion_tokens is not None and self.max_tokens is not None:
                output = max(output, _limit(self.max_tokens) or 0)  # some engines know only the older name
            output *= sequences
        return Most(prompts, sequences, output, limit)

    @property
    def reads_cache(self) -> bool:
        """Whether an engine takes cached blocks of the prompt: not where it has to tell each token's odds."""
        return self.prompt_logprobs is None and self.prompt_logprob_token_ids is None

    def _prompts(self) -> int:
        return 1

    def _answers(self) -> int:
        """Return the sequences for each prompt; 1 where an engine refuses the number."""
        return 1 if self.n is None else whole(self.n, MOST_ANSWERS, 1) or 1


class ChatAsked(Asked, kw_only=True):
    """A body of ``/v1/chat/completions``."""

    messages: list[Message]
    echo: Any = None
    top_logprobs: Any = 0
    vllm_xargs: msgspec.Raw = NO_RAW
    tools: msgspec.Raw = NO_RAW
    chat_template_kwargs: msgspec.Raw = NO_RAW
    # What follows matters only to whoever renders the template here: the engine checks the types.
    add_generation_prompt: Any = None
    add_special_tokens: Any = None
    chat_template: Any = None
    continue_final_message: Any = None
    documents: Any = None
    mm_processor_kwargs: Any = None
    reasoning_effort: Any = None
    truncate_prompt_tokens: Any = None

    @property
    def reads_cache(self) -> bool:
        """As vLLM has it: ``echo`` gives the prompt's odds too, unless ``top_logprobs`` is null."""
        return super().reads_cache and not (self.echo and self.top_logprobs is not None)


class CompletionAsked(Asked, kw_only=True):
    """A body of ``/v1/completions``."""

    prompt: str | list[Any]
    vllm_xargs: msgspec.Raw = NO_RAW
    best_of: Any = None
    echo: Any = None
    logprobs: Any = None
    add_special_tokens: Any = None
    truncate_prompt_tokens: Any = None

    @property
    def reads_cache(self) -> bool:
        """As vLLM and SGLang have it: ``echo`` gives the prompt's odds too, if there are any."""
        return super().reads_cache and not (self.echo and self.logprobs is not None)

    def _prompts(self) -> int:
        return _texts_in(self.prompt)

    def _answers(self) -> int:
        answers = super()._answers()
        return answers if self.best_of is None else max(answers, whole(self.best_of, MOST_BEST_OF, 1) or 1)


class EmbeddingAsked(Asked, kw_only=True):
    """A body of ``/v1/embeddings``."""

    input: str | list[Any]

    @property
    def limit(self) -> int | None:
        """No output at all."""
        return 0

    @property
    def most(self) -> Most:
        """The most that the request can take of an engine: a sequence for each text."""
        texts = _texts_in(self.input)
        return Most(texts, texts, 0, 0)


def _limit(said: Number) -> int | None:
    """Return a limit of output tokens, clamped to what any KV pool holds; None for what is none."""
    if type(said) is int:  # the usual case
        return min(said, MOST_TOKENS) if said > 0 else None
    limit = whole(said, MOST_TOKENS, 1)
    if limit is None and type(said) is not bool and said is not None and said > MOST_TOKENS:
        return MOST_TOKENS
    return limit


def _texts_in(prompt: str | list[Any]) -> int:
    """Return how many prompts these are: a list of tokens is one, a list of texts or of lists as many."""
    if not prompt or isinstance(prompt, str) or isinstance(prompt[0], int):
        return 1
    return len(prompt)


CHAT, COMPLETION, EMBEDDING = "chat", "completion", "embedding"

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    CHAT: msgspec.json.Decoder(ChatAsked),
    COMPLETION: msgspec.json.Decoder(CompletionAsked),
    EMBEDDING: msgspec.json.Decoder(EmbeddingAsked),
}

_PATH = re.compile(r" - at `\$\.?(.*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")


def decode(kind: str, body: bytes) -> Asked:
    """Return the request in ``body``. Raises ``BadRequest`` naming the field that is wrong."""
    try:
        asked: Asked = _DECODERS[kind].decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from None
    if not asked.model:
        raise BadRequest("'model' must not be empty", "model")
    if kind == CHAT and not asked.messages:  # type: ignore[attr-defined] # CHAT decodes to ChatAsked
        raise BadRequest("'messages' must not be empty", "messages")
    return asked


def _explain(text: str) -> BadRequest:
    """Turn msgspec's message into one that names the field as the caller wrote it."""
    found = _PATH.search(text)
    path = found[1] if found else ""
    reason = text[: found.start()] if found else text
    missing = _MISSING.match(reason)
    if missing:
        param = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"missing required parameter: '{param}'", param, "missing_required_parameter")
    if not path:
        return BadRequest(f"the body must be a JSON object: {reason}", code="invalid_type")
    return BadRequest(f"invalid type for '{path}': {reason[:1].lower()}{reason[1:]}", path, "invalid_type")


def hides_usage(asked: Asked, ask_usage: bool) -> bool:
    """Return whether engines are to be asked for the usage of a stream whose client did not ask for it."""
    if not ask_usage or asked.stream is not True:
        return False
    return asked.stream_options is None or not asked.stream_options.include_usage


def wants_continuous_usage(asked: Asked) -> bool:
    """Return whether the client asked for usage in every chunk."""
    return asked.stream_options is not None and bool(asked.stream_options.continuous_usage_stats)


def with_usage(body: bytes, asked: Asked) -> bytes:
    """Return the body of a streamed request with ``stream_options.include_usage`` set.

    Usually a splice behind the opening brace. Only a body that has ``stream_options`` of its own is
    written anew, since two fields of one name would leave the choice to the engine.
    """
    if asked.stream_options is None and b'"stream_options"' not in body:
        at = body.index(b"{") + 1
        return b'%b"stream_options":{"include_usage":true},%b' % (body[:at], body[at:])
    fields: dict[str, msgspec.Raw] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    options: dict[str, msgspec.Raw] = (
        msgspec.json.decode(fields.get("stream_options", b"null"), type=dict[str, msgspec.Raw] | None) or {}
    )
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def without_continuous_usage(body: bytes) -> bytes:
    """Return a body of ``with_usage`` with ``stream_options.continuous_usage_stats`` turned off.

    vLLM heeds it only beside ``include_usage``: whoever asked for the one alone gets no usage from it.
    """
    fields: dict[str, msgspec.Raw] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    options = msgspec.json.decode(fields["stream_options"], type=dict[str, msgspec.Raw])
    options["continuous_usage_stats"] = msgspec.Raw(b"false")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def with_xargs(body: bytes, xargs: bytes, *, has_some: bool) -> bytes:
    """Return the body with the fields of ``xargs``, a JSON object, in its ``vllm_xargs``.

    A splice, unless the body ``has_some`` of its own: then both are merged, and those of ``xargs`` count.
    What is not an object is left for the engine to refuse.
    """
    if not has_some:
        at = body.index(b"{") + 1
        return b'%b"vllm_xargs":%b,%b' % (body[:at], xargs, body[at:])
    fields: dict[str, msgspec.Raw] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    own = msgspec.json.decode(fields["vllm_xargs"])
    if own is None or isinstance(own, dict):
        fields["vllm_xargs"] = msgspec.Raw(msgspec.json.encode((own or {}) | msgspec.json.decode(xargs)))
    return msgspec.json.encode(fields)


class PromptDetails(msgspec.Struct, gc=False):
    """``usage.prompt_tokens_details``, as the engine wrote it."""

    cached_tokens: Any = None


class Usage(msgspec.Struct, gc=False):
    """``usage`` of an answer, as the engine wrote it: nothing of it is checked yet (see ``Flow``)."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> Any:
        """Prompt tokens that the engine found in its cache; None if it does not say."""
        details = self.prompt_tokens_details
        return None if details is None else details.cached_tokens


UNREADABLE = Usage("unreadable")
"""Stands for a usage that is none: a text, a list, figures that no number can hold."""


class _Answer(msgspec.Struct, gc=False):
    usage: Usage | None = None


class _RawAnswer(msgspec.Struct, gc=False):
    usage: msgspec.Raw = NO_RAW


class _RawDetails(msgspec.Struct, gc=False):
    cached_tokens: msgspec.Raw = NO_RAW


class _RawUsage(msgspec.Struct, gc=False):
    prompt_tokens: msgspec.Raw = NO_RAW
    completion_tokens: msgspec.Raw = NO_RAW
    prompt_tokens_details: msgspec.Raw = NO_RAW


_ANSWER = msgspec.json.Decoder(_Answer)
_USAGE: msgspec.json.Decoder[Usage | None] = msgspec.json.Decoder(Usage | None)
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def usage_of(body: bytes) -> Usage | None:
    """Return the usage in a whole answer, or None if there is none. Raises nothing."""
    try:
        return _ANSWER.decode(body).usage
    except _NOT_JSON:
        pass
    try:
        return usage_from(msgspec.json.decode(body, type=_RawAnswer).usage)
    except _NOT_JSON:
        return None


def usage_from(raw: msgspec.Raw) -> Usage | None:
    """Return the usage that is the JSON text ``raw``, or None if that is empty or null. Raises nothing."""
    if not raw:
        return None
    try:
        return _USAGE.decode(raw)
    except _NOT_JSON:
        pass
    # One figure that no number can hold must not hide the others.
    try:
        parts = msgspec.json.decode(raw, type=_RawUsage)
        details = parts.prompt_tokens_details
        cached = _figure(msgspec.json.decode(details, type=_RawDetails).cached_tokens) if details else None
    except _NOT_JSON:
        return UNREADABLE
    return Usage(_figure(parts.prompt_tokens), _figure(parts.completion_tokens), PromptDetails(cached))


def _figure(raw: msgspec.Raw) -> Any:
    """Return what ``raw`` says, or a text in place of what cannot be read."""
    try:
        return msgspec.json.decode(raw) if raw else None
    except _NOT_JSON:
        return "unreadable"
