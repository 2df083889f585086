"""What results say, in words, from the figures alone: a headline, its reasons, and how sure they are."""

from dataclasses import dataclass, field

from fairlead.report.accuracy import Pair, pairs
from fairlead.report.naming import LIVE
from fairlead.report.numbers import change, digits, duration, interval, percent
from fairlead.report.results import Result
from fairlead.report.study import (
    ATTAINMENT,
    GAP,
    HIT_RATE,
    MEAN_TPOT,
    MEAN_TTFT,
    P99_TTFT,
    THROUGHPUT,
    VICTIMS_P99,
    Group,
    Measure,
    Study,
    difference,
    saturated,
)


@dataclass(slots=True)
class Verdict:
    """A headline, sentences that carry it, and a line on confidence."""

    headline: str
    points: list[str] = field(default_factory=list)
    confidence: str = ""


def verdict(study: Study) -> Verdict:
    """Return the verdict on a study: of one run, or of policies compared at its main load."""
    groups = study.at(study.main_load)
    if len(groups) == 1:
        return _of_one(groups[0])
    beside = pairs(study, study.main_load)
    if beside:
        return _of_pairs(beside)
    return _of_many(study, groups)


def _of_one(group: Group) -> Verdict:
    result = group.typical()
    injected, completed = result["num_prompts"], result["completed"]
    if not injected:
        return Verdict("Nothing arrived: there is nothing to measure.")
    if not completed:
        return Verdict(f"None of {injected:,} requests was completed.", [_outcomes(result)])
    victims = result["victims"]
    whose = "requests of all who behaved" if victims else "requests"
    met = f"{percent((victims or result)['attainment'])} of {whose} met their SLOs"
    if saturated(result):
        headline = f"Saturated: {_the(group)} fell behind what arrived; {met}."
    else:
        ttft = duration((victims or result)["mean_ttft_ms"])
        headline = f"First tokens came after {ttft} on average; {met}."
    length, tokens = duration(1000 * result["duration"]), digits(group.mean(THROUGHPUT))
    later, token = duration(group.mean(P99_TTFT)), duration(group.mean(MEAN_TPOT))
    answered = f"{completed:,} of {injected:,} requests were completed in {length}"
    points = [
        f"{answered}, {tokens} prompt and output tokens a second.",
        f"TTFT {duration(group.mean(MEAN_TTFT))} on average, P99 {later}; each further token took {token}.",
    ]
    points += _victims_points(group)
    if completed < injected:
        points.append(_outcomes(result))
    points += _fairness_points(result) + _cache_points(result)
    seeds = len(group.seeds)
    sure = "One run of one seed: no statement on chance." if seeds == 1 else f"Means over {seeds} seeds."
    return Verdict(headline, points, sure)


def _the(group: Group) -> str:
    return f"the {LIVE}" if group.policy == LIVE else group.policy


def _victims_points(group: Group) -> list[str]:
    """Return what the misbehaving clients cost the others."""
    victims, others = group.typical()["victims"], [c for c in group.typical()["clients"] if c["misbehaving"]]
    if not victims or not victims["completed"]:
        return []
    slowest = [c["p99_ttft_ms"] for c in others if c["p99_ttft_ms"] is not None]
    theirs = f", {duration(max(slowest))} for {_listed([c['name'] for c in others])}" if slowest else ""
    return [f"P99 TTFT was {duration(group.mean(VICTIMS_P99))} for all who behaved{theirs}."]


def _outcomes(result: Result) -> str:
    lost = [f"{n:,} {word}" for word, n in result["outcomes"].items() if n and word != "done"]
    return f"Not completed: {', '.join(lost)}."


def _fairness_points(result: Result) -> list[str]:
    fairness = result["fairness"]
    if len(result["clients"]) < 2:
        return []
    if not fairness["worst_gap"] and not any(fairness["pair"]):
        return ["No two clients were seen waiting at the same time, so nothing was there to be shared."]
    gap = digits(fairness["worst_gap"])
    if fairness["bound_share"] is None:
        return [f"The worst gap in service between backlogged clients was {gap} units; no bound is promised."]
    inside = "inside" if fairness["bound_share"] <= 1 else "OUTSIDE"
    found = f"The worst gap in service between backlogged clients was {gap} units"
    return [f"{found}, {percent(fairness['bound_share'])} of the bound: {inside} it."]


def _cache_points(result: Result) -> list[str]:
    hit, reachable = result["hit_rate"], result["reachable_hit_rate"]
    if hit is None:
        return []
    found = f"{percent(hit)} of prompt tokens were found cached"
    if reachable is None:
        return [f"{found}."]
    if percent(hit) == percent(reachable):
        return [f"{found}, as many as in an endless cache shared by all."]
    return [f"{found}; an endless cache shared by all would have had {percent(reachable)}."]


def _of_pairs(found: list[Pair]) -> Verdict:
    """Return how near simulations came to what was measured."""
    first = found[0]
    headline = _errors(first)
    if not headline:
        return Verdict("No request was completed on both sides: there is nothing to compare.")
    points = [
        f"{name}: {_pair_words(pair, simulated)}"
        for pair in found[:1]
        for name, simulated in (("Measured", False), ("Simulated", True))
    ]
    if len(found) > 1:
        points += [
            f"{pair.simulated.policy}, against {pair.measured.policy}: "
            + ", ".join(f"{m.name} {pair.error(m)}" for m in ERRORS if _both(pair, m))
            + "."
            for pair in found
        ]
    points += dict.fromkeys(warning for pair in found for warning in pair.warnings())
    seeds = len(first.seeds)
    sure = (
        "One run on each side: what is said is its error, without a statement on chance."
        if seeds == 1
        else f"Means over {seeds} seeds on each side."
    )
    return Verdict(f"Simulated against measured: {headline}.", points, sure)


def _errors(pair: Pair) -> str:
    """Return what is off and by how much, then what is not."""
    errors = {m.name: pair.error(m) for m in (MEAN_TTFT, MEAN_TPOT, HIT_RATE) if _both(pair, m)}
    off = [f"{name} {error}" for name, error in errors.items() if not error.startswith("0.0")]
    equal = [name for name, error in errors.items() if error.startswith("0.0")]
    parts = [", ".join(off), f"equal in {_listed(equal)}" if equal else ""]
    return "; ".join(filter(None, parts))


ERRORS = (MEAN_TTFT, P99_TTFT, MEAN_TPOT, HIT_RATE, THROUGHPUT)


def _both(pair: Pair, measure: Measure) -> bool:
    return None not in pair.means(measure)


def _pair_words(pair: Pair, simulated: bool) -> str:
    group = pair.simulated if simulated else pair.measured
    runs = [group.seeds[seed] for seed in pair.seeds]
    ttft, later, tpot = (pair.means(m)[simulated] for m in (MEAN_TTFT, P99_TTFT, MEAN_TPOT))
    completed, injected = (sum(run[name] for run in runs) for name in ("completed", "num_prompts"))
    return (
        f"{completed:,} of {injected:,} requests completed, TTFT {duration(ttft)} on average and P99"
        f" {duration(later)}, {duration(tpot)} for each further token."
    )


def _of_many(study: Study, groups: list[Group]) -> Verdict:
    leading = VICTIMS_P99 if any(g.mean(VICTIMS_P99) is not None for g in groups) else MEAN_TTFT
    steady = [g for g in groups if not g.saturated]
    fallen = [g for g in groups if g.saturated]
    candidates = [g for g in (steady or groups) if g.mean(leading) is not None]
    if not candidates:
        return Verdict("No policy completed a request: there is nothing to compare.")
    ranked = sorted(candidates, key=lambda g: g.mean(leading) or 0.0)
    best = ranked[0]
    points = []
    if steady and fallen:
        points.append(f"Saturated at this load: {_listed([g.policy for g in fallen])}.")
    elif fallen:
        points.append("Every policy fell behind what arrived.")
    headline = _headline(leading, ranked) if len(ranked) > 1 else f"Only {best.policy} kept up."
    others = [*ranked[1:2], groups[0]]  # the next best, and the one that tables compare with
    for i, other in enumerate(others):
        if other is not best and other not in others[:i]:
            points += _against(best, other)
    points += _bounds(groups)
    return Verdict(_with_load(study, headline), points, _confidence(best, groups))


def _headline(measure: Measure, ranked: list[Group]) -> str:
    """Return what the best policy gains on the next one that it can be told from, and which it cannot."""
    best, second = ranked[:2]
    found = difference(measure, second, best)
    words = f"{measure.name} of {best.policy}"
    if found is None or found.ratio is None:
        return f"{words} is the lowest, {duration(best.mean(measure))}."
    if found.seen is not False:
        chance = "" if found.seen else ", on one seed"
        return f"{words} is {_less(found.ratio)} than that of {second.policy}, the next best{chance}."
    level = [second]
    for other in ranked[2:]:
        beyond = difference(measure, other, best)
        if beyond and beyond.seen and beyond.ratio is not None:
            names = _listed([group.policy for group in level])
            gain = f"{words} is {_less(beyond.ratio)} than that of {other.policy}"
            return f"{gain}; no difference seen to {names}."
        level.append(other)
    return (
        f"No difference seen in {measure.name} between {best.policy} and {second.policy} ({interval(found)})."
    )


def _less(ratio: float) -> str:
    if ratio <= 0.5:
        return f"{digits(1 / ratio)} times lower"
    return f"{percent(abs(ratio - 1))} {'lower' if ratio < 1 else 'higher'}"


AGAINST = (VICTIMS_P99, MEAN_TTFT, P99_TTFT, MEAN_TPOT, THROUGHPUT, ATTAINMENT, GAP)


def _against(best: Group, other: Group) -> list[str]:
    """Return what differs between two policies and in what no difference is seen."""
    said, same = [], []
    for measure in AGAINST:
        found = difference(measure, other, best)
        if found is None:
            continue
        if found.seen is False:
            same.append(measure.name)
        elif found.mean:
            said.append(f"{measure.name} {change(found)}")
    if same:
        said.append(f"no difference seen in {_listed(same)}")
    return [f"{best.policy} against {other.policy}: {', '.join(said)}."] if said else []


def _bounds(groups: list[Group]) -> list[str]:
    """Return whether the worst gap stayed inside the bound, for those that promise one."""
    outside = []
    promised = 0
    for group in groups:
        shares = [r["fairness"]["bound_share"] for r in group.seeds.values()]
        shares = [s for s in shares if s is not None]
        promised += bool(shares)
        if shares and max(shares) > 1:
            outside.append(f"{group.policy} ({percent(max(shares))} of it)")
    if outside:
        return [f"OUTSIDE the fairness bound: {_listed(outside)}."]
    return ["Every policy with a fairness bound stayed inside it."] if promised else []


def _confidence(best: Group, groups: list[Group]) -> str:
    counts = [len(best.seeds.keys() & g.seeds.keys()) for g in groups]
    fewest, more = min(counts), " or more" * (len(set(counts)) > 1)
    if fewest < 2:
        return "One seed: no statement on chance. Run several seeds for confidence intervals."
    return (
        f"{fewest} paired seeds{more}; in brackets 95% confidence intervals of the difference, each on its"
        " own (not corrected for looking at several)."
    )


def _with_load(study: Study, headline: str) -> str:
    if len(study.loads) < 2:
        return headline[0].upper() + headline[1:]
    rest = headline.removeprefix("No difference")
    words = headline if rest == headline else f"no difference{rest}"
    return f"At {percent(study.main_load)} load: {words}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
