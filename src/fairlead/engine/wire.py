"""OpenAI's request bodies as this engine reads them, with vLLM's extra fields.

What is not modelled and would change an answer's shape (several choices, log probabilities, echo,
structured output) is refused by name; other unknown fields are ignored, as vLLM does.
"""

from typing import Annotated, Literal, NamedTuple, TypeVar, cast

import msgspec

from fairlead.engine.text import Wish
from fairlead.engine.tokens import Tokens, encode, from_ids, render_chat

T = TypeVar("T")


class BadRequestError(ValueError):
    """A request that is answered with an error status; ``status`` is 400 unless said."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


Count = Annotated[int, msgspec.Meta(ge=1)]
Whole = Annotated[int, msgspec.Meta(ge=0)]
Inputs = str | list[int | str | list[int]]
"""A text, its token ids, or several of either."""


class StreamOptions(msgspec.Struct):
    """``stream_options``."""

    include_usage: bool | None = False


class ResponseFormat(msgspec.Struct):
    """``response_format``: free text is all that is modelled."""

    type: str = "text"


class Extra(msgspec.Struct):
    """``vllm_xargs``: who the request is for, when a gateway says so."""

    client_id: str | None = None


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str = "text"
    text: str | None = None


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: msgspec.Raw | None = None


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    max_tokens: Count | None = None
    min_tokens: Whole = 0
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    response_format: ResponseFormat | None = None
    cache_salt: str | None = None
    vllm_xargs: Extra | None = None


class ChatBody(_Body, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: msgspec.Raw | None = None
    logprobs: bool | None = False


class CompletionBody(_Body, kw_only=True):
    """``POST /v1/completions``."""

    prompt: Inputs
    logprobs: int | None = None
    echo: bool | None = False
    best_of: int | None = None


class EmbeddingBody(msgspec.Struct):
    """``POST /v1/embeddings``."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64


class TokenizeBody(msgspec.Struct):
    """``POST /tokenize``: a prompt, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = False


class DetokenizeBody(msgspec.Struct):
    """``POST /detokenize``."""

    tokens: list[int]
    model: str | None = None


class Generation(NamedTuple):
    """A checked request for one generation."""

    chat: bool
    model: str | None
    prompt: Tokens
    max_tokens: int | None
    wish: Wish
    """With no limit but its own; the room in the context comes later."""
    seed: int
    salt: str
    client: str | None
    stream: bool
    include_usage: bool


def parse_json(data: bytes, kind: type[T]) -> T:
    """Decode a body; ``BadRequestError`` names the field that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        field = where.rstrip("`")
        raise BadRequestError(f"{field}: {message}" if field else message, field or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from None


def parse_chat(data: bytes) -> Generation:
    """Read a chat completion request."""
    body = parse_json(data, ChatBody)
    _refuse(body)
    if body.logprobs:
        raise BadRequestError("logprobs are not modelled", "logprobs")
    preamble = (
        bytes(body.tools) if body.tools is not None and bytes(body.tools) not in {b"null", b"[]"} else b""
    )
    prompt = render_chat(read_messages(body.messages), preamble)
    return _generation(body, prompt, body.max_completion_tokens or body.max_tokens, chat=True)


def parse_completion(data: bytes) -> Generation:
    """Read a plain completion request; 16 tokens when it sets no limit, as OpenAI's."""
    body = parse_json(data, CompletionBody)
    _refuse(body)
    for name, asked in (("logprobs", body.logprobs is not None), ("echo", body.echo)):
        if asked:
            raise BadRequestError(f"{name} is not modelled", name)
    if (body.best_of or 1) != 1:
        raise BadRequestError("best_of must be 1", "best_of")
    prompts = read_inputs(body.prompt, "prompt")
    if len(prompts) > 1:
        raise BadRequestError("one prompt a request: send several requests instead", "prompt")
    return _generation(body, prompts[0], body.max_tokens or 16, chat=False)


def read_messages(messages: list[Message]) -> list[tuple[str, str]]:
    """Return (role, text) of each message."""
    return [(message.role, _text_of(message)) for message in messages]


def read_inputs(given: Inputs, param: str) -> list[Tokens]:
    """Return the token sequences of a prompt or of embedding inputs; none may be empty."""
    if isinstance(given, str):
        inputs = [encode(given)]
    elif given and all(isinstance(one, int) for one in given):
        inputs = [read_ids(cast("list[int]", given), param)]
    else:
        inputs = [_read_input(one, param) for one in given]
    if not inputs or not all(inputs):
        raise BadRequestError(f"{param} must not be empty", param)
    return inputs


def _read_input(one: int | str | list[int], param: str) -> Tokens:
    if isinstance(one, int):
        raise BadRequestError(f"{param} mixes token ids with texts or lists", param)
    return encode(one) if isinstance(one, str) else read_ids(one, param)


def read_ids(ids: list[int], param: str) -> Tokens:
    """Return token ids as tokens."""
    try:
        return from_ids(ids)
    except OverflowError:
        raise BadRequestError("token ids are integers from 0 to 2^32 - 1", param) from None


def _text_of(message: Message) -> str:
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.text is None:
                raise BadRequestError(f"messages: content of type '{part.type}' is not modelled", "messages")
        text = "".join(part.text or "" for part in content)
    else:
        text = content or ""
    if message.tool_calls is not None:
        calls = bytes(message.tool_calls)
        text += "" if calls == b"null" else calls.decode()
    return text


def _refuse(body: _Body) -> None:
    if (body.n or 1) != 1:
        raise BadRequestError("n must be 1: several choices are not modelled", "n")
    if body.response_format is not None and body.response_format.type != "text":
        kind = body.response_format.type
        raise BadRequestError(f"response_format '{kind}' is not modelled", "response_format")
    if body.stream_options is not None and not body.stream:
        raise BadRequestError("stream_options are only allowed with stream: true", "stream_options")


def _generation(body: _Body, prompt: Tokens, max_tokens: int | None, *, chat: bool) -> Generation:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise BadRequestError("min_tokens must not exceed max_tokens", "min_tokens")
    return Generation(
        chat=chat,
        model=body.model,
        prompt=prompt,
        max_tokens=max_tokens,
        wish=Wish(
            0, body.min_tokens, body.ignore_eos, tuple(filter(None, stop)), body.include_stop_str_in_output
        ),
        seed=body.seed or 0,
        salt=body.cache_salt or "",
        client=body.vllm_xargs.client_id if body.vllm_xargs else None,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
