"""Fit the step-time formula to measured steps, and say how far off it is.

The formula is the larger of two linear forms: the floor (W + t_seq·s, when reading the weights takes longest)
and the slope (a + b·n), each with the terms for context and pairs. Which of the two a step belongs to
follows from the coefficients, so assigning steps and solving for coefficients alternate until they agree
(A. Magnani, S. Boyd, Convex piecewise-linear fitting, 2009), from several starts; the best is kept. Each
solution is a least square of the relative error with no coefficient below zero (SciPy's ``nnls``).

However many steps there are of a kind, each kind has a fixed weight (``WEIGHTS``): an engine under load
spends most of its time on steps that only decode, then on mixed ones.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fairlead.engine.profiles import MIXED_RATIO
from fairlead.engine.steptime import PS_PER_US, StepTime, Work

KINDS = ("decode", "prefill", "mixed")
COEFFICIENTS = (
    "weights_us",
    "base_us",
    "token_us",
    "decode_context_ns",
    "prefill_pair_ns",
    "sequence_us",
    "mixed_context_ns",
)
"""What is fitted, in the order of the columns below. The head is measured alone, or part of W and a."""
LEAST_STEPS = 8
"""Fewest steps that decode, and that prefill, which can be fitted."""
WEIGHTS = {"decode": 4, "prefill": 1, "mixed": 2}
"""What each kind of step weighs in the sum of squares."""
_STARTS = 6
_ROUNDS = 40
_EQUAL = 1e-12
"""Errors that differ by less than this share of the targets' squares are equal, up to rounding."""


class FitError(ValueError):
    """A table that cannot be fitted. The message names the file, column or step and what is wrong."""


class MeasuredStep(NamedTuple):
    """One measured step: what it computed and how long it took, in microseconds."""

    work: Work
    us: float


class Errors(NamedTuple):
    """Relative errors of the formula over some steps; ``bias`` is their mean with its sign."""

    steps: int
    median: float
    p90: float
    worst: float
    bias: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients and how well they do."""

    steps: StepTime
    errors: dict[str, Errors]
    """By kind of step; kinds without steps are left out."""
    kink: float
    """Prefill tokens in a step from which arithmetic outlasts reading the weights; 0 if always."""
    notes: tuple[str, ...]
    """What the data does not determine, and what is used instead."""


def kind_of(work: Work) -> str:
    """Return which of ``KINDS`` a step is."""
    if not work.prefill_tokens:
        return "decode"
    return "mixed" if work.decode_seqs else "prefill"


def fit_steps(samples: Sequence[MeasuredStep], head_us: float = 0) -> Fit:
    """Fit every coefficient but the head, which is given, and ``cpu_us``, which is 0 in the result.

    Raises ``FitError`` if there are too few steps or one is impossible.
    """
    _check(samples)
    counts = Counter(kind_of(sample.work) for sample in samples)
    problem = _Problem(samples, counts, head_us)
    values = dict(zip(COEFFICIENTS, problem.best(_kinks(samples)), strict=True))
    notes = _fill(values, counts)
    steps = StepTime(**values, head_us=head_us, cpu_us=0)
    gap = values["weights_us"] - values["base_us"]
    kink = gap / values["token_us"] if values["token_us"] else 0.0
    return Fit(steps, errors_of(steps, samples), max(0.0, kink), notes)


def errors_of(steps: StepTime, samples: Iterable[MeasuredStep]) -> dict[str, Errors]:
    """Return the relative errors of ``steps`` over ``samples``, by kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for work, us in samples:
        found[kind_of(work)].append(steps.step_ps(*work) / PS_PER_US / us - 1)
    return {kind: _summary(errors) for kind, errors in found.items() if errors}


def _summary(errors: list[float]) -> Errors:
    sizes = sorted(map(abs, errors))
    last = len(sizes) - 1
    return Errors(len(sizes), sizes[last // 2], sizes[last * 9 // 10], sizes[last], sum(errors) / len(errors))


def _check(samples: Sequence[MeasuredStep]) -> None:
    for number, (work, us) in enumerate(samples, 1):
        if not us > 0 or us == float("inf"):
            raise FitError(f"step {number} took {us} us")
        if min(work) < 0 or not (work.decode_seqs or work.prefill_tokens):
            raise FitError(f"step {number} is impossible: {work}")
    decoding = sum(not sample.work.prefill_tokens for sample in samples)
    for count, what in ((decoding, "only decode"), (len(samples) - decoding, "prefill")):
        if count < LEAST_STEPS:
            raise FitError(f"{count} steps that {what}: at least {LEAST_STEPS} are needed")


def _kinks(samples: Sequence[MeasuredStep]) -> list[int]:
    """Return where to start from: 0 (no floor), then sizes of step spread over those measured."""
    sizes = sorted({s.work.decode_seqs + s.work.prefill_tokens for s in samples})
    return [0, *(sizes[len(sizes) * i // _STARTS] for i in range(1, _STARTS))]


def _fill(values: dict[str, float], counts: Counter[str]) -> tuple[str, ...]:
    """Replace coefficients that the steps do not determine."""
    notes = []
    if not counts["mixed"]:
        values["mixed_context_ns"] = MIXED_RATIO * values["decode_context_ns"]
        notes.append(f"no mixed steps: k_mix is assumed to be {MIXED_RATIO} k_d")
    if values["weights_us"] <= values["base_us"] and values["sequence_us"] <= values["token_us"]:
        values["weights_us"] = values["base_us"]
        notes.append("no floor seen: even the smallest steps grow with their tokens, so W = a")
    zero = [name for name in COEFFICIENTS if not values[name]]
    if zero:
        notes.append(f"0, or not told apart from the others by these steps: {', '.join(zero)}")
    return tuple(notes)


_Row = tuple[float, ...]


def _sides(work: Work) -> tuple[_Row, _Row]:
    """Return the columns of a step, in the order of ``COEFFICIENTS``: as floor, and as slope."""
    context = work.decode_context / 1000
    mixed = context if work.prefill_tokens else 0
    pairs = work.prefill_area / 2000
    tokens = work.decode_seqs + work.prefill_tokens
    return (1, 0, 0, context, pairs, work.decode_seqs, mixed), (0, 1, tokens, context, pairs, 0, mixed)


class _Problem:
    """The steps of a fit, each row and its target divided by the measured time and weighted."""

    def __init__(self, samples: Sequence[MeasuredStep], counts: Counter[str], head_us: float) -> None:
        self._np, self._nnls = _libraries()
        array = self._np.array
        kinds = [kind_of(work) for work, _ in samples]
        scale = array([(WEIGHTS[kind] / counts[kind]) ** 0.5 for kind in kinds]) / [us for _, us in samples]
        sides = [_sides(work) for work, _ in samples]
        self._sizes = array([work.decode_seqs + work.prefill_tokens for work, _ in samples])
        self._floor = array([floor for floor, _ in sides]) * scale[:, None]
        self._slope = array([slope for _, slope in sides]) * scale[:, None]
        self._targets = array([us - head_us for _, us in samples]) * scale

    def best(self, kinks: Iterable[int]) -> list[float]:
        """Return the coefficients of the least error over these starts; of equally good ones, the fewest."""
        found = [self.solve(kink) for kink in kinks]
        enough = min(error for error, _ in found) + _EQUAL * float(self._targets @ self._targets)
        return min((values for error, values in found if error <= enough), key=self._np.count_nonzero)

    def solve(self, kink: int) -> tuple[float, list[float]]:
        """Return the least error and its coefficients, when steps below ``kink`` tokens start as floor."""
        best = (float("inf"), [0.0] * len(COEFFICIENTS))
        sloped = self._sizes >= kink
        for _ in range(_ROUNDS):
            values = self._solve(self._np.where(sloped[:, None], self._slope, self._floor))
            low, high = self._floor @ values, self._slope @ values
            error = float(((self._np.maximum(low, high) - self._targets) ** 2).sum())
            best = min(best, (error, values.tolist()))
            before, sloped = sloped, high >= low
            if (before == sloped).all():
                break
        return best

    def _solve(self, rows: Any) -> Any:
        """Return x >= 0 with the least |rows x - targets|; 0 for columns that depend on the others."""
        lengths = self._np.linalg.norm(rows, axis=0)  # so that one threshold serves for all columns
        lengths[lengths == 0] = 1
        values, _ = self._nnls(rows / lengths, self._targets)
        return values / lengths


def _libraries() -> tuple[Any, Any]:
    """Return NumPy and SciPy's solver: only fitting needs them, and they take long to import."""
    try:
        import numpy as np  # noqa: PLC0415
        from scipy.optimize import nnls  # noqa: PLC0415
    except ImportError:
        raise FitError("fitting needs SciPy: pip install 'fairlead[fit]'") from None
    return np, nnls
