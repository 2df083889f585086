"""OpenAI's requests and answers, as far as a scheduler needs to read them.

Bodies go through unchanged. A request is decoded once, into structs that name only the fields used
here; everything else in it is skipped, not rejected: the engine knows its own options.
"""

import re
from typing import Any

import msgspec

NO_RAW = msgspec.Raw(b"")


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


class Message(msgspec.Struct, gc=False):
    """One message of a chat; the parts that a chat template renders."""

    role: str
    content: str | list[Any] | None = None
    name: str | None = None
    tool_calls: msgspec.Raw = NO_RAW
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Asked(msgspec.Struct, kw_only=True):
    """What all generation requests have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None
    cache_salt: str | None = None

    @property
    def limit(self) -> int | None:
        """The most output tokens that the caller allows."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ChatAsked(Asked, kw_only=True):
    """A body of ``/v1/chat/completions``."""

    messages: list[Message]
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


class CompletionAsked(Asked, kw_only=True):
    """A body of ``/v1/completions``."""

    prompt: str | list[Any]
    vllm_xargs: msgspec.Raw = NO_RAW
    add_special_tokens: Any = None
    truncate_prompt_tokens: Any = None


class EmbeddingAsked(Asked, kw_only=True):
    """A body of ``/v1/embeddings``."""

    input: str | list[Any]


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
