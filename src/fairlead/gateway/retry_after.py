"""How long a worker that has no room is left alone: what its Retry-After says, or a pause that doubles."""

from email.utils import parsedate_to_datetime

from fairlead.core import outside
from fairlead.http.messages import Headers

LONGEST_S = 60.0
"""A worker that asks for more is asked again after this, with one request."""
FIRST_S = 0.25
"""The pause after a first refusal that names no time; it doubles from one to the next, up to ``_MOST_S``."""
_MOST_S = 8.0
_YEAR_S = 366 * 86_400.0


def retry_after(headers: Headers, now: float) -> float | None:
    """Return the seconds that Retry-After asks for, at most ``LONGEST_S``; None if it names no time.

    ``now`` is in seconds since 1970. A number of seconds or a date, as RFC 9110 (10.2.3) has them.
    """
    text = next((value for name, value in headers if name == b"retry-after"), b"").strip()
    seconds: float | None = None
    if text.isdigit():
        seconds = float(text) if len(text) < 16 else LONGEST_S
    elif text:
        try:
            seconds = max(0.0, parsedate_to_datetime(text.decode("latin-1")).timestamp() - now)
        except (ValueError, TypeError, OverflowError, OSError):
            return None
    seconds = outside.amount(seconds, 1e4 * _YEAR_S)
    return None if seconds is None else min(seconds, LONGEST_S)


def pause(in_a_row: int) -> float:
    """Return the seconds to wait after so many refusals in a row (1 for the first) that name no time."""
    return min(_MOST_S, FIRST_S * 2.0 ** min(in_a_row - 1, 10))
