"""Workloads made up from a few figures: one file a family, one line here.

``generate("doc-qa:doc_tokens=16000,questions=10", seed=1)`` returns a ``Trace``. Everything random comes
from the seed, by one named stream a use: the same arguments make the same sessions in every process.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b

from fairlead.core.registry import Registry, parse_spec
from fairlead.trace.generators.agents import Agents
from fairlead.trace.generators.base import Generator
from fairlead.trace.generators.doc_qa import DocQa
from fairlead.trace.generators.judge import Judge
from fairlead.trace.generators.loops import client_name, duration_us, sessions
from fairlead.trace.generators.multi_turn import MultiTurn
from fairlead.trace.generators.shared_prefix import SharedPrefix
from fairlead.trace.generators.tree_of_thoughts import TreeOfThoughts
from fairlead.trace.generators.vtc import VtcOnOff, VtcOverload, VtcShift, VtcShortLong, VtcWeighted
from fairlead.trace.model import Session, Trace, TraceError

GENERATORS: Registry[Generator] = Registry(
    "workload",
    (
        SharedPrefix,
        DocQa,
        TreeOfThoughts,
        Judge,
        MultiTurn,
        Agents,
        VtcOverload,
        VtcWeighted,
        VtcOnOff,
        VtcShortLong,
        VtcShift,
    ),
)

REVISION = 1
"""Part of every identity. To be raised when a generator makes something else from the same arguments."""


def generate(
    spec: str,
    params: Mapping[str, object] | None = None,
    *,
    seed: int = 1,
    requests: int | None = None,
    clients: int | None = None,
) -> Trace:
    """Return the workload that ``spec`` names, such as ``judge`` or ``judge:dimensions=3,rate=2``.

    ``params`` win over the spec's. ``requests`` and ``clients`` default to the generator's own. Nothing is
    made before the trace is iterated. Raises ``PolicyError`` for an unknown name, parameter or value, and
    ``TraceError`` for a count below 1.
    """
    name, given = parse_spec(spec)
    kind = GENERATORS.get(name)
    values = GENERATORS.resolve(name, {**given, **(params or {})})
    count = kind.clients if clients is None else clients
    if count < 1 or (requests is not None and requests < 1):
        raise TraceError(f"{name}: a workload has at least one client and one request")

    def begin() -> Generator:
        return kind(values, seed, count)

    first = begin()  # refuses bad values here rather than in the middle of a run
    total = first.default_requests() if requests is None else requests

    def fresh() -> Iterator[Session]:
        return sessions(begin(), total)

    options = "/".join(f"{key}={values[key]!r}" for key in sorted(values))
    told = f"{REVISION}/{name}/{options}/{seed}/{total}/{count}"
    return Trace(
        name=name,
        block_tokens=values.integer("block_tokens"),
        sessions=fresh,
        requests=total,
        duration_us=duration_us(begin(), total),
        clients=dict(zip(map(client_name, range(count)), first.weights(), strict=True)),
        labels=(f"synthetic workload: {name}",),
        identity=blake2b(told.encode(), digest_size=16).hexdigest(),
    )
