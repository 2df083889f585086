"""Named profiles: one model on one GPU (or group), as coefficients of the step-time formula.

Where figures come from, and how far to trust them, is part of each profile. Kinds of evidence:

- *kernel tables*: vLLM 0.19 kernels timed by LLMServingSim's profiler (bf16, dense layers by tokens,
  mixed-batch attention, per-sequence output head, batches of unequal contexts). The coefficients are what
  ``fairlead profile fit`` makes of them; docs/engine.md has their errors.
- *op tables*: GEMMs and attention timed one by one (LLMServingSim v0, Vidur, aiconfigurator), summed
  over layers by us. They hold no mixed batches.

``cpu_us`` is one value for all GPUs: what short steps of one measured run (RTX PRO 6000, batches of up to
16 that only decode) take longer than their kernels, to 0.1 ms. KV pools are what vLLM would find
at 90% of the GPU's memory after bf16 weights and about 1.5 GB of activations a GPU.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from fairlead.core.params import nearest
from fairlead.engine.steptime import StepTime

CPU_US = 500
MIXED_RATIO = 0.92
"""k_mix / k_d of the kernel tables' Llama-3.1-8B; assumed where no mixed batch was measured."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one GPU or group of GPUs that act as one engine."""

    name: str
    model: str
    """The Hugging Face name of the model that is imitated."""
    gpu: str
    steps: StepTime
    kv_tokens: int
    """Size of the KV pool, in tokens."""
    kv_bytes_per_token: int
    max_model_len: int
    provenance: str
    """Where the coefficients come from."""
    compared: str = ""
    """What runs of real engines say, which were not used for the fit; empty where none was compared."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    tensor_parallel: int = 1
    """How many GPUs share each layer."""


_LLAMA_8B = "meta-llama/Llama-3.1-8B"

_ALL = (
    Profile(
        name="llama-3.1-8b-rtx-pro-6000",
        model=_LLAMA_8B,
        gpu="RTX PRO 6000 Blackwell 96 GB",
        steps=StepTime(
            weights_us=10_618,
            base_us=7_460,
            token_us=33.3,
            decode_context_ns=93.6,
            prefill_pair_ns=2.80,
            sequence_us=22.2,
            mixed_context_ns=85.6,
            head_us=739,
            cpu_us=CPU_US,
        ),
        kv_tokens=568_000,
        kv_bytes_per_token=131_072,
        max_model_len=131_072,
        provenance="Kernel tables (median error 1.3% on decode, 4.6% on mixed batches).",
        compared="A vLLM 0.19 run of 300 ShareGPT requests near saturation: mean TTFT -3.1%, TPOT -0.2%.",
    ),
    Profile(
        name="llama-3.1-8b-rtx-4090",
        model=_LLAMA_8B,
        gpu="RTX 4090 24 GB",
        steps=StepTime(
            weights_us=16_560,
            base_us=7_427,
            token_us=86.7,
            decode_context_ns=142.1,
            prefill_pair_ns=5.39,
            sequence_us=36.6,
            mixed_context_ns=215.3,
            head_us=1_122,
            cpu_us=CPU_US,
        ),
        kv_tokens=42_000,
        kv_bytes_per_token=131_072,
        max_model_len=32_768,
        provenance="Kernel tables (median error 1.5% on decode, 3.3% on mixed batches), of equal contexts:"
        " the skew tables beside them are marked as not to be used.",
        compared="A vLLM 0.19 run of the same 300 requests, six times over capacity, with preemptions: mean"
        " TTFT +0.7%, TPOT +0.8%.",
    ),
    Profile(
        name="qwen3-32b-rtx-pro-6000",
        model="Qwen/Qwen3-32B",
        gpu="RTX PRO 6000 Blackwell 96 GB",
        steps=StepTime(
            weights_us=45_444,
            base_us=36_373,
            token_us=145.1,
            decode_context_ns=191.3,
            prefill_pair_ns=9.74,
            sequence_us=84.2,
            mixed_context_ns=404.2,
            head_us=1_087,
            cpu_us=CPU_US,
        ),
        kv_tokens=96_000,
        kv_bytes_per_token=262_144,
        max_model_len=40_960,
        provenance="Kernel tables (median error 0.9% on decode, 3.9% on mixed batches) of one GPU; what"
        " unequal contexts cost is the Llama-3.1-8B's on the same GPU.",
    ),
    Profile(
        name="llama-3.1-8b-h100",
        model=_LLAMA_8B,
        gpu="H100 SXM 80 GB",
        steps=StepTime(
            weights_us=6_210,
            base_us=3_310,
            token_us=17.8,
            decode_context_ns=42.6,
            prefill_pair_ns=0.79,
            sequence_us=9.8,
            mixed_context_ns=42.6 * MIXED_RATIO,
            head_us=390,
            cpu_us=CPU_US,
        ),
        kv_tokens=449_000,
        kv_bytes_per_token=131_072,
        max_model_len=131_072,
        provenance="Op tables: GEMMs of LLMServingSim v0, attention of aiconfigurator (vLLM 0.24). Norms,"
        " rotary embedding and activation are the RTX PRO 6000's scaled by memory bandwidth, since the v0"
        " ones are not fused. k_mix assumed.",
        compared="42 TensorRT-LLM runs at fixed concurrency 8 to 128: mean TPOT median error -5%, worst -16%."
        " No vLLM run.",
    ),
    Profile(
        name="llama-3.1-8b-h200",
        model=_LLAMA_8B,
        gpu="H200 SXM 141 GB",
        steps=StepTime(
            weights_us=4_478,
            base_us=1_747,
            token_us=21.0,
            decode_context_ns=29.7,
            prefill_pair_ns=0.90,
            sequence_us=7.6,
            mixed_context_ns=29.7 * MIXED_RATIO,
            head_us=0,
            cpu_us=CPU_US,
        ),
        kv_tokens=905_000,
        kv_bytes_per_token=131_072,
        max_model_len=131_072,
        provenance="Op tables: GEMMs and attention (vLLM 0.22) of aiconfigurator, summed over layers (median"
        " error 1.2% on decode, 2.8% on prefills). The output head is part of W and a. k_mix assumed.",
    ),
    Profile(
        name="llama-3.1-8b-a100",
        model=_LLAMA_8B,
        gpu="A100 SXM 80 GB",
        steps=StepTime(
            weights_us=10_280,
            base_us=5_180,
            token_us=69.2,
            decode_context_ns=85.8,
            prefill_pair_ns=2.64,
            sequence_us=11.0,
            mixed_context_ns=85.8 * MIXED_RATIO,
            head_us=560,
            cpu_us=CPU_US,
        ),
        kv_tokens=449_000,
        kv_bytes_per_token=131_072,
        max_model_len=131_072,
        provenance="Op tables: layers of Vidur (Llama-3-8B), attention of aiconfigurator (vLLM 0.14). Output"
        " head from memory bandwidth. k_mix assumed. aiconfigurator's GEMMs give b 52 us instead of 69.",
    ),
    Profile(
        name="llama-3.1-70b-h100-tp4",
        model="meta-llama/Llama-3.1-70B",
        gpu="4 x H100 SXM 80 GB",
        steps=StepTime(
            weights_us=18_500,
            base_us=9_400,
            token_us=57.2,
            decode_context_ns=26.6,
            prefill_pair_ns=0.99,
            sequence_us=17.0,
            mixed_context_ns=26.6 * MIXED_RATIO,
            head_us=210,
            cpu_us=CPU_US,
        ),
        kv_tokens=482_000,
        kv_bytes_per_token=327_680,
        max_model_len=131_072,
        provenance="Op tables: GEMMs of LLMServingSim v0, all-reduce of Vidur (part of W, a and b), attention"
        " scaled from the 8B's by heads and layers. k_mix assumed. The least certain of all.",
        tensor_parallel=4,
    ),
)

PROFILES = {profile.name: profile for profile in _ALL}
DEFAULT_PROFILE = "llama-3.1-8b-h100"


def profile_named(name: str) -> Profile:
    """Return the profile called ``name``; ValueError lists the valid names if there is none."""
    found = PROFILES.get(name)
    if found is None:
        raise ValueError(f"unknown profile '{name}' (valid: {', '.join(PROFILES)}){nearest(name, PROFILES)}")
    return found


def load_profile(name_or_path: str | Path) -> Profile:
    """Return a named profile, or the one in a TOML file (as ``fairlead profile fit`` writes it).

    What ends in .toml or has a slash is a file. ValueError names the file and the key that is
    wrong, or lists the valid names.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and len(path.parts) == 1:
        return profile_named(str(name_or_path))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the profile {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    try:
        profile = Profile(**_checked(Profile, data, ""))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for key in _COUNTS:
        if getattr(profile, key) < 1:
            raise ValueError(f"{path}: {key} is {getattr(profile, key)}, not at least 1")
    return profile


_COUNTS = (
    "kv_tokens",
    "kv_bytes_per_token",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "tensor_parallel",
)
"""Keys of a profile that are at least 1."""

_TYPES: dict[object, tuple[type | tuple[type, ...], str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text"),
}


def _checked(kind: type[Profile] | type[StepTime], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the arguments of a dataclass out of a TOML table; ValueError names the wrong key."""
    known = {field.name: field for field in fields(kind) if field.init}
    for key in data:
        if key not in known:
            raise ValueError(f"unknown key {where}{key}{nearest(key, known)}")
    values: dict[str, Any] = {}
    for key, field in known.items():
        if key not in data:
            if field.default is MISSING:
                raise ValueError(f"no key {where}{key}")
            continue
        value = data[key]
        if field.type is StepTime and isinstance(value, dict):
            value = StepTime(**_checked(StepTime, value, f"{where}{key}."))
        wanted, shown = _TYPES.get(field.type, (StepTime, "a table"))
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ValueError(f"{where}{key} is {value!r}, not {shown}")
        values[key] = value
    return values
