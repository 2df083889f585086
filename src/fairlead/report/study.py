"""Sorts results into settings, loads, policies and seeds, and says which may be compared."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.report.naming import LIVE, live, policy_names, setup, where
from fairlead.report.numbers import TIMES
from fairlead.report.results import Result
from fairlead.report.statistics import Difference, Knee, LoadPoint, is_amount, knee, paired

Value = Callable[[Result], float | None]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure by which policies are compared."""

    name: str
    of: Value
    unit: str
    """``ms``, ``share``, or a word."""
    better: str
    """``low`` or ``high``."""
    help: str


def _field(name: str) -> Value:
    return lambda result: result[name]


def _victims(name: str) -> Value:
    return lambda result: result["victims"][name] if result["victims"] else None


def _fairness(name: str) -> Value:
    return lambda result: result["fairness"][name]


def _gap(result: Result) -> float | None:
    """The gap is folded live from at least two clients; for one there is nothing to compare."""
    gap: float = result["fairness"]["worst_gap"]
    return gap if len(result["clients"]) > 1 else None


MEAN_TTFT = Measure("mean TTFT", _field("mean_ttft_ms"), "ms", "low", "first token after scheduled arrival")
P99_TTFT = Measure("P99 TTFT", _field("p99_ttft_ms"), "ms", "low", "the slowest hundredth")
VICTIMS_P99 = Measure(
    "victims' P99 TTFT", _victims("p99_ttft_ms"), "ms", "low", "all clients but the misbehaving ones, pooled"
)
MEAN_TPOT = Measure("mean TPOT", _field("mean_tpot_ms"), "ms", "low", "time for each token after the first")
THROUGHPUT = Measure(
    "tokens/s",
    _field("total_token_throughput"),
    "tokens/s",
    "high",
    "prompt and output tokens of completed requests",
)
ATTAINMENT = Measure("met SLOs", _field("attainment"), "share", "high", "share of all that arrived")
HIT_RATE = Measure("hit rate", _field("hit_rate"), "share", "high", "prompt tokens found cached")
GAP = Measure(
    "worst gap", _gap, "units", "low", "service between two clients while both were backlogged, by weight"
)
JAIN = Measure("Jain", _fairness("jain"), "index", "high", "service over fair share, while requests arrived")
MEASURES = (MEAN_TTFT, P99_TTFT, VICTIMS_P99, MEAN_TPOT, THROUGHPUT, ATTAINMENT, HIT_RATE, GAP, JAIN)


def saturated(result: Result) -> bool:
    """Return whether the run fell behind what arrived."""
    return bool(result["utilisation"]["label"] == "saturated")


@dataclass(slots=True)
class Group:
    """One policy at one load: its results by seed."""

    policy: str
    load: float
    seeds: dict[int, Result] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether it was measured at a live endpoint and not simulated."""
        return any(map(live, self.seeds.values()))

    @property
    def saturated(self) -> int:
        """How many of its runs fell behind."""
        return sum(map(saturated, self.seeds.values()))

    @property
    def state(self) -> str:
        """The label in words."""
        if not self.saturated:
            labels = {r["utilisation"]["label"] for r in self.seeds.values()}
            return "loaded" if "loaded" in labels else "light"
        whole = len(self.seeds)
        return "saturated" if self.saturated == whole else f"{self.saturated} of {whole} seeds saturated"

    def kept(self) -> dict[int, Result]:
        """Return the runs that may be averaged: those that kept up, or all when none did."""
        steady = {seed: result for seed, result in self.seeds.items() if not saturated(result)}
        return steady or self.seeds

    def mean(self, measure: Measure) -> float | None:
        """Return the measure's mean over the seeds kept; None where it was not measured."""
        values = [v for v in map(measure.of, self.kept().values()) if v is not None]
        return statistics.fmean(values) if values else None

    def typical(self) -> Result:
        """Return the run kept whose mean TTFT is the (lower) median, to be drawn."""
        kept = sorted(self.kept().values(), key=lambda r: (r["mean_ttft_ms"] or 0.0, r["seed"]))
        return kept[(len(kept) - 1) // 2]


def difference(measure: Measure, before: Group, after: Group) -> Difference | None:
    """Compare two policies over the seeds at which both kept up, or at which neither did.

    None where there is no such seed: a saturated run has no difference to one that kept up, only the fact.
    """
    common = before.seeds.keys() & after.seeds.keys()
    alike = [seed for seed in common if saturated(before.seeds[seed]) == saturated(after.seeds[seed])]
    steady = [seed for seed in alike if not saturated(before.seeds[seed])]
    ones, others = {}, {}
    for seed in steady or alike:
        one, other = measure.of(before.seeds[seed]), measure.of(after.seeds[seed])
        if one is not None and other is not None:
            ones[seed], others[seed] = one, other
    return paired(ones, others, as_ratio=is_amount(measure.unit))


@dataclass(slots=True)
class Study:
    """All results of one setting: the same workload on the same engines, or simulated and measured."""

    title: str
    policies: list[str]
    """In order of first appearance, measured ones first; the first is what the others are compared with."""
    groups: dict[tuple[str, float], Group]
    number: int = 0
    """Its place among the studies of a report."""

    @property
    def baseline(self) -> str:
        """The policy that the others are compared with."""
        return self.policies[0]

    @property
    def row(self) -> str:
        """What a row of its tables is: ``policy``, or ``run`` where some were measured."""
        return "run" if any(group.live for group in self.groups.values()) else "policy"

    @property
    def loads(self) -> list[float]:
        """Every load, ascending."""
        return sorted({load for _, load in self.groups})

    def at(self, load: float) -> list[Group]:
        """Return the groups at a load, in the order of policies."""
        return [self.groups[p, load] for p in self.policies if (p, load) in self.groups]

    @property
    def attacked(self) -> bool:
        """Whether some client misbehaved."""
        return any(result["victims"] for group in self.groups.values() for result in group.seeds.values())

    @property
    def main_load(self) -> float:
        """The load that the verdict is about.

        The highest at which at least half of the policies kept up; the lowest if there is none. Where a
        client misbehaves, it is what saturates: then the highest at which the others alone would fit.
        """
        if self.attacked:
            steady = [load for load in self.loads if load < 1]
        else:
            steady = [
                load
                for load in self.loads
                if 2 * sum(1 for g in self.at(load) if not g.saturated) >= len(self.at(load))
            ]
        return max(steady, default=self.loads[0])

    def curve(self, policy: str) -> list[LoadPoint]:
        """Return the policy's load curve."""
        points = []
        for load in self.loads:
            group = self.groups.get((policy, load))
            ttft = group.mean(MEAN_TTFT) if group else None
            if group and ttft is not None:
                goodput = statistics.fmean(r["request_goodput"] for r in group.kept().values())
                points.append(LoadPoint(load, ttft, goodput, bool(group.saturated)))
        return points

    def knee(self, policy: str) -> Knee | None:
        """Return where the policy's load curve breaks."""
        return knee(self.curve(policy))


def studies(results: Iterable[Result], baseline: str = "") -> list[Study]:
    """Sort results into studies, in order of appearance.

    A replay and the simulations of the same arrivals make one study, whatever engines were simulated.
    ``baseline``: words of the name of the policy to compare with; default: what was measured, or the first.
    Raises ValueError where no policy has them.
    """
    results = list(results)
    measured = {_arrivals(result) for result in results if live(result)}
    settings: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        arrivals = _arrivals(result)
        settings[arrivals if arrivals in measured else _setting(result)].append(result)
    found = list(map(_study, settings.values()))
    for number, study in enumerate(found):
        study.number = number
    moved = [_move_first(study, baseline) for study in found] if baseline else [True]
    if not any(moved):
        names = dict.fromkeys(policy for study in found for policy in study.policies)
        raise ValueError(f"no policy is called {baseline!r}; there are {'; '.join(names)}")
    return found


def _arrivals(result: Result) -> tuple[Any, ...]:
    return (result["workload"], result["load"], _misbehaving(result))


def _setting(result: Result) -> tuple[Any, ...]:
    return (result["workload"], *setup(result), _misbehaving(result))


def _misbehaving(result: Result) -> tuple[str, ...]:
    return tuple(client["name"] for client in result["clients"] if client["misbehaving"])


def _study(runs: Sequence[Result]) -> Study:
    study = Study(_title(runs), [], {})
    for name, result in zip(policy_names(runs), runs, strict=True):
        if name not in study.policies:
            study.policies.append(name)
        group = study.groups.setdefault((name, result["load"]), Group(name, result["load"]))
        group.seeds[result["seed"]] = result
    are_live = {group.policy: group.live for group in study.groups.values()}
    study.policies.sort(key=lambda policy: not are_live[policy])
    return study


def _title(runs: Sequence[Result]) -> str:
    served = dict.fromkeys(result["engine"] for result in runs if live(result))
    setups = dict.fromkeys(map(setup, (result for result in runs if not live(result))))
    simulated = "; ".join(f"{n} {TIMES} {engine}, {where(topology)}" for engine, n, topology in setups)
    parts = [runs[0]["workload"]]
    if served:
        parts.append(f"{LIVE} {', '.join(served)}".rstrip())
    if simulated:
        parts.append(f"simulated: {simulated}" if served else simulated)
    misbehaving = _misbehaving(runs[0])
    if misbehaving:
        parts.append(f"misbehaving: {', '.join(misbehaving)}")
    return " \N{MIDDLE DOT} ".join(parts)


def _move_first(study: Study, words: str) -> bool:
    """Make the policy with this name, or these words in its name, the baseline; False if there is none."""
    hits = [p for p in study.policies if p == words] or [p for p in study.policies if words in p]
    for hit in hits[:1]:
        study.policies.remove(hit)
        study.policies.insert(0, hit)
    return bool(hits)
