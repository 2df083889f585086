"""The bytes of KV-cache events as vLLM and SGLang publish them, decoded.

A message is [topic, sequence (8 bytes, big endian), payload]; the payload is msgpack of
``[seconds, events, data parallel rank]``. An event is a map with its name under ``type``, or, from
older engines and SGLang, an array with its name first and the fields in order, later ones left out.
Fields and names that are unknown here are ignored: engines add some with every release.

Source: ``vllm/distributed/kv_events.py``.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

EngineHash = int | Annotated[bytes, msgspec.Meta(max_length=64)]
"""An engine's own name of a block and all before it. Opaque: its hash function may differ by version."""


class WireError(ValueError):
    """A message that is not what engines are known to send. The text says what was found."""


class Stored(msgspec.Struct, frozen=True):
    """Blocks were cached: a chain that continues ``parent_block_hash``."""

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    token_ids: list[Any]
    """Integers, or pairs of them under speculative decoding."""
    block_size: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    """Tokens a block."""
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    """What beside tokens went into each block's hash; None where the engine does not say."""
    group_idx: int | None = None
    """Which of the model's KV cache groups; None where it has but one."""
    kv_cache_spec_kind: str | None = None
    """The attention of that group, such as ``full_attention``."""


class Removed(msgspec.Struct, frozen=True):
    """Blocks were evicted."""

    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None


class Cleared(msgspec.Struct, frozen=True):
    """The whole cache was dropped."""


WireEvent = Stored | Removed | Cleared

_KINDS: dict[object, type[WireEvent]] = {
    "BlockStored": Stored,
    "BlockRemoved": Removed,
    "AllBlocksCleared": Cleared,
}


def decode_message(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """Return the sequence number and the payload of a live message or of one of a replay; -1 ends one.

    Raises ``WireError``. Only the last two frames count: some engines leave out the topic in replays.
    """
    if len(frames) < 2 or len(frames[-2]) != 8:
        raise WireError(f"a message of {len(frames)} frames without a sequence number")
    return int.from_bytes(frames[-2], "big", signed=True), frames[-1]


def decode_batch(payload: bytes) -> list[WireEvent]:
    """Return the events of one payload, in order. Raises ``WireError``."""
    try:
        batch = msgspec.msgpack.decode(payload)
    # Bad UTF-8, a map with a list as key, or nesting without end: each has an error of its own.
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"not msgpack: {error}") from None
    if not isinstance(batch, list) or len(batch) < 2 or not isinstance(batch[1], list):
        raise WireError("a batch is an array of time, events and rank")
    try:
        return [event for event in map(_decode_event, batch[1]) if event is not None]
    except msgspec.ValidationError as error:
        raise WireError(f"a malformed event: {error}") from None


def _decode_event(raw: object) -> WireEvent | None:
    """Return the event, or None if it is of a kind not known here."""
    if isinstance(raw, dict):
        tag = raw.get("type")
    elif isinstance(raw, list) and raw:
        tag = raw[0]
    else:
        raise WireError(f"an event is a map or an array, not {type(raw).__name__}")
    if not isinstance(tag, str):
        raise WireError("an event without a name")
    kind = _KINDS.get(tag)
    if kind is None:
        return None
    if isinstance(raw, list):
        raw = dict(zip(kind.__struct_fields__, raw[1:], strict=False))
    return msgspec.convert(raw, kind)
