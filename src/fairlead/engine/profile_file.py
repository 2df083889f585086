"""Write a profile as TOML, which ``load_profile`` reads back to the same step times."""

import json
from dataclasses import fields

from fairlead.engine.profiles import Profile
from fairlead.engine.steptime import StepTime

_COMMENTS = {
    "kv_tokens": "size of the KV pool, in tokens",
    "weights_us": "W: a step takes at least this long",
    "base_us": "a",
    "token_us": "b, for each token of the step",
    "decode_context_ns": "k_d, for each token in KV of a decoding sequence",
    "prefill_pair_ns": "k_p, for each pair of tokens that a prefill looks at",
    "sequence_us": "t_seq, for each decoding sequence",
    "mixed_context_ns": "k_mix, on top of k_d when the step also prefills",
    "head_us": "t_head: logits and sampling",
    "cpu_us": "t_cpu: host code between steps",
    "link_us": "t_link: latency of a step's all-reduces",
    "link_token_us": "b_link: all-reduces, for each token of the step",
    "tensor_parallel": "GPUs that share each layer",
}


def rounded(value: float) -> float:
    """Return ``value`` to five digits: finer than any measurement, and short enough to read."""
    return float(f"{value:.5g}")


def profile_toml(profile: Profile) -> str:
    """Return the profile as a TOML document."""
    lines = [
        _line(field.name, getattr(profile, field.name)) for field in fields(Profile) if field.name != "steps"
    ]
    lines += ["", "[steps]"]
    lines += [
        _line(field.name, getattr(profile.steps, field.name)) for field in fields(StepTime) if field.init
    ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: str | float) -> str:
    # A JSON string is a TOML basic string as long as it is ASCII.
    comment = f"  # {_COMMENTS[key]}" if key in _COMMENTS else ""
    return f"{key} = {json.dumps(value)}{comment}"
