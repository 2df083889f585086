"""Make a tiny language model for tests: random weights, a tokenizer trained here, a chat template.

usage: make_tiny_model.py FOLDER

Nothing is downloaded and the result is the same on every run. The parts that a gateway has to agree
on with an engine are like those of real models: byte-level BPE, special tokens around messages, a
begin-of-text token that plain completions get from the tokenizer and chats from the template, tools
in the template. The answers are meaningless, but at temperature 0 always the same.
"""

import random
import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]  # in .venv-engines only
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (  # type: ignore[import-not-found]
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<|begin|>", "<|end|>", "<|start_header|>", "<|end_header|>", "<|turn_end|>", "<|pad|>"]
CONTEXT = 8192
TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
{{- '<|start_header|>tools<|end_header|>\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- '<|turn_end|>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('unknown role ' ~ message.role) }}
{%- endif %}
{{- '<|start_header|>' ~ message.role ~ '<|end_header|>\\n' }}
{%- if message.content is string %}{{ message.content | trim }}
{%- elif message.content %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}{{ '\\n' ~ (call.function | tojson) }}{% endfor %}
{{- '<|turn_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header|>assistant<|end_header|>\\n' }}{% endif %}
"""


def corpus(rng: random.Random) -> list[str]:
    """Text of made-up words in sentences, with the digits and signs that prompts contain."""
    onsets = ["b", "br", "d", "f", "gl", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z", ""]
    rhymes = ["a", "an", "ar", "e", "el", "en", "i", "in", "o", "on", "or", "u", "us", "ai", "ou"]
    words = [
        "".join(rng.choice(onsets) + rng.choice(rhymes) for _ in range(rng.randint(1, 3)))
        for _ in range(2500)
    ]
    texts = []
    for _ in range(2000):
        sentence = " ".join(rng.choices(words, k=rng.randint(5, 30)))
        texts.append(f"{sentence.capitalize()}, {rng.randint(0, 99999)}. ")
    plain = "You are a helpful assistant. Answer the question in a few words. What is the document about? "
    return texts + [plain] * 50


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of 2,048 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2048,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    begin = bpe.token_to_id("<|begin|>")
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    roles = {"bos": "<|begin|>", "eos": "<|turn_end|>", "pad": "<|pad|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **{f"{role}_token": token for role, token in roles.items()},
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of two layers and half a million weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,  # wide: the best token is then far from the next, whatever the rounding
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.float32)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    tokenizer = make_tokenizer(corpus(random.Random(0)))
    tokenizer.save_pretrained(folder)
    model = make_model(tokenizer)
    model.save_pretrained(folder)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {weights:,} weights, {len(tokenizer):,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
