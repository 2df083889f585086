"""Fit the step-time formula to measured steps, and say how far off it is.

The formula is the larger of two linear forms: the floor (W + t_seq·s, when reading the weights takes longest)
and the slope (a + b·n), each with the terms for context and pairs. Which of the two a step belongs to
follows from the coefficients, so assigning steps and solving for coefficients alternate until they agree
(A. Magnani, S. Boyd, Convex piecewise-linear fitting, 2009), from several starts; the best is kept. Each
solution is a least square of the relative error with no coefficient below zero (C. Lawson, R. Hanson,
Solving least squares problems, 1974), from the normal equations: seven unknowns, so no library is needed.

However many steps there are of a kind, each kind has a fixed weight (``WEIGHTS``): an engine under load
spends most of its time on steps that only decode, then on mixed ones.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
"""Fewer steps than this, decoding or prefilling, are no table."""
WEIGHTS = {"decode": 4, "prefill": 1, "mixed": 2}
"""What each kind of step weighs in the sum of squares."""
_STARTS = 6
_ROUNDS = 40
_DEPENDENT = 1e-9
"""A column with less than this share of its square left, given the others, says nothing new."""


class FitError(ValueError):
    """A table that cannot be fitted. The message names the file, column or step and what is wrong."""


class Sample(NamedTuple):
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
    """What the data did not determine, and what was put in its place."""


def kind_of(work: Work) -> str:
    """Return which of ``KINDS`` a step is."""
    if not work.prefill_tokens:
        return "decode"
    return "mixed" if work.decode_seqs else "prefill"


def fit_steps(samples: Sequence[Sample], head_us: float = 0) -> Fit:
    """Fit every coefficient but the head, which is given, and ``cpu_us``, which is 0 in the result.

    Raises ``FitError`` if there are too few steps or one is impossible.
    """
    _check(samples)
    counts = Counter(kind_of(sample.work) for sample in samples)
    problem = _Problem(samples, counts, head_us)
    best = min((problem.solve(kink) for kink in _kinks(samples)), key=lambda found: found[0])
    values = dict(zip(COEFFICIENTS, best[1], strict=True))
    notes = _fill(values, counts)
    steps = StepTime(**values, head_us=head_us, cpu_us=0)
    gap = values["weights_us"] - values["base_us"]
    kink = gap / values["token_us"] if values["token_us"] else 0.0
    return Fit(steps, errors_of(steps, samples), max(0.0, kink), notes)


def errors_of(steps: StepTime, samples: Iterable[Sample]) -> dict[str, Errors]:
    """Return the relative errors of ``steps`` over ``samples``, by kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for work, us in samples:
        found[kind_of(work)].append(steps.step_ps(*work) / PS_PER_US / us - 1)
    return {kind: _summary(errors) for kind, errors in found.items() if errors}


def _summary(errors: list[float]) -> Errors:
    sizes = sorted(map(abs, errors))
    last = len(sizes) - 1
    return Errors(len(sizes), sizes[last // 2], sizes[last * 9 // 10], sizes[last], sum(errors) / len(errors))


def _check(samples: Sequence[Sample]) -> None:
    for number, (work, us) in enumerate(samples, 1):
        if not us > 0 or us == float("inf"):
            raise FitError(f"step {number} took {us} us")
        if min(work) < 0 or not (work.decode_seqs or work.prefill_tokens):
            raise FitError(f"step {number} is impossible: {work}")
    decoding = sum(not sample.work.prefill_tokens for sample in samples)
    for count, what in ((decoding, "only decode"), (len(samples) - decoding, "prefill")):
        if count < LEAST_STEPS:
            raise FitError(f"{count} steps that {what}: at least {LEAST_STEPS} are needed")


def _kinks(samples: Sequence[Sample]) -> list[int]:
    """Return where to start from: 0 (no floor), then sizes of step spread over those measured."""
    sizes = sorted({s.work.decode_seqs + s.work.prefill_tokens for s in samples})
    return [0, *(sizes[len(sizes) * i // _STARTS] for i in range(1, _STARTS))]


def _fill(values: dict[str, float], counts: Counter[str]) -> tuple[str, ...]:
    """Put something sensible in the place of what the steps do not tell."""
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

    def __init__(self, samples: Sequence[Sample], counts: Counter[str], head_us: float) -> None:
        self.sizes = [s.work.decode_seqs + s.work.prefill_tokens for s in samples]
        self.rows: list[tuple[_Row, _Row]] = []
        self.targets: list[float] = []
        for work, us in samples:
            kind = kind_of(work)
            scale = (WEIGHTS[kind] / counts[kind]) ** 0.5 / us
            low, high = _sides(work)
            self.rows.append((tuple(v * scale for v in low), tuple(v * scale for v in high)))
            self.targets.append((us - head_us) * scale)

    def solve(self, kink: int) -> tuple[float, list[float]]:
        """Return the least error and its coefficients, when steps below ``kink`` tokens start as floor."""
        side = [int(size >= kink) for size in self.sizes]
        width = len(COEFFICIENTS)
        matrix = [[0.0] * width for _ in range(width)]
        vector = [0.0] * width
        for rows, target, chosen in zip(self.rows, self.targets, side, strict=True):
            _add(matrix, vector, rows[chosen], target, 1)
        best = (float("inf"), [0.0] * width)
        for _ in range(_ROUNDS):
            values = nonnegative_least_squares(matrix, vector)
            total = 0.0
            moved = False
            for i, (rows, target) in enumerate(zip(self.rows, self.targets, strict=True)):
                low, high = (sum(map(float.__mul__, values, row)) for row in rows)
                total += (max(low, high) - target) ** 2
                if (high >= low) != side[i]:
                    _add(matrix, vector, rows[side[i]], target, -1)
                    side[i] = 1 - side[i]
                    _add(matrix, vector, rows[side[i]], target, 1)
                    moved = True
            best = min(best, (total, values))
            if not moved:
                break
        return best


def _add(matrix: list[list[float]], vector: list[float], row: _Row, target: float, sign: int) -> None:
    """Add one row to the normal equations, or take it out (``sign`` -1)."""
    for i, value in enumerate(row):
        if value:
            value *= sign
            vector[i] += value * target
            line = matrix[i]
            for j, other in enumerate(row):
                line[j] += value * other


def nonnegative_least_squares(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    """Return x >= 0 that minimises x'Ax - 2b'x, for A = X'X (``matrix``) and b = X'y (``vector``).

    Columns that depend on those already used stay 0. Lawson and Hanson's active sets.
    """
    width = len(vector)
    scale = [matrix[i][i] ** 0.5 if matrix[i][i] > 0 else 0.0 for i in range(width)]
    # With every column scaled to length 1, one threshold serves for all of them.
    a = [
        [matrix[i][j] / (scale[i] * scale[j]) if scale[i] and scale[j] else 0.0 for j in range(width)]
        for i in range(width)
    ]
    b = [vector[i] / scale[i] if scale[i] else 0.0 for i in range(width)]
    tolerance = 1e-10 * max(map(abs, b), default=0.0)
    x = [0.0] * width
    used: list[int] = []
    useless = {i for i in range(width) if not scale[i]}
    while True:
        gain = {
            i: b[i] - sum(a[i][j] * x[j] for j in used)
            for i in range(width)
            if i not in used and i not in useless
        }
        best = max(gain, key=gain.__getitem__, default=None)
        if best is None or gain[best] <= tolerance:
            return [value / factor if factor else 0.0 for value, factor in zip(x, scale, strict=True)]
        solution = _solve(a, b, [*used, best])
        if solution is None or solution[best] <= 0:
            useless.add(best)
            continue
        used.append(best)
        while min(solution.values()) <= 0:
            # Go towards the solution until the first value reaches 0, which then leaves.
            step = min(x[i] / (x[i] - v) for i, v in solution.items() if v <= 0)
            x = [x[i] + step * (solution[i] - x[i]) if i in solution else 0.0 for i in range(width)]
            used = [i for i in used if x[i] > 1e-14]
            solution = _solve(a, b, used) or dict.fromkeys(used, 1e-14)
        x = [solution.get(i, 0.0) for i in range(width)]
        # What could not enter may do so now, unless nothing has changed but for rounding.
        useless = {i for i in useless if not scale[i]} if best in used else {*useless, best}


def _solve(a: list[list[float]], b: list[float], used: list[int]) -> dict[int, float] | None:
    """Return the solution of the chosen rows and columns by Cholesky; None if they are dependent."""
    lower: list[list[float]] = []
    forward: list[float] = []
    for i in used:
        line: list[float] = []
        for k, j in enumerate(used[: len(lower)]):
            line.append((a[i][j] - sum(map(float.__mul__, line, lower[k][:k]))) / lower[k][k])
        pivot = a[i][i] - sum(v * v for v in line)
        if pivot < _DEPENDENT:
            return None
        forward.append((b[i] - sum(map(float.__mul__, line, forward))) / pivot**0.5)
        lower.append([*line, pivot**0.5])
    solution: dict[int, float] = {}
    for k in reversed(range(len(used))):
        known = sum(lower[m][k] * solution[used[m]] for m in range(k + 1, len(used)))
        solution[used[k]] = (forward[k] - known) / lower[k][k]
    return solution
