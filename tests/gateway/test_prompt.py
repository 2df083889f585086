import json
import random

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from fairlead.core.keys import byte_keys, seed_key
from fairlead.core.model import BLOCK_KEY_BITS
from fairlead.gateway import prompt as prompt_module
from fairlead.gateway.key_secret import NO_SECRET
from fairlead.gateway.prompt import MOST_BLOCKS, BytePrompts, canonical
from fairlead.gateway.wire import CHAT, COMPLETION, EMBEDDING, CompletionAsked, decode


def asked(messages, **fields):
    return decode(CHAT, json.dumps({"model": "m", "messages": messages, **fields}).encode())


def say(role, content, **fields):
    return {"role": role, "content": content, **fields}


def test_keys_are_those_of_the_core():
    """The loop here is a faster form of ``core.keys.byte_keys``."""
    request = asked([say("system", "s" * 300), say("user", "u" * 77)])
    expected = byte_keys(canonical(request)[0], 64, seed_key("m"), xxh3_64_intdigest)
    prompt = BytePrompts(secret=NO_SECRET).keys("c", CHAT, request)
    assert prompt.keys == expected
    assert len(prompt.keys) == len(canonical(request)[0]) // 64
    assert all(key < 1 << BLOCK_KEY_BITS for key in prompt.keys)


def test_spans_that_were_seen_before_give_the_same_keys(monkeypatch):
    """The cache of spans changes nothing, also when it turns over."""
    monkeypatch.setattr(prompt_module, "_SPANS", 5)
    prompts = BytePrompts(secret=NO_SECRET)
    rng = random.Random(1)
    shared = ["".join(rng.choices("abc", k=3000)) for _ in range(3)]
    for _ in range(200):
        request = asked(
            [say("system", rng.choice(shared)[: rng.randrange(3000)]), say("user", str(rng.random()))]
        )
        expected = byte_keys(canonical(request)[0], 64, seed_key("m"), xxh3_64_intdigest)
        assert prompts.keys("c", CHAT, request).keys == expected
        assert len(prompts._spans) <= 5
        assert len(prompts._old_spans) <= 5


@given(
    st.lists(st.text(max_size=200), min_size=1, max_size=4),
    st.lists(st.text(max_size=200), min_size=1, max_size=3),
)
def test_a_conversation_that_goes_on_keeps_its_keys(first, more):
    prompts = BytePrompts(secret=NO_SECRET)
    short = asked([say("user", text) for text in first])
    longer = asked([say("user", text) for text in first + more])
    keys = prompts.keys("c", CHAT, short).keys
    assert prompts.keys("c", CHAT, longer).keys[: len(keys)] == keys


def test_how_the_json_is_written_makes_no_difference():
    one = b'{"model":"m","messages":[{"role":"user","content":"\\u00e9t\\u00e9"}]}'
    two = '{ "messages": [ {"content": "été", "role": "user"} ], "temperature": 1, "model": "m"}'.encode()
    assert canonical(decode(CHAT, one)) == canonical(decode(CHAT, two))
    parts = asked([say("user", [{"type": "text", "text": "hello"}])])
    assert canonical(parts) == canonical(asked([say("user", "hello")]))


def test_what_changes_the_prompt_changes_the_keys():
    long = "x" * 200
    base = asked([say("user", long)])
    others = [
        asked([say("system", long)]),
        asked([say("user", "y" + long)]),
        asked([say("user", long)], tools=[{"type": "function", "function": {"name": "f"}}]),
        asked([say("user", long)], cache_salt="s"),
        asked([say("user", long)], chat_template_kwargs={"enable_thinking": False}),
        asked(
            [say("user", [{"type": "image_url", "image_url": {"url": "u"}}, {"type": "text", "text": long}])]
        ),
        decode(CHAT, json.dumps({"model": "other", "messages": [say("user", long)]}).encode()),
    ]
    prompts = BytePrompts(secret=NO_SECRET)
    keys = prompts.keys("c", CHAT, base).keys
    for other in others:
        assert prompts.keys("c", CHAT, other).keys[0] != keys[0]
    assert canonical(asked([say("user", long, name="bob")])) != canonical(base)


def test_messages_cannot_be_run_together():
    assert canonical(asked([say("user", "ab"), say("user", "c")])) != canonical(
        asked([say("user", "a"), say("user", "bc")])
    )


def test_plain_prompts_token_lists_and_embeddings():
    prompts = BytePrompts(secret=NO_SECRET)
    text = decode(COMPLETION, json.dumps({"model": "m", "prompt": "p" * 640}).encode())
    assert len(prompts.keys("c", COMPLETION, text).keys) == 10
    ids = decode(COMPLETION, json.dumps({"model": "m", "prompt": list(range(1000, 1100))}).encode())
    assert len(prompts.keys("c", COMPLETION, ids).keys) == 100 * 5 // 64
    many = decode(EMBEDDING, json.dumps({"model": "m", "input": ["a" * 100, "b" * 100]}).encode())
    assert len(prompts.keys("c", EMBEDDING, many).keys) == 201 // 64
    empty = decode(COMPLETION, b'{"model":"m","prompt":""}')
    assert prompts.keys("c", COMPLETION, empty).keys == []
    assert prompts.keys("c", COMPLETION, empty).prompt_tokens >= 1


def test_bytes_per_token_are_learned_and_bounded():
    prompts = BytePrompts(secret=NO_SECRET)
    request = decode(COMPLETION, json.dumps({"model": "m", "prompt": "p" * 1200}).encode())
    for _ in range(200):
        prompts.learn("c", "m", prompts.keys("c", COMPLETION, request), 400)
    prompt = prompts.keys("c", COMPLETION, request)
    assert abs(prompt.prompt_tokens - 400) <= 4
    assert abs(prompt.block_tokens - 64 / 3) < 0.3
    for count in (0, -1, 1, 10**9):
        for _ in range(200):
            prompts.learn("c", "m", prompt, count)
        assert 1 <= prompts.bytes_per_token("c", "m") <= 8
    assert prompts.bytes_per_token("c", "unseen") == 4


def test_token_prompts_have_the_same_bytes_whatever_their_numbers():
    """The fast way to write them out must not differ from the plain one."""
    for tokens in ([], [0], [5, 17, 128_000], [-1, 2**63, 2**64 - 1], [2**64, 7], [True, 3], [False]):
        request = CompletionAsked(model="m", prompt=tokens)
        assert canonical(request)[0] == b"".join(b"%d," % token for token in tokens)


def test_a_prompt_beyond_all_engines_has_keys_for_its_beginning_only():
    text = "".join(f"{n:7} " for n in range(8 * MOST_BLOCKS + 5000))
    short = BytePrompts(secret=NO_SECRET).keys(
        "c", COMPLETION, CompletionAsked(model="m", prompt=text[: 64 * 5000])
    )
    prompt = BytePrompts(secret=NO_SECRET).keys("c", COMPLETION, CompletionAsked(model="m", prompt=text))
    assert len(prompt.keys) == MOST_BLOCKS
    assert prompt.keys[:5000] == short.keys
    assert prompt.prompt_tokens == len(text) // 4 + 1
