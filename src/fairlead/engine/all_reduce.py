"""What tensor parallelism adds to a step: two all-reduces a layer, over the link between the GPUs.

GPUs that share every layer each compute their part of it, then sum what they have: after attention and after
the MLP (M. Shoeybi et al., Megatron-LM, 2019, section 3). Each all-reduce is of one hidden vector per token:

    t = L + 2(k - 1)/k · bytes / B

L is the latency, k the number of GPUs, B the *bus bandwidth* of NCCL's tests: a ring sends 2(k - 1)/k of the
buffer from each GPU. So a step pays 2·layers·L, and for each of its tokens the rest. The exchange is not
hidden behind arithmetic, as vLLM's is not unless it is told to.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fairlead.engine.fit import FitError
from fairlead.engine.fit_tables import read_rows
from fairlead.engine.profiles import Profile
from fairlead.engine.steptime import StepTime

PER_LAYER = 2
BYTES_PER_VALUE = 2
"""bf16."""
LEAST_POINTS = 3


class Link(NamedTuple):
    """An all-reduce between ``gpus`` GPUs: its latency, and the bus bandwidth in GB/s (10^9 bytes)."""

    gpus: int
    latency_us: float
    gb_per_s: float

    def all_reduce_us(self, count: float) -> float:
        """Return how long an all-reduce of ``count`` bytes takes."""
        return self.latency_us + 2 * (self.gpus - 1) / self.gpus * count / (1000 * self.gb_per_s)


class Shape(NamedTuple):
    """What of a model's shape an all-reduce depends on."""

    layers: int
    hidden: int
    """Values of one token's hidden vector."""


def with_link(steps: StepTime, link: Link, shape: Shape) -> StepTime:
    """Return the step times of one GPU's kernels with the all-reduces added."""
    count = PER_LAYER * shape.layers
    token_us = link.all_reduce_us(BYTES_PER_VALUE * shape.hidden) - link.latency_us
    return replace(steps, link_us=count * link.latency_us, link_token_us=count * token_us)


def sharded(profile: Profile, link: Link, shape: Shape, kv_tokens: int) -> Profile:
    """Return the profile of a model on one GPU as of ``link.gpus`` of them, every kernel divided evenly.

    Kernels of a part of a layer take somewhat longer than that part of the whole layer's time; measured
    tables of the parts are better, where there are any. ``kv_tokens`` is the size of the new pool. Raises
    ``FitError`` if the profile is of several GPUs already.
    """
    if profile.tensor_parallel != 1:
        raise FitError(
            f"{profile.name} is of {profile.tensor_parallel} GPUs already: start from a profile of one"
        )
    steps, gpus = profile.steps, link.gpus
    part = replace(
        steps,
        weights_us=steps.weights_us / gpus,
        base_us=steps.base_us / gpus,
        token_us=steps.token_us / gpus,
        decode_context_ns=steps.decode_context_ns / gpus,
        prefill_pair_ns=steps.prefill_pair_ns / gpus,
        sequence_us=steps.sequence_us / gpus,
        mixed_context_ns=steps.mixed_context_ns / gpus,
        head_us=steps.head_us / gpus,
    )
    return replace(
        profile,
        name=f"{profile.name}-tp{gpus}",
        gpu=f"{gpus} x {profile.gpu}",
        steps=with_link(part, link, shape),
        kv_tokens=kv_tokens,
        tensor_parallel=gpus,
        provenance=f"{profile.name} divided by {gpus}, with all-reduces of {link.latency_us:.4g} us and"
        f" {link.gb_per_s:.4g} GB/s.",
        compared="",
    )


def read_all_reduce(path: Path, gpus: int) -> Link:
    """Fit a link to a CSV of measured all-reduces between ``gpus`` GPUs.

    Columns: ``bytes`` and ``us``; or those of Vidur's tables (``size`` in bytes, ``num_workers``,
    ``devices_per_node``, ``time_stats.all_reduce.median`` in ms), of which the rows of so many GPUs in one
    machine are taken. Raises ``FitError`` if there are too few rows, or they show no bandwidth.
    """
    return fit_link(_points(path, gpus), gpus, str(path))


def _points(path: Path, gpus: int) -> list[tuple[float, float]]:
    vidur = ("num_workers", "devices_per_node", "size", "time_stats.all_reduce.median")
    try:
        return [(row[0], row[1]) for row, _ in read_rows(path, ("bytes", "us"))]
    except FitError as error:
        if "no column" not in str(error):
            raise
        try:
            rows = [row for row, _ in read_rows(path, vidur)]
        except FitError:
            raise FitError(f"{error}; or the columns of Vidur's tables: {', '.join(vidur)}") from None
    return [(size, ms * 1000) for workers, inside, size, ms in rows if workers == inside == gpus]


def fit_link(points: Iterable[tuple[float, float]], gpus: int, source: str) -> Link:
    """Return the link with the least squares of the relative error over (bytes, us) points."""
    found = [(count, us) for count, us in points if us > 0]
    sizes = len({count for count, _ in found})
    if sizes < LEAST_POINTS:
        raise FitError(
            f"{source}: all-reduces of {sizes} sizes between {gpus} GPUs; at least {LEAST_POINTS} are needed"
        )
    # Each row is (1/us, bytes/us), its target 1: the normal equations of L and the slope.
    ones = sum(1 / us**2 for _, us in found)
    mixed = sum(count / us**2 for count, us in found)
    squares = sum((count / us) ** 2 for count, us in found)
    left, right = sum(1 / us for _, us in found), sum(count / us for count, us in found)
    slope = (ones * right - mixed * left) / (ones * squares - mixed**2)
    latency = (left - mixed * slope) / ones
    if latency < 0:
        latency, slope = 0.0, right / squares
    if slope <= 0:
        raise FitError(f"{source}: larger all-reduces do not take longer, so there is no bandwidth to see")
    return Link(gpus, latency, 2 * (gpus - 1) / gpus / (1000 * slope))
