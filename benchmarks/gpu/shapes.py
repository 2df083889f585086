"""Models without weights: a configuration that vLLM fills at random, and a tokenizer of numbered words."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """What a model looks like, what its engine holds, and what it is asked."""

    config: Mapping[str, Any]
    dtype: str
    options: Mapping[str, str]
    """More for ``vllm serve``."""
    kv_tokens: int
    """KV pool of the short workloads: scarce, so that order matters. 0: what the device has room for."""
    workloads: Mapping[str, str]
    """E1's by name, with the options that make them fit."""
    long: frozenset[str]
    """Workloads that run with the whole KV pool."""


_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

SHAPES = {
    "llama-3.1-8b": Shape(
        {
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
            "max_position_embeddings": 32_768,
        },
        "bfloat16",
        {"--max-num-seqs": "256", "--max-num-batched-tokens": "8192", "--block-size": "16"},
        64_000,
        {name: name for name in ("doc-qa", "tree-of-thoughts", "judge", "multi-turn")},
        frozenset({"doc-qa"}),
    ),
    "tiny": Shape(
        {
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 7,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
            "max_position_embeddings": 4096,
        },
        "float32",
        {"--max-num-seqs": "4", "--max-num-batched-tokens": "768", "--block-size": "32"},
        4_800,
        {
            "doc-qa": "doc-qa:doc_tokens=640,documents=2,question_tokens=32,output_tokens=8",
            "judge": "judge:rubric_tokens=192,article_tokens=384,question_tokens=32,output_tokens=8",
        },
        frozenset(),
    ),
}


def write_model(shape: Shape, folder: Path) -> None:
    """Write what vLLM reads of a model but its weights (``--load-format dummy`` makes those)."""
    # Comes with vLLM, as it does not with this package.
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    config = {**_LLAMA, **shape.config, "torch_dtype": shape.dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = int(shape.config["vocab_size"])
    words = {"<s>": 0, "</s>": 1, **{f"w{number}": number for number in range(2, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))  # noqa: S106 - a token of another kind
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told) + "\n")
