"""The synthetic suites of [VTC], arXiv 2401.00588, section 5, as its artifact has them.

Rates and lengths are the artifact's (github.com/Ying1123/VTC-artifact, ``fair_bench``): the first client
is its adapter 0. Ours: a suite goes on for as long as requests are asked for, more clients than rates
repeat the rates, and prompts of different requests share nothing.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

from fairlead.core.params import Param, Values
from fairlead.trace.generators.base import BLOCK_TOKENS, WEIGHTS, Generator
from fairlead.trace.generators.draws import numbers, times
from fairlead.trace.generators.keys import EMPTY
from fairlead.trace.model import Turn


def _suite(
    *,
    inputs: str = "256",
    outputs: str = "256",
    arrivals: str = "even",
    duration_s: float = 600.0,
    weights: str = "1",
) -> tuple[Param, ...]:
    return (
        Param("inputs", inputs, "prompt tokens of each client, such as 64/256"),
        Param("outputs", outputs, "output tokens of each client"),
        Param("arrivals", arrivals, "gaps between a client's requests", choices=("even", "poisson")),
        Param("duration_s", duration_s, "length of the suite in seconds, if no number of requests is given"),
        WEIGHTS._replace(default=weights),
        BLOCK_TOKENS,
    )


RATES = "requests a second of each client"
ON_S = Param("on_s", 60.0, "seconds that the first client sends, then pauses, and so on", low=0.001)


class VtcSuite(Generator):
    """Clients at steady rates with fixed lengths."""

    source = "[VTC] section 5"
    clients = 2

    def __init__(self, values: Values, seed: int, clients: int) -> None:
        super().__init__(values, seed, clients)
        self._inputs = [max(1, round(x)) for x in self.per_client("inputs")]
        self._outputs = [max(1, round(x)) for x in self.per_client("outputs")]

    def per_client(self, name: str) -> list[float]:
        """Return a list parameter as one number a client."""
        return numbers(self.name, name, self.values.word(name), self.count)

    def conversation(self, client: int, turns: int) -> Sequence[Turn]:  # noqa: ARG002 - always one turn
        """Return a request of the client's lengths."""
        prompt = self.keys.grow(EMPTY, self._inputs[client])
        return (Turn(prompt.tokens, self._outputs[client], prompt.keys),)

    def default_requests(self) -> int:
        """Count the requests of ``duration_s`` seconds, and at least one."""
        end = self.values.number("duration_s") * 1e6
        return max(1, sum(1 for _ in takewhile(lambda arrival: arrival[0] < end, self.arrivals())))

    def arrivals(self) -> Iterator[tuple[int, int]]:
        """Merge what the clients send."""
        return heapq.merge(*(self.sent_by(client) for client in range(self.count)))

    def sent_by(self, client: int) -> Iterator[tuple[int, int]]:
        """Yield one client's arrivals, without an end."""
        return self.steadily(client, self.per_client("rates")[client])

    def steadily(
        self, client: int, rate: float, phase: str = "", keep: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yield arrivals at ``rate`` a second; evenly spaced ones start with a random part of a gap."""
        rng = self.rng(f"arrivals/{client}{phase}")
        even = self.values.word("arrivals") == "even"
        start = int(rng.random() * 1e6 / rate) if even else 0
        for at in times(rng, rate, 0.0 if even else 1.0):
            if keep is None or keep(start + at):
                yield start + at, client

    def is_on(self, at: int) -> bool:
        """Whether a client that sends and pauses by turns sends at ``at`` microseconds."""
        return int(at // (self.values.number("on_s") * 1e6)) % 2 == 0


class VtcOverload(VtcSuite):
    """Both clients send more than their share, one twice as much as the other."""

    name = "vtc-overload"
    summary = "Two clients above their share at 90 and 180 requests a minute, evenly, 256 tokens in and out."
    params = (Param("rates", "1.5/3", RATES), *_suite())


class VtcWeighted(VtcSuite):
    """Four clients above their share, of weights 1 to 4."""

    name = "vtc-weighted"
    source = "[VTC] weighted fairness (artifact: overload-weighted)"
    summary = "Four clients above their share with weights 1, 2, 3, 4; 256 tokens in and out."
    params = (
        Param("rates", "0.8/0.8/1.2/1.6", RATES),
        *_suite(weights="1/2/3/4", duration_s=360.0),
    )
    clients = 4


class VtcOnOff(VtcSuite):
    """The first client sends for a minute and pauses for a minute; the second never stops.

    The default is the suite in which the first stays below its share; ``rates=2/3`` is the one in which
    both are above.
    """

    name = "vtc-on-off"
    summary = "The first client sends one minute and pauses the next, the second sends all the time."
    params = (Param("rates", "0.5/2", RATES), ON_S, *_suite())

    def sent_by(self, client: int) -> Iterator[tuple[int, int]]:
        """Yield nothing of the first client while it pauses."""
        return self.steadily(client, self.per_client("rates")[client], keep=None if client else self.is_on)


class VtcShortLong(VtcSuite):
    """Many small requests against few large ones, Poisson.

    The default is ``poisson_short_long``; ``inputs=512/32,outputs=32/512`` is ``poisson_short_long_2``.
    """

    name = "vtc-short-long"
    summary = "Many short requests (64 tokens in and out) against fewer long ones (256), Poisson."
    params = (
        Param("rates", "8/1.5", RATES),
        *_suite(inputs="64/256", outputs="64/256", arrivals="poisson"),
    )


class VtcShift(VtcSuite):
    """Three phases: one client on and off, both above their share, one below and one above.

    After the third the first one comes again (ours: the artifact ends).
    """

    name = "vtc-shift"
    summary = "The distribution shifts: five minutes each of on/off, of equal overload, of unequal overload."
    params = (
        Param("on_off_rates", "0.5/2", f"{RATES}, first phase"),
        Param("overload_rates", "1/1", f"{RATES}, second phase"),
        Param("proportional_rates", "0.5/1.5", f"{RATES}, third phase"),
        Param("phase_s", 300.0, "length of a phase in seconds", low=0.001),
        ON_S,
        *_suite(duration_s=900.0),
    )

    def sent_by(self, client: int) -> Iterator[tuple[int, int]]:
        """Chain the phases; each has its own rates."""
        length = int(self.values.number("phase_s") * 1e6)
        rates = [self.per_client(f"{kind}_rates")[client] for kind in ("on_off", "overload", "proportional")]
        number = 0
        while True:
            phase, begin = number % 3, number * length
            keep = self.is_on if phase == 0 and client == 0 else None
            for at, _ in self.steadily(client, rates[phase], f"/{number}", keep):
                if at >= length:
                    break
                yield begin + at, client
            number += 1
