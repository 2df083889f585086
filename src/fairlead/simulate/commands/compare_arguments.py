"""What the flags of ``fairlead compare`` mean: pairs of policies, loads, seeds, and the cells they make."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from fairlead.core.ordering import ORDERINGS
from fairlead.core.params import PolicyError
from fairlead.core.registry import parse_spec
from fairlead.core.routing import POLICIES
from fairlead.simulate.sweep.sample import ALL, Sample

GAPS, WINDOWS, NONE = "gaps", "windows", "none"


class Pair(NamedTuple):
    """An ordering and a routing policy, as specs."""

    order: str
    policy: str

    def __str__(self) -> str:
        return f"{self.order}+{self.policy}"


DEFAULT_PAIRS = "fcfs+round_robin,fcfs+lmetric,dlpm+d2lpm,dlpm+marginal"


def pairs_from(pairs: str, policies: str, orders: str, baseline: str) -> list[Pair]:
    """Return the pairs to compare, the baseline first.

    ``pairs`` are listed one by one; ``policies`` and ``orders`` in every combination. Raises
    ``PolicyError`` for what is no policy, and ValueError for contradicting flags.
    """
    if pairs and (policies or orders):
        raise ValueError("--pairs lists the combinations itself: leave out --policies and --orders")
    if policies or orders:
        found = [
            Pair(order, policy)
            for policy, order in product(specs(policies or "marginal"), specs(orders or "dlpm"))
        ]
    else:
        found = [parse_pair(told) for told in specs(pairs or DEFAULT_PAIRS)]
    for order, policy in found:
        ORDERINGS.resolve(*parse_spec(order))
        POLICIES.resolve(*parse_spec(policy))
    found = list(dict.fromkeys(found))
    if baseline:
        first = _named(baseline, found)
        found.remove(first)
        found.insert(0, first)
    return found


def specs(told: str) -> list[str]:
    """Split a list of policies at its commas, but for those between parameters.

    ``linear:a=1,b=2,lmetric`` are two: no policy's name holds ``=``, so that ``b=2`` goes with what is
    before it.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in told.split(","))):
        name, equals, _ = part.partition("=")
        if equals and ":" not in name:
            if not found:
                raise PolicyError(f"'{part}' is a parameter without a policy before it")
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def parse_pair(told: str) -> Pair:
    """Split ``dlpm+d2lpm``, either one first: no ordering is called as a routing policy is."""
    places = [i for i, letter in enumerate(told) if letter == "+"]
    for place in places:  # a parameter such as 1e+3 may hold one, too
        left, right = told[:place].strip(), told[place + 1 :].strip()
        names = left.partition(":")[0], right.partition(":")[0]
        if names[0] in ORDERINGS.names() and names[1] in POLICIES.names():
            return Pair(left, right)
        if names[0] in POLICIES.names() and names[1] in ORDERINGS.names():
            return Pair(right, left)
    raise PolicyError(
        f"'{told}' is no pair ORDER+POLICY such as dlpm+d2lpm; orders: {', '.join(ORDERINGS.names())};"
        f" policies: {', '.join(POLICIES.names())}"
    )


def _named(told: str, pairs: Sequence[Pair]) -> Pair:
    """Return the pair that ``told`` names: in full, or by the one policy that only it has."""
    hits = [pair for pair in pairs if told in (str(pair), pair.order, pair.policy)]
    if "+" in told and not hits:
        hits = [pair for pair in pairs if pair == parse_pair(told)]
    if len(hits) != 1:
        known = ", ".join(map(str, pairs))
        what = "several pairs" if hits else "none of the pairs"
        raise ValueError(f"--baseline '{told}' names {what}; there are {known}")
    return hits[0]


def loads_from(told: str, default: float) -> list[float]:
    """Return the loads, in the order given, without repetitions. Raises ValueError."""
    if not told:
        return [default]
    try:
        found = [float(part) for part in told.split(",")]
    except ValueError:
        raise ValueError(f"--loads: '{told}' is not a list of numbers such as 0.5,0.7,0.9") from None
    for load in found:
        if not 0 <= load <= 100:
            raise ValueError(f"--loads: a load is a share of the maximum, such as 0.7, not {load:g}")
    return list(dict.fromkeys(found))


def seeds_from(told: str) -> list[int]:
    """Return the seeds that ``5`` (1 to 5), ``6-9`` or ``1,4,7`` mean. Raises ValueError."""
    first, dash, last = told.partition("-")
    try:
        if dash:
            found = list(range(int(first), int(last) + 1))
        elif "," in told:
            found = list(dict.fromkeys(int(part) for part in told.split(",")))
        else:
            found = list(range(1, int(told) + 1))
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise ValueError(f"--seeds '{told}': write how many (5), from-to (6-9) or which (1,4,7)")
    return found


def samples_from(told: str, source: str, seeds: Sequence[int]) -> list[Sample]:
    """Return what each seed draws from the workload.

    Left open (empty): a generator needs nothing, since it makes another workload from each seed; a trace
    gets other gaps between arrivals where there are several seeds, and is taken as it is for one.
    """
    if not told:
        told = GAPS if Path(source).exists() and len(seeds) > 1 else NONE
    if told == WINDOWS:
        return [Sample(window=i + 1, windows=len(seeds)) for i in range(len(seeds))]
    return [Sample(gaps=True) if told == GAPS else ALL for _ in seeds]
