"""A model of 18 million random weights: large enough that prompts, not steps, take the time on a CPU.

usage: python -m tests.engines.plugin_model FOLDER_OF_TINY_MODEL FOLDER
"""

import shutil
import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM


def make(tiny: Path, folder: Path) -> None:
    """Save a model with the tokenizer of the tiny one. The result is the same on every run."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(tiny, part, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny)
    config.update(
        {
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 7,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "initializer_range": 0.1,
        }
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    model.save_pretrained(part)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} weights")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
