"""Tokens from the cache are the tokens of the whole, and templates render as engines render them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from fairlead.core.keys import seed_key, token_keys
from fairlead.gateway.key_secret import NO_SECRET
from fairlead.gateway.kv_view import KvView
from fairlead.gateway.kv_wire import Stored
from fairlead.gateway.prompt import Prompt
from fairlead.gateway.tokenizing import INLINE_CHARS, TokenizerError, TokenPrompts, load_prompts, safe_cuts
from fairlead.gateway.wire import CHAT, COMPLETION, EMBEDDING, Asked, decode

SEED = seed_key("m")
SPECIAL = ["<|bos|>", "<|start|>", "<|end|>"]
TEXTS = [
    "You are a helpful assistant. ",
    "the quick brown fox  jumps\n\nover 123 lazy dogs, user assistant",
] * 20
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return made


def sentence_piece(scheme: str) -> Tokenizer:
    """As Llama 2 and Mistral: spaces become a sign that is also put in front of the text."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


def legacy() -> Tokenizer:
    """As Llama 2 before Metaspace: a normalizer puts the sign in front of every stretch of text."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


def with_odd_tokens() -> Tokenizer:
    """Special tokens that take spaces along, are matched after normalisation, or overlap."""
    made = byte_level()
    made.add_special_tokens(
        [
            AddedToken("<|left|>", lstrip=True),
            AddedToken("<|right|>", rstrip=True),
            AddedToken("<|normal|>", normalized=True),
            AddedToken("<|word|>", single_word=True),
            AddedToken("<|end|><|sep|>"),
            AddedToken("xx<|sta"),
        ]
    )
    return made


ALL = {
    "byte level": byte_level(),
    "first": sentence_piece("first"),
    "always": sentence_piece("always"),
    "never": sentence_piece("never"),
    "legacy": legacy(),
    "odd": with_odd_tokens(),
}
BITS = [
    *SPECIAL, "<|left|>", "<|right|>", "<|normal|>", "<|word|>", "xx<|sta", "<|", "|>", "<", "end", " ", "  ",
    "\n", "\n\n", "\t", "user", "a", "fox", "12345", "é", "日本", "👍🏽", "'s", "▁", "<unk>", "the quick ",
    ".", "x" * 40,
]  # fmt: skip


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(ALL)),
    st.lists(st.sampled_from(BITS) | st.text(st.characters(codec="utf-8"), max_size=5), max_size=12),
    st.booleans(),
)
def test_cut_and_cached_is_the_same_as_whole(name: str, bits: list[str], special: bool) -> None:
    text = "".join(bits)
    tokenizer = ALL[name]
    prompts = PROMPTS[name]
    whole = tokenizer.encode(text, add_special_tokens=special).ids
    assert list(prompts.encode(text, special=special)) == whole, "first time"
    assert list(prompts.encode(text, special=special)) == whole, "from the cache"


PROMPTS = {name: TokenPrompts(tokenizer, None, secret=NO_SECRET) for name, tokenizer in ALL.items()}


def test_only_tokens_that_stand_alone_are_cut_at() -> None:
    assert safe_cuts(byte_level()) == SPECIAL
    assert safe_cuts(with_odd_tokens()) == ["<|bos|>"], "the others overlap with an odd one"


def test_cuts_are_given_up_if_the_trial_shows_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that breaks the rule on which cuts rest is found out at the start."""

    class Contextual(TokenPrompts):
        def _encode(self, pieces: list[str], *, special: bool = False) -> Any:
            found = super()._encode(pieces, special=special)
            for tokens in found:
                tokens.append(7)
            return found

    prompts = Contextual(byte_level(), None, secret=NO_SECRET)
    assert prompts._pieces("a<|end|>b") == ["a<|end|>b"]
    assert PROMPTS["byte level"]._pieces("a<|end|>b") == ["a", "<|end|>b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<|bos|>"}, "eos_token": "<|end|>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return tmp_path


def asked_chat(*messages: Any, **more: Any) -> Asked:
    return decode(CHAT, json.dumps({"model": "m", "messages": list(messages)} | more).encode())


def chat(prompts: TokenPrompts, *messages: Any, **more: Any) -> Prompt:
    return prompts.keys("c", CHAT, asked_chat(*messages, **more))


def complete(prompts: TokenPrompts, prompt: Any, **more: Any) -> Prompt:
    body = json.dumps({"model": "m", "prompt": prompt} | more).encode()
    return prompts.keys("c", COMPLETION, decode(COMPLETION, body))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_a_chat_has_the_tokens_of_its_template(folder: Path) -> None:
    prompts = load_prompts(folder, secret=NO_SECRET)
    text = "<|bos|><|start|>user\nhi there<|end|>\n<|start|>assistant\n"
    tokens = byte_level().encode(text, add_special_tokens=False).ids
    keys = token_keys(tokens, 16, SEED, prompts.digest)
    assert chat(prompts, user("hi there")) == Prompt(keys, len(tokens), 16.0)


def test_a_completion_gets_what_the_tokenizer_adds_and_tokens_are_taken_as_they_are(folder: Path) -> None:
    prompts = load_prompts(folder, secret=NO_SECRET, block_tokens=2)
    tokens = byte_level().encode("hi there, fox", add_special_tokens=True).ids
    expected = complete(prompts, "hi there, fox")
    assert (expected.prompt_tokens, tokens[0]) == (len(tokens), 0)
    assert complete(prompts, tokens) == expected
    assert complete(prompts, [tokens]) == expected
    assert complete(prompts, ["hi there, fox"]) == expected
    assert complete(prompts, "hi there, fox", add_special_tokens=False).prompt_tokens == len(tokens) - 1


def test_requests_and_events_agree_on_the_keys(folder: Path) -> None:
    prompts = load_prompts(folder, secret=NO_SECRET, adapters={"ada": "m"})
    tokens = list(range(100, 165))
    for lora, salt, extra in [
        (None, None, [None, None]),
        (None, "s", [["s"], None]),
        ("ada", None, [["ada"], ["ada"]]),
        ("ada", "s", [["ada", "s"], ["ada"]]),
    ]:
        prompt = complete(prompts, tokens, model=lora or "m", cache_salt=salt)
        view = KvView("m", prompts.block_tokens, prompts.digest)
        view.apply(Stored([1, 2], None, tokens[:64], 32, None, "GPU", lora, extra))
        (chain,) = view.chains()
        assert list(chain.keys) == prompt.keys, (lora, salt)


def test_a_block_that_ends_with_the_prompt_is_no_hit_and_has_no_key(folder: Path) -> None:
    prompts = load_prompts(folder, secret=NO_SECRET)
    counts = [len(complete(prompts, [5] * length).keys) for length in (15, 16, 17, 32, 33)]
    assert counts == [0, 0, 1, 1, 2]


def test_much_new_text_wants_a_thread_and_little_does_not(folder: Path) -> None:
    prompts = load_prompts(folder, secret=NO_SECRET)
    long = {"role": "system", "content": "fox " * INLINE_CHARS}
    one, another = asked_chat(long, user("one")), asked_chat(long, user("another"))
    assert prompts.keys_now("c", CHAT, one) is None
    first = prompts.keys("c", CHAT, one)
    assert prompts.keys_now("c", CHAT, one) == first
    other = prompts.keys_now("c", CHAT, another)
    assert other is not None
    assert other.keys[: len(first.keys) - 2] == first.keys[:-2]
    assert prompts.cache.hits > 4 * INLINE_CHARS


def test_the_cache_is_bounded_by_its_text_and_drops_the_oldest() -> None:
    prompts = TokenPrompts(byte_level(), None, secret=NO_SECRET, cache_chars=30)
    for text in ("<|end|>aaaaa", "<|end|>bbbbb", "<|end|>aaaaa", "<|end|>ccccc"):
        prompts.encode(text, special=False)
    assert "<|end|>aaaaa" in prompts.cache
    assert "<|end|>bbbbb" not in prompts.cache
    assert (prompts.cache.chars, len(prompts.cache)) == (24, 2)
    prompts.encode("<|end|>" + "x" * 40, special=False)
    assert (prompts.cache.chars, len(prompts.cache)) == (0, 0)


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (
            lambda p: chat(p, user([{"type": "image_url", "image_url": {"url": "x"}}])),
            "part of type 'image_url'",
        ),
        (lambda p: complete(p, ["a", "b"]), "several prompts"),
        (lambda p: complete(p, [[1, 2], [3]]), "several prompts"),
        (lambda p: complete(p, []), "several prompts"),
        (lambda p: p.keys_now("c", CHAT, asked_chat(user([{"type": "audio"}]))), "part of type 'audio'"),
        (
            lambda p: p.keys("c", EMBEDDING, decode(EMBEDDING, b'{"model": "m", "input": "x"}')),
            "kind 'embedding'",
        ),
        (lambda p: complete(p, [-1, 2] * 20), "token id"),
        (lambda p: complete(p, [2**40] * 20), "token id"),
        (lambda p: complete(p, "x", truncate_prompt_tokens=3), "'truncate_prompt_tokens'"),
    ],
)
def test_a_prompt_that_cannot_be_told_has_no_keys_and_a_guessed_length(
    ask: Callable[[TokenPrompts], Prompt], reason: str, folder: Path
) -> None:
    prompts = load_prompts(folder, secret=NO_SECRET)
    prompt = ask(prompts)
    assert prompt.keys == []
    assert prompt.prompt_tokens >= 1
    assert reason in prompts.unknown_reason
    assert prompts.unknown == 1


def test_a_model_without_a_template_has_no_chats(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    prompts = load_prompts(folder, secret=NO_SECRET)
    assert chat(prompts, user("x")).keys == []
    assert "no chat template" in prompts.unknown_reason


def test_a_folder_without_a_tokenizer_says_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        load_prompts(tmp_path, secret=NO_SECRET)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot read the tokenizer"):
        load_prompts(tmp_path, secret=NO_SECRET)


def test_without_the_extra_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        TokenizerError, match=r"'tokenizers'; install it with: pip install 'fairlead\[tokenizer\]'"
    ):
        load_prompts(tmp_path, secret=NO_SECRET)
