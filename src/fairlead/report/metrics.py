"""Folds a ``Run`` into one JSON-ready result: every figure that tables, plots and comparisons read.

Names equal those of ``vllm bench serve --save-result`` where the meaning is the same; the rest is ours.
docs/metrics.md defines them all.
"""

from collections.abc import Mapping
from typing import Any

from fairlead import __version__
from fairlead.core.model import Costs
from fairlead.report.distribution import curve, describe_histogram
from fairlead.report.entitlement import closed_loops
from fairlead.report.fairness import capped_jain, jain, look_through_windows
from fairlead.report.run import Run
from fairlead.report.tally import Tally, pooled, rate, share, tally
from fairlead.report.thinning import thin
from fairlead.report.utilisation import utilisation

SCHEMA = 1
SLOS = {"ttft": 2000.0, "tpot": 200.0}
"""Default limits in milliseconds: those of MLPerf Inference's server scenario for Llama 2 70B."""
SLO_NAMES = ("ttft", "tpot", "e2el")


def summarise(
    run: Run, slos: Mapping[str, float] | None = None, costs: Costs | None = None
) -> dict[str, Any]:
    """Return the run's result, ready for JSON.

    ``slos``: limits in milliseconds on ``ttft``, ``tpot`` and ``e2el`` (default ``SLOS``); ``costs``:
    prices of service (default: 1 a computed prompt token, 2 an output token). Raises ValueError for an
    SLO that is not one of the three or not positive.
    """
    limits = check_slos(SLOS if slos is None else slos)
    costs = Costs() if costs is None else costs
    tallies = tally(run, limits)
    whole = pooled(tallies)
    duration_s = run.duration_us / 1e6
    return {
        "fairlead": __version__,
        "schema": SCHEMA,
        "kind": run.kind,
        "workload": run.workload,
        "policy": run.policy,
        "order": run.order,
        "engine": run.engine,
        "workers": run.workers,
        "topology": run.topology,
        "seed": run.seed,
        "load": run.load,
        "labels": list(run.labels),
        "duration": duration_s,
        **_arrivals(run),
        **whole.facts(costs, duration_s),
        **describe_histogram("itl", run.itl),
        "slos": dict(limits),
        "reachable_hit_rate": run.reachable_hit_rate if run.reachable_hit_rate >= 0 else None,
        "fairness": _fairness(run, tallies, costs),
        "utilisation": utilisation(run),
        "clients": _clients(run, tallies, costs),
        "victims": _victims(run, tallies, costs),
        "closed_loops": closed_loops(run, costs),
        "quantiles": {"ttft_ms": curve(whole.ttft), "tpot_ms": curve(whole.tpot)},
        "series": thin(run.series, run.clients),
        "steps": run.steps,
        "preemptions": run.preemptions,
        "computed_tokens": run.computed_tokens,
        "elapsed_s": round(run.elapsed_s, 4),
        "simulated_requests_per_s": rate(len(run.requests), run.elapsed_s) or None,
        "settings": dict(run.settings),
    }


def check_slos(slos: Mapping[str, float]) -> Mapping[str, float]:
    """Return ``slos``; raise ValueError for an unknown name or a limit that is not positive."""
    for name, limit in slos.items():
        if name not in SLO_NAMES:
            raise ValueError(f"no such SLO: {name!r}; there are {', '.join(SLO_NAMES)}, each in milliseconds")
        if not limit > 0:
            raise ValueError(f"SLO {name}: {limit} ms is not a positive time")
    return slos


def _arrivals(run: Run) -> dict[str, Any]:
    """Return rate and shape of the arrivals: as set, or the rate measured from first to last."""
    arrived, settings = run.requests.arrived, run.settings
    span_s = (arrived[-1] - arrived[0]) / 1e6 if len(arrived) > 1 else 0.0
    return {
        "request_rate": settings.get("request_rate", rate(len(arrived) - 1, span_s) or None),
        "burstiness": settings.get("burstiness"),
        "max_concurrency": settings.get("max_concurrency"),
    }


def _clients(run: Run, tallies: list[Tally], costs: Costs) -> list[dict[str, Any]]:
    misbehaving = set(run.misbehaving)
    return [
        {
            "name": name,
            "weight": weight,
            "misbehaving": name in misbehaving,
            **counted.facts(costs, run.duration_us / 1e6),
        }
        for name, weight, counted in zip(run.clients, run.weights, tallies, strict=True)
    ]


def _victims(run: Run, tallies: list[Tally], costs: Costs) -> dict[str, Any] | None:
    """Return the figures of all clients that behave, pooled; None if nobody misbehaves."""
    if not run.misbehaving:
        return None
    misbehaving = set(run.misbehaving)
    behaved = [t for name, t in zip(run.clients, tallies, strict=True) if name not in misbehaving]
    whole = pooled(behaved)
    return {
        "clients": len(behaved),
        **whole.facts(costs, run.duration_us / 1e6),
        "quantiles": {"ttft_ms": curve(whole.ttft), "tpot_ms": curve(whole.tpot)},
    }


def _fairness(run: Run, tallies: list[Tally], costs: Costs) -> dict[str, Any]:
    """Return gap and bound, and what windows and Jain's index say of the time while requests arrived.

    After the last arrival the queue drains and everybody gets the rest, so that any policy would look
    fair at the end.
    """
    fairness, series = run.fairness, run.series
    interval = max(1, series.interval_us)
    until = run.requests.arrived[-1] if len(run.requests) else 0
    wanting = [
        [cost * value for value in column]
        for cost, column in zip(_cost_of_demand(run, tallies, costs), series.demand, strict=False)
    ]
    windows = look_through_windows(series.service, wanting, run.weights, interval, until)
    at = min(until // interval, len(series.service[0]) if series.service else 0) - 1
    if at >= 0:
        service = [column[at] for column in series.service]
        wanted = [column[at] for column in wanting]
    else:  # over before the first sample, or none were taken
        service = wanted = [float(counted.service(costs)) for counted in tallies]
    return {
        "worst_gap": fairness.worst_gap,
        "pair": list(fairness.pair),
        "bound": fairness.bound or None,
        "bound_text": fairness.bound_text,
        "bound_share": share(fairness.worst_gap, fairness.bound),
        "jain": round(capped_jain(service, wanted, run.weights), 6),
        "jain_uncapped": round(jain([s / w for s, w in zip(service, run.weights, strict=True)]), 6),
        "windowed": windows.as_json(),
    }


def _cost_of_demand(run: Run, tallies: list[Tally], costs: Costs) -> list[float]:
    """Return what a unit of each client's demand costs, given the hits that its completed requests had.

    Demand counts prompts in full; with a prefix cache most clients get by on less, and would look
    starved if the rest counted as wanted. Nothing for a run without samples.
    """
    factors = []
    for counted, column in zip(tallies, run.series.demand, strict=False):
        demanded = column[-1] if column else 0.0
        if counted.completed and demanded > 0:
            per_request = counted.service(costs) / counted.completed
            factors.append(min(1.0, per_request * counted.injected / demanded))
        else:
            factors.append(1.0)
    return factors
