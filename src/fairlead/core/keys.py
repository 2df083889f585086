"""Block keys: one integer for each full block of a prompt, chained so that it names the whole prefix.

key_k = H(key_{k-1}, block_k); key_0 is a seed made of everything else that decides whether two
prompts may share KV blocks, and of a secret. A fast hash is no cryptographic one: whoever can compute
keys can write different prompts with the same keys. So where strangers write prompts, ``seed_key`` gets a
secret, and nobody else can compute a key.

The hash is an argument: the default needs the standard library only, while a hot path may pass a faster
one such as ``xxhash.xxh3_64_intdigest``. Keys of different hashes never match each other, so one index is
fed by one hash.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from fairlead.core.model import BLOCK_KEY_BITS, BlockKey

Digest = Callable[[bytes, int], int]
"""``digest(block, previous key)``: a well mixed integer of at least 60 bits, the same in every process."""

TOKEN_BYTES = 4
"""Bytes a token id takes in a token block: unsigned, little endian."""

_MASK = (1 << BLOCK_KEY_BITS) - 1


def blake2b_digest(block: bytes, previous: int) -> int:
    """Return 64 bits of BLAKE2b of ``block``, keyed with the previous key."""
    return int.from_bytes(
        blake2b(block, digest_size=8, key=previous.to_bytes(8, "little")).digest(), "little"
    )


def seed_key(model: str, lora: str = "", salt: str = "", secret: bytes = b"") -> BlockKey:
    """Return key_0. Prompts share blocks only if model, LoRA adapter, cache salt and secret are the same.

    Raises ValueError if the secret has more than 64 bytes.
    """
    state = blake2b(digest_size=8, key=secret)
    for part in (model, lora, salt):
        text = part.encode("utf-8", "surrogatepass")
        state.update(len(text).to_bytes(8, "little"))  # lengths keep ("ab", "c") apart from ("a", "bc")
        state.update(text)
    return int.from_bytes(state.digest(), "little") & _MASK


def chain_keys(blocks: Iterable[bytes], seed: int, digest: Digest = blake2b_digest) -> list[BlockKey]:
    """Return one 60-bit key a block; each depends on the seed and on every block up to its own."""
    key = seed
    keys = []
    for block in blocks:
        key = digest(block, key) & _MASK
        keys.append(key)
    return keys


def byte_keys(data: bytes, block_bytes: int, seed: int, digest: Digest = blake2b_digest) -> list[BlockKey]:
    """Return the keys of the full blocks of ``data``; a shorter rest has none.

    Raises ValueError if ``block_bytes`` is not positive.
    """
    if block_bytes < 1:
        raise ValueError(f"a block has at least one byte, not {block_bytes}")
    full = len(data) - len(data) % block_bytes
    return chain_keys((data[at : at + block_bytes] for at in range(0, full, block_bytes)), seed, digest)


def token_keys(
    token_ids: Sequence[int], block_tokens: int, seed: int, digest: Digest = blake2b_digest
) -> list[BlockKey]:
    """Return the keys of the full blocks of ``block_tokens`` tokens; a shorter rest has none.

    Raises ValueError if ``block_tokens`` is not positive, OverflowError for an id beyond 32 bits.
    """
    if block_tokens < 1:
        raise ValueError(f"a block has at least one token, not {block_tokens}")
    packed = array("I", token_ids)
    if sys.byteorder != "little":  # equal keys on every machine
        packed.byteswap()
    return byte_keys(packed.tobytes(), block_tokens * TOKEN_BYTES, seed, digest)
