"""What an experiment is: cells to simulate, stage by stage, and what is told of their results.

``OURS`` is the one place that says which policies are ours; every experiment takes them from here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.report.tables import Table
from fairlead.simulate.settings import ENGINE, GATEWAY, Settings
from fairlead.simulate.sweep.run import ALL, Cell, Sample
from fairlead.trace.workload import Workload

CellFigures = Mapping[str, Any]
"""One cell's figures and where they belong, JSON-ready: see ``figures.entry``."""


class Contender(NamedTuple):
    """Who takes part: policies as specs, and who holds the queue."""

    label: str
    order: str
    policy: str
    topology: str = ENGINE
    """``engine``: the router forwards at once and engines order, as in the papers; or ``gateway``."""

    def held(self) -> "Contender":
        """Return the same policies with the queue in our gateway, which sends as workers have capacity."""
        return self._replace(label=f"{self.label}, gateway", topology=GATEWAY)


def papers_dlpm(quantum: int = 8192) -> str:
    """Return DLPM as in the paper, without what is ours."""
    return f"dlpm:light=off,ties=arrival,scope=worker,quantum={quantum}"


OURS = Contender("ours", "dlpm", "marginal", GATEWAY)

FCFS = Contender("FCFS", "fcfs", "round_robin")
LPM = Contender("LPM", "lpm", "round_robin")
VTC = Contender("VTC", "vtc", "round_robin")
DLPM = Contender("DLPM", papers_dlpm(), "round_robin")
K_LPM = Contender("k-LPM", "k_lpm", "round_robin")
PLAS = Contender("PLAS", "plas", "round_robin")
DRR = Contender("DRR", "drr", "round_robin")
VLLM = Contender("vLLM score", "fcfs", "vllm_score")
CACHE_AWARE = Contender("cache-aware gate", "fcfs", "cache_aware")
PREBLE = Contender("Preble", "fcfs", "preble")
PREBLE_LPM = Contender("Preble + LPM", "lpm", "preble")
LMETRIC = Contender("LMetric", "fcfs", "lmetric")
DUALMAP = Contender("DualMap", "fcfs", "dualmap")
BALANCE_ROUTE = Contender("BalanceRoute", "fcfs", "balance_route")
D2LPM = Contender("D2LPM", papers_dlpm(), "d2lpm")

PAPER_GPU = "llama-3.1-8b-a100"
"""Of [DLPM]'s larger set-up."""
H100 = "llama-3.1-8b-h100"


class Options(NamedTuple):
    """What the command line says."""

    quick: bool = False
    seeds: tuple[int, ...] = (1, 2, 3)
    data: Path | None = None
    """Folder with ``traces/``."""
    scratch: Path = Path()
    """Where an experiment may write a workload that it makes itself."""

    @property
    def one_seed(self) -> tuple[int, ...]:
        """Return the first seed, for what needs no interval."""
        return self.seeds[:1]


class Planned(NamedTuple):
    """A cell, and where its figures go."""

    part: str
    workload: str
    """How tables call it, the attack included."""
    contender: Contender
    cell: Cell
    x: float | None = None
    """What the part varies: load, workers, clients or a quantum."""


def planned(
    part: str,
    name: str,
    contender: Contender,
    workload: Workload,
    *,
    load: float,
    workers: int,
    engine: str,
    seed: int,
    x: float | None = None,
    kv_tokens: int = 0,
    max_num_seqs: int = 0,
    until_us: int = 0,
    sample: Sample = ALL,
) -> Planned:
    """Return a cell of ``contender`` on ``workload``; both get the seed."""
    settings = Settings(
        policy=contender.policy,
        order=contender.order,
        topology=contender.topology,
        workers=workers,
        engine=engine,
        kv_tokens=kv_tokens,
        max_num_seqs=max_num_seqs,
        until_us=until_us,
        seed=seed,
    )
    at = "" if x is None else f" at {x:g}"
    label = f"{part}: {name}, {contender.label}{at}, seed {seed}"
    return Planned(part, name, contender, Cell(workload, settings, load, label, sample), x)


Stage = Callable[[Options, Sequence[CellFigures]], list[Planned]]
"""Cells, given the entries of the stages before it; with none, those that it would have by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One of E1 to E7."""

    name: str
    title: str
    source: str
    paper: str
    """What the paper reports."""
    why: str
    """Why what we see differs from it, or does not: paragraphs, with an empty line between them."""
    stages: Sequence[Stage]
    seen: Callable[[Sequence[CellFigures]], list[str]]
    """What the figures say, in sentences made from them."""
    tables: Callable[[Sequence[CellFigures]], list[Table]]
    charts: Callable[[Sequence[CellFigures]], dict[str, str]]
    """Drawings by name, as SVG."""
    missing: Callable[[Options], list[str]] = lambda _: []
    """What is left out for want of data, and where to get it."""
    own: Callable[[Mapping[str, Any]], dict[str, float | None]] = lambda _: {}
    """Figures of its own, from a whole result."""
