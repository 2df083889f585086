"""How long one step of an engine takes: the work in it, and the formula.

    T = max(W + t_seq·s, a + b·n) + k_d·Σ ctx + k_p·Σ c·(p + c/2) + [k_mix·Σ ctx if the step also
        prefills] + t_link + b_link·n + t_head + t_cpu

n: tokens computed in the step, decoded and prefilled. s: sequences that decode. ctx: a decoding
sequence's tokens in KV before the step. c: a prefill chunk, p: that request's tokens in KV before
it. W is the time to read the weights once, which hides the arithmetic of small batches; t_seq is what a
decoding sequence adds to it (arithmetic that does not quite hide, its part of attention whatever its length).
Once a step is so large that arithmetic decides, b covers its token. t_link and b_link are what GPUs that
share each layer spend on all-reduces, a step and a token; 0 on one GPU.

While only decoding happens the batch stays and its context grows by s a step, so the time of k steps is
a quadratic in k: many steps are taken at once in closed form. To make that exact, time is counted
in whole picoseconds inside; callers see microseconds.
"""

from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple

PS_PER_US = 1_000_000


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
    """t_seq: on top of W."""
    mixed_context_ns: float
    """k_mix"""
    head_us: float
    """t_head: output logits and sampling."""
    cpu_us: float
    """t_cpu: what the engine's host code adds between the kernels of two steps."""
    link_us: float = 0.0
    """t_link: the latency of a step's all-reduces."""
    link_token_us: float = 0.0
    """b_link"""
    _ps: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The coefficients in picoseconds: W, a, b, k_d, k_mix, k_p / 2, t_seq, b_link, and the rest summed."""

    def __post_init__(self) -> None:
        microseconds = (self.weights_us, self.base_us, self.token_us)
        nanoseconds = (self.decode_context_ns, self.mixed_context_ns, self.prefill_pair_ns / 2)
        whole = (self.sequence_us, self.link_token_us, self.head_us + self.cpu_us + self.link_us)
        ps = [
            *(round(us * PS_PER_US) for us in microseconds),
            *(round(ns * 1000) for ns in nanoseconds),
            *(round(us * PS_PER_US) for us in whole),
        ]
        if min(*ps, self.link_us, self.head_us, self.cpu_us) < 0 or max(ps[0], ps[1]) + ps[-1] < PS_PER_US:
            raise ValueError("coefficients are not negative, and no step is shorter than 1 us")
        object.__setattr__(self, "_ps", tuple(ps))

    def step_ps(self, seqs: int, context: int, tokens: int, area: int) -> int:
        """Return the duration of one step in picoseconds; the arguments are those of ``Work``."""
        weights, base, token, decode, mixed, pair, sequence, link, rest = self._ps
        ps = base + token * (seqs + tokens)
        ps = max(ps, weights + sequence * seqs) + link * (seqs + tokens)
        if tokens:
            decode += mixed
        return ps + decode * context + pair * area + rest

    def decode_ps(self, seqs: int, context: int, steps: int) -> int:
        """Return the duration of so many steps that only decode, ``context`` being that of the first."""
        first = self.step_ps(seqs, context, 0, 0)
        return steps * first + self._ps[3] * seqs * (steps * (steps - 1) // 2)

    def decode_steps(self, seqs: int, context: int, ps: int) -> int:
        """Return the least number of steps that only decode and last at least ``ps`` picoseconds."""
        if ps <= 0:
            return 0
        first = self.step_ps(seqs, context, 0, 0)
        growth = self._ps[3] * seqs
        if growth:
            # Near the root of steps * first + growth * steps * (steps - 1) / 2 = ps.
            mean = first / growth - 0.5
            steps = int(sqrt(mean * mean + 2.0 * ps / growth) - mean)
        else:
            steps = ps // first
        while steps * first + growth * (steps * (steps - 1) // 2) < ps:
            steps += 1
        while steps and (steps - 1) * first + growth * ((steps - 1) * (steps - 2) // 2) >= ps:
            steps -= 1
        return steps

    def step_us(self, work: Work) -> int:
        """Return the duration of one step, in whole microseconds, rounded down."""
        return self.step_ps(*work) // PS_PER_US
