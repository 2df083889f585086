"""What is read of a large body, by a process beside the gateway: see ``readers``.

The gateway needs a request's small fields, the keys of its prompt, and the body as engines get it. Of a
large body the process works these out with the same functions that the gateway uses for small ones, and
tells them in a form that takes the gateway next to no time.
"""

from array import array

import msgspec

from fairlead.gateway.engines import KINDS, SGLANG, VLLM
from fairlead.gateway.identity import Client, clean_name
from fairlead.gateway.prompt import PromptKeys
from fairlead.gateway.wire import (
    Asked,
    ChatAsked,
    CompletionAsked,
    StreamOptions,
    decode,
    hides_usage,
    wants_continuous_usage,
    with_usage,
    with_xargs,
    without_continuous_usage,
)

SMALL_FIELD = 4096
"""Fields of up to so many bytes are told as they are; what matters of larger ones is told by stand-ins."""
MOST_TEXTS = 2**16
"""Prompts in one request that are told apart; more count as so many."""


class Setup(msgspec.Struct):
    """How prompts become keys: the first thing that a reading process is told."""

    tokenizer: str
    block_tokens: int
    secret: bytes


class Ask(msgspec.Struct):
    """A body to be read."""

    kind: str
    size: int
    """Bytes of the body, which follows."""
    ask_usage: bool
    """Whether engines are asked for usage where the client does not ask."""
    name: str | None
    """The client, if engines are told of it in the body."""
    use_user: bool
    """Whether the body's ``user`` names the client."""
    adapters: dict[str, str]
    """The base model of each LoRA adapter."""


class Edit(msgspec.Struct):
    """Another form of the body: ``size`` new bytes, which follow, then the body from ``at`` on."""

    size: int
    at: int


class Told(msgspec.Struct, tag=True):
    """What was read. After it follow the keys, 8 bytes each, and the new bytes of the edits."""

    slim: bytes
    """A body that decodes to the same but for its texts."""
    keys: int
    """How many there are."""
    prompt_size: int
    parts: int
    """Of the prompt, as in ``Chain``."""
    edits: list[Edit]
    """The forms of the body for engines of different kinds."""
    forms: dict[str, int]
    """Which of them each kind of engine gets."""


class Refused(msgspec.Struct, tag=True):
    """Why the body cannot be served: a ``BadRequest``."""

    message: str
    param: str | None
    code: str | None
    status: int


Answer = Told | Refused


def read(ask: Ask, body: bytes, prompts: PromptKeys) -> tuple[Told, list[bytes]]:
    """Return what ``body`` says and the bytes that follow. Raises ``BadRequest``."""
    asked = decode(ask.kind, body)
    chain = prompts.chain(ask.kind, asked)
    slim = slimmed(body, asked)
    follows = [array("Q", chain.keys).tobytes()]
    hide = hides_usage(asked, ask.ask_usage)
    plain = with_usage(body, asked) if hide else body
    xargs, has_xargs = None, False
    if ask.name is not None and isinstance(asked, ChatAsked | CompletionAsked):
        name = (clean_name(asked.user) if ask.use_user and asked.user else "") or ask.name
        xargs, has_xargs = Client(name).xargs, bool(asked.vllm_xargs)
    made: list[bytes] = []
    edits: list[Edit] = []
    forms = {}
    for kind in KINDS:
        continuous = hide and wants_continuous_usage(asked)
        new = for_engine(kind, plain, continuous=continuous, xargs=xargs, has_xargs=has_xargs)
        if new not in made:
            made.append(new)
            edit, head = _edit(body, new)
            edits.append(edit)
            follows.append(head)
        forms[kind] = made.index(new)
    return Told(slim, len(chain.keys), chain.size, chain.parts, edits, forms), follows


def for_engine(kind: str, body: bytes, *, continuous: bool, xargs: bytes | None, has_xargs: bool) -> bytes:
    """Return a body that asks for usage as an engine of this kind is to get it.

    ``continuous``: its client asked for usage in every chunk but not at the end. ``xargs`` tell vLLM the
    client, where it is told so.
    """
    if continuous and kind != SGLANG:  # which gives it to whoever asks for it alone
        body = without_continuous_usage(body)
    if xargs is not None and kind == VLLM:
        body = with_xargs(body, xargs, has_some=has_xargs)
    return body


def slimmed(body: bytes, asked: Asked) -> bytes:
    """Return a small body that decodes to ``asked`` but for its texts, which nobody needs any more."""
    given: dict[str, msgspec.Raw] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields = {}
    for name in asked.__struct_fields__:
        raw = given.get(name)
        if raw is not None:
            small = len(memoryview(raw)) <= SMALL_FIELD
            fields[name] = raw if small else _stand_in(name, getattr(asked, name), raw)
    return msgspec.json.encode(fields)


def _stand_in(name: str, value: object, raw: msgspec.Raw) -> msgspec.Raw:
    """Return a small value that means the same to the scheduler as ``value``, which was ``raw``."""
    if name == "messages":
        return msgspec.Raw(b'[{"role":""}]')
    if name in {"prompt", "input"}:
        if isinstance(value, list):
            return msgspec.Raw(b"[0]" if isinstance(value[0], int) else _texts(len(value)))
        return msgspec.Raw(b'""')
    if isinstance(value, StreamOptions):
        options = {
            "include_usage": value.include_usage,
            "continuous_usage_stats": bool(value.continuous_usage_stats),
        }
        return msgspec.Raw(msgspec.json.encode(options))
    if isinstance(value, str) and name == "user":
        return msgspec.Raw(msgspec.json.encode(clean_name(value)))
    if isinstance(value, str):
        return msgspec.Raw(msgspec.json.encode(value[:SMALL_FIELD]))  # a name, and none that is known
    if isinstance(value, int | float):
        return raw
    return msgspec.Raw(b"[0]")  # something, as the large value is


def _texts(count: int) -> bytes:
    return b"[" + b",".join([b'""'] * min(count, MOST_TEXTS)) + b"]"


def _edit(body: bytes, new: bytes) -> tuple[Edit, bytes]:
    """Return how to make ``new`` of ``body``, and the bytes for it."""
    if new is body:
        return Edit(0, 0), b""
    at = body.index(b"{") + 1
    rest = len(body) - at
    if new.endswith(body[at:]):
        return Edit(len(new) - rest, at), new[: len(new) - rest]
    return Edit(len(new), len(body)), new
