"""A client that knows how block keys are made writes prompts that share keys and no text.

xxh3 of 64 bytes multiplies pairs of words: (word_1 ^ (constant_1 + seed)) * (word_2 ^ (constant_2 - seed)).
Who knows the seed makes one factor zero, and the other word no longer matters. The seed of the first block
is made of the model's name and the prompt's own ``cache_salt``, that of every other block is the key
before it. So without a secret all of them are known.
"""

import json
import random
import string
from itertools import count

import pytest
from xxhash import xxh3_64_intdigest

from fairlead.config import resolve
from fairlead.core.keys import seed_key, token_keys
from fairlead.core.model import BLOCK_KEY_BITS
from fairlead.gateway.app import Gateway
from fairlead.gateway.key_secret import NO_SECRET, KeySecret
from fairlead.gateway.kv_view import KvView
from fairlead.gateway.kv_wire import Stored
from fairlead.gateway.prompt import BytePrompts
from fairlead.gateway.wire import COMPLETION, decode

CONSTANTS = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
)
"""The first of xxh3's."""
PAIRS = ((0, 0), (48, 16), (16, 32), (32, 48))
"""Where a pair of words stands in a block, and its constants among ``CONSTANTS``."""
MASK = (1 << 64) - 1
SECRET = KeySecret.of("a secret of this gateway")
PICK = random.Random(5)


def constant(at):
    return int.from_bytes(CONSTANTS[at : at + 8], "little")


def text(size):
    return "".join(PICK.choices(string.ascii_letters, k=size)).encode()


def fits(data):
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def forged_block(seed):
    """Return 64 bytes of text, and where 8 of them do not matter; None if these must be no text."""
    for at, where in PAIRS:
        for word, other, factor in (
            (at, at + 8, constant(where) + seed),
            (at + 8, at, constant(where + 8) - seed),
        ):
            zero = (factor & MASK).to_bytes(8, "little")
            if fits(zero):
                block = bytearray(text(64))
                block[word : word + 8] = zero
                return bytes(block), other
    return None


def forge(blocks):
    """Return a ``cache_salt``, and the blocks of a prompt with the places of the free bytes."""
    for number in count():
        salt = f"salt {number}"
        key = seed_key("m", salt=salt)
        found = []
        for _ in range(blocks):
            for _ in range(100):
                made = forged_block(key)
                after = xxh3_64_intdigest(made[0], key) & (1 << BLOCK_KEY_BITS) - 1 if made else 0
                if made and (len(found) == blocks - 1 or forged_block(after)):
                    found.append(made)
                    key = after
                    break
            else:
                break
        if len(found) == blocks:
            return salt, found
    raise AssertionError


def asked(prompt, salt):
    body = {"model": "m", "prompt": prompt.decode(), "cache_salt": salt}
    return decode(COMPLETION, json.dumps(body).encode())


def forged_prompts(blocks=20, prompts=30):
    """Return requests of which no block is like the block of another one."""
    salt, found = forge(blocks)
    out = []
    for _ in range(prompts):
        prompt = b""
        for block, free in found:
            prompt += block[:free] + text(8) + block[free + 8 :]
        out.append(asked(prompt, salt))
    return out


def test_prompts_that_share_no_block_share_no_key():
    requests = forged_prompts()
    for begin in range(0, 20 * 64, 64):
        assert len({request.prompt.encode()[begin : begin + 64] for request in requests}) == 30

    def distinct(prompts):
        return len({key for request in requests for key in prompts.keys("c", COMPLETION, request).keys})

    assert distinct(BytePrompts(secret=NO_SECRET)) == 20  # the forgery is one
    assert distinct(BytePrompts(secret=SECRET)) == 20 * 30


def forged_spans():
    """Return two requests of 512 bytes for whose spans xxh3 gives one name.

    Beyond 240 bytes it adds the words, and products of the halves of (word ^ constant). With upper
    halves of zero, two words may change as long as their sum stays.
    """
    for number in count():
        salt = f"salt {number}"
        seed = seed_key("m", salt=salt)
        upper = [
            ((constant(at) + (seed if at % 16 == 0 else -seed)) & MASK).to_bytes(8, "little")[4:]
            for at in (0, 8)
        ]
        if all(fits(half) for half in upper):
            break
    one = bytearray(text(512))
    for at, low, half in ((0, b"aaaa", upper[0]), (64, b"cccc", upper[1])):
        one[at : at + 8] = low + half
    two = bytearray(one)
    two[0:4], two[64:68] = b"bbbb", b"bbbb"
    return asked(bytes(one), salt), asked(bytes(two), salt)


def test_names_of_spans_cannot_be_forged_either():
    one, two = forged_spans()
    for secret, alike in ((NO_SECRET, True), (SECRET, False)):
        prompts = BytePrompts(secret=secret)
        assert (prompts.keys("c", COMPLETION, one).keys == prompts.keys("c", COMPLETION, two).keys) is alike


def test_a_secret_that_is_named_gives_the_same_keys_in_every_process():
    request = asked(text(640), "")
    keys = [
        BytePrompts(secret=KeySecret.of(name)).keys("c", COMPLETION, request).keys for name in ("a", "a", "b")
    ]
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_blocks_of_events_have_the_keys_of_prompts():
    """In tokenizer mode both sides use the secret; another one, and nothing would match."""
    tokens = list(range(64))
    view = KvView("m", 16, xxh3_64_intdigest, secret=SECRET)
    (gained,) = view.apply(Stored([b"h1", b"h2", b"h3", b"h4"], None, tokens, 16))
    expected = token_keys(tokens, 16, seed_key("m", secret=SECRET), xxh3_64_intdigest)
    assert list(gained.keys) == expected
    assert not set(expected) & set(token_keys(tokens, 16, seed_key("m"), xxh3_64_intdigest))


def test_a_secret_is_not_shown():
    for shown in (repr(SECRET), str(SECRET), f"{SECRET}", f"{[SECRET]}"):
        assert "KeySecret(...)" in shown
        assert bytes(SECRET).hex() not in shown
    with pytest.raises(ValueError, match="64"):
        seed_key("m", secret=bytes(65))


def test_a_gateway_draws_its_secret_or_takes_the_named_one():
    request = asked(text(640), "")

    def keys(**options):
        gateway = Gateway(resolve({"worker_urls": ["http://127.0.0.1:1"], **options}))
        return set(gateway.prompts.keys("c", COMPLETION, request).keys)

    named = {"prefix_secret": "the same on all of them"}
    assert keys(**named) == keys(**named)
    public = set(BytePrompts(secret=NO_SECRET).keys("c", COMPLETION, request).keys)
    drawn = [keys(), keys(), keys(**named), public]
    assert len(set.union(*drawn)) == 40
