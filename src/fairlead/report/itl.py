"""Inter-token latency (ITL): the times between two tokens of an answer, in bounded memory."""


class InterTokenTimes:
    """A histogram of the times between two tokens: bins of 1%, so that memory is bounded."""

    __slots__ = ("_bins",)

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}

    def add(self, us: int, count: int) -> None:
        """Count so many of a length in microseconds."""
        shift = max(0, us.bit_length() - 7)  # keep seven bits
        bin_us = us >> shift << shift
        self._bins[bin_us] = self._bins.get(bin_us, 0) + count

    def close(self) -> dict[int, int]:
        """Return count by length in microseconds."""
        return dict(sorted(self._bins.items()))
