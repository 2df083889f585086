"""How long one step of an engine takes: the work in it, and the formula.

    T = max(W, a + b·n) + k_d·Σ ctx + k_p·Σ c·(p + c/2) + t_seq·s + [k_mix·Σ ctx if the step also
        prefills] + t_head + t_cpu

n: tokens computed in the step, decoded and prefilled. s: sequences that decode. ctx: a decoding
sequence's tokens in KV before the step. c: a prefill chunk, p: that request's tokens in KV before
it. W is the time to read the weights once, which hides the arithmetic of small batches.

The sums are linear in the number of steps while only decoding happens, so a simulator may take many
steps at once in closed form.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Work(NamedTuple):
    """What one step computes: the whole input of the formula."""

    decode_seqs: int = 0
    decode_context: int = 0
    """Tokens in KV before the step, summed over the decoding sequences."""
    prefill_tokens: int = 0
    prefill_area: int = 0
    """Sum over the prefill chunks of c·(2p + c): twice the token pairs that attention looks at."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Coefficients of the formula. Times in microseconds or nanoseconds as the names say."""

    weights_us: float
    """W: a step takes at least this long."""
    base_us: float
    """a"""
    token_us: float
    """b"""
    decode_context_ns: float
    """k_d"""
    prefill_pair_ns: float
    """k_p"""
    sequence_us: float
    """t_seq"""
    mixed_context_ns: float
    """k_mix"""
    head_us: float
    """t_head: output logits and sampling."""
    cpu_us: float
    """t_cpu: what the engine's host code adds between the kernels of two steps."""

    def step_us(self, work: Work) -> int:
        """Return the duration of one step, in whole microseconds, at least 1."""
        tokens = work.decode_seqs + work.prefill_tokens
        us = max(self.weights_us, self.base_us + self.token_us * tokens)
        context_ns = self.decode_context_ns
        if work.prefill_tokens:
            context_ns += self.mixed_context_ns
        us += (context_ns * work.decode_context + self.prefill_pair_ns * work.prefill_area / 2) / 1000
        us += self.sequence_us * work.decode_seqs + self.head_us + self.cpu_us
        return max(1, round(us))
