"""Numbers from outside: the one place where a figure of somebody else becomes one of ours.

Clients, engines, files and stores say numbers. None of them is believed: each passes one of these
functions where it enters, with the bounds that it must keep. A number that is no number, or out of
bounds, is None; the caller then keeps its own estimate, or refuses.
"""

from math import isfinite
from typing import NamedTuple

__all__ = ["MOST_TOKENS", "MOST_US", "Usage", "amount", "usage", "whole"]

MOST_TOKENS = 2**31 - 1
"""More tokens than any prompt, answer or KV pool has: what no bound of its own limits is limited by this."""
MOST_US = 2**53
"""The latest moment, and the longest time, in microseconds: 285 years; also exact as a float."""


def whole(value: object, most: int = MOST_TOKENS, least: int = 0) -> int | None:
    """Return ``value`` as an integer from ``least`` to ``most``, else None.

    Integral floats count (JSON does not tell ``5.0`` from ``5``); booleans, texts, NaN and infinity
    do not.
    """
    if value is None:
        return None
    if type(value) is int:  # the usual case
        return value if least <= value <= most else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if least <= value <= most else None


def amount(value: object, most: float, least: float = 0.0) -> float | None:
    """Return ``value`` as a finite float from ``least`` to ``most``, else None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # An integer is compared before it is turned into a float, which overflows beyond 10^308.
    if not least <= value <= most:
        return None
    number = float(value)
    return number if isfinite(number) else None


class Usage(NamedTuple):
    """What an engine says that one request took, checked; None for a figure that is not to be believed."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


def usage(
    prompt: object,
    cached: object,
    output: object,
    most_prompt: int = MOST_TOKENS,
    most_output: int = MOST_TOKENS,
) -> tuple[Usage, bool]:
    """Return the figures that can be true, and whether a figure was said that cannot.

    1 <= prompt <= ``most_prompt``, 0 <= cached <= prompt, 0 <= output <= ``most_output``. A figure that
    breaks its bound is None. Cached tokens count only beside a prompt that is believed.
    """
    prompt_tokens = whole(prompt, most_prompt, 1)
    cached_tokens = None if prompt_tokens is None else whole(cached, prompt_tokens)
    output_tokens = whole(output, most_output)
    found = Usage(prompt_tokens, cached_tokens, output_tokens)
    if prompt_tokens is prompt and cached_tokens is cached and output_tokens is output:
        return found, False  # the usual case
    wrong = (
        (prompt is not None and prompt_tokens is None)
        or (cached is not None and cached_tokens is None and prompt is not None)
        or (output is not None and output_tokens is None)
    )
    return found, wrong
