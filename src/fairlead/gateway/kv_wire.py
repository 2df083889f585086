"""The bytes of KV-cache events as vLLM and SGLang publish them, decoded.

A message is [topic, sequence (8 bytes, big endian), payload]; the payload is msgpack of
``[seconds, events, data parallel rank]``. An event is a map with its name under ``type``, or, from
older engines and SGLang, an array with its name first and the fields in order, later ones left out.
Fields and names that are unknown here are ignored: engines add some with every release.

Source: ``vllm/distributed/kv_events.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

EngineHash = int | bytes
"""An engine's own name of a block and all before it. Opaque: its hash function may differ by version."""

END = (-1).to_bytes(8, "big", signed=True)
"""The sequence number that ends a replay."""


class WireError(ValueError):
    """A message that is not what engines are known to send. The text says what was found."""


class Stored(NamedTuple):
    """Blocks were cached: a chain that continues ``parent``."""

    hashes: Sequence[EngineHash]
    parent: EngineHash | None
    token_ids: Sequence[int]
    block_size: int
    """Tokens a block."""
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: Sequence[Sequence[Any] | None] | None = None
    """What beside tokens went into each block's hash; None where the engine does not say."""
    group: int | None = None
    """Which of the model's KV cache groups; None where it has but one."""
    kind: str | None = None
    """The attention of that group, such as ``full_attention``."""


class Removed(NamedTuple):
    """Blocks were evicted."""

    hashes: Sequence[EngineHash]
    medium: str | None = None
    group: int | None = None


class Cleared(NamedTuple):
    """The whole cache was dropped."""


WireEvent = Stored | Removed | Cleared

# Names in the maps, in the order of the positional form.
_STORED = (
    "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
    "extra_keys", "group_idx", "kv_cache_spec_kind",
)  # fmt: skip
_REMOVED = ("block_hashes", "medium", "group_idx")
_FIELDS = {"BlockStored": _STORED, "BlockRemoved": _REMOVED, "AllBlocksCleared": ()}


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
    except msgspec.DecodeError as error:
        raise WireError(f"not msgpack: {error}") from None
    if not isinstance(batch, list) or len(batch) < 2 or not isinstance(batch[1], list):
        raise WireError("a batch is an array of time, events and rank")
    found = []
    for raw in batch[1]:
        event = _decode_event(raw)
        if event is not None:
            found.append(event)
    return found


def _decode_event(raw: object) -> WireEvent | None:
    """Return the event, or None if it is of a kind not known here."""
    if isinstance(raw, dict):
        tag = raw.get("type")
        fields: Mapping[str, Any] = raw
    elif isinstance(raw, list) and raw:
        tag = raw[0]
        fields = dict(zip(_FIELDS.get(str(tag), ()), raw[1:], strict=False))
    else:
        raise WireError(f"an event is a map or an array, not {type(raw).__name__}")
    match tag:
        case "BlockStored":
            return _stored(fields)
        case "BlockRemoved":
            return Removed(_hashes(fields), fields.get("medium"), fields.get("group_idx"))
        case "AllBlocksCleared":
            return Cleared()
        case str():
            return None
        case _:
            raise WireError("an event without a name")


def _stored(fields: Mapping[str, Any]) -> Stored:
    tokens, size, extra = fields.get("token_ids"), fields.get("block_size"), fields.get("extra_keys")
    parent = fields.get("parent_block_hash")
    if not isinstance(tokens, list) or not isinstance(size, int) or size < 1:
        raise WireError("BlockStored without token_ids or block_size")
    if not isinstance(parent, int | bytes | None) or not isinstance(extra, list | None):
        raise WireError("BlockStored with a malformed parent_block_hash or extra_keys")
    return Stored(
        _hashes(fields),
        parent,
        tokens,
        size,
        fields.get("lora_id"),
        fields.get("medium"),
        fields.get("lora_name"),
        extra,
        fields.get("group_idx"),
        fields.get("kv_cache_spec_kind"),
    )


def _hashes(fields: Mapping[str, Any]) -> list[EngineHash]:
    hashes = fields.get("block_hashes")
    if not isinstance(hashes, list) or not all(isinstance(name, int | bytes) for name in hashes):
        raise WireError("an event without block_hashes")
    return hashes
