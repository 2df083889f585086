"""Both forms of the events decode alike, and nothing that arrives can do worse than a WireError."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.gateway.kv_wire import Cleared, Removed, Stored, WireError, decode_batch, decode_message
from tests.gateway.kv_fakes import CLEARED, positional, removed, stored


def batch(*events: Any) -> bytes:
    return msgspec.msgpack.encode([1.5, list(events), 0])


EVENTS = [stored([1, 2], range(32), parent=9), removed([b"ab", 3]), CLEARED]


def test_maps_and_arrays_mean_the_same() -> None:
    assert decode_batch(batch(*EVENTS)) == decode_batch(batch(*map(positional, EVENTS)))
    assert decode_batch(batch(*EVENTS)) == [
        Stored([1, 2], 9, list(range(32)), 16, None, "GPU", None, [None, None], 0, "full_attention"),
        Removed([b"ab", 3], "GPU", 0),
        Cleared(),
    ]


def test_the_short_arrays_of_older_engines_decode() -> None:
    assert decode_batch(batch(["BlockStored", [1], None, [5, 6], 2, None], ["BlockRemoved", [1]])) == [
        Stored([1], None, [5, 6], 2),
        Removed([1]),
    ]


def test_what_is_unknown_is_skipped() -> None:
    events = decode_batch(batch({"type": "BlockMoved", "to": 3}, CLEARED | {"why": "x"}, ["Nothing", 1]))
    assert events == [Cleared()]


@pytest.mark.parametrize(
    "event",
    [7, [], [3], {}, {"type": 3}, {"type": "BlockRemoved"}, {"type": "BlockRemoved", "block_hashes": ["a"]}]
    + [stored([1], range(16)) | {name: value} for name, value in [
        ("token_ids", None), ("block_size", 0), ("block_size", "16"), ("block_hashes", 1),
        ("parent_block_hash", 1.5), ("extra_keys", 3), ("extra_keys", [3]), ("lora_name", 1), ("medium", []),
        ("block_size", -16), ("block_size", 10**9), ("block_size", 1.5), ("block_hashes", [b"x" * 65]),
        ("parent_block_hash", b"x" * 1000), ("group_idx", "0"),
    ]],
)  # fmt: skip
def test_a_malformed_event_is_an_error(event: Any) -> None:
    with pytest.raises(WireError):
        decode_batch(batch(event))


@given(st.binary())
def test_any_bytes_are_a_batch_or_an_error(payload: bytes) -> None:
    with suppress(WireError):
        decode_batch(payload)


def test_a_message_is_read_from_its_end() -> None:
    number = (258).to_bytes(8, "big")
    assert decode_message([b"topic", number, b"x"]) == (258, b"x")
    assert decode_message([b"", number, b"x"]) == (258, b"x")
    assert decode_message([b"", b"", b"\xff" * 8, b""]) == (-1, b"")
    for frames in ([], [b"x"], [b"topic", b"short", b"x"]):
        with pytest.raises(WireError):
            decode_message(frames)
