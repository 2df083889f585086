"""What compiled code is trained with: simulations of every generator under every ordering and policy.

    python scripts/train.py

The C compiler counts what they run most, and arranges the code for it (scripts/compile.py). Nothing here
is a benchmark, and the benchmarks' settings are not among these.
"""

from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from fairlead.simulate.settings import ENGINE, GATEWAY, Settings
from fairlead.simulate.world import World
from fairlead.trace.generators import GENERATORS, generate

REQUESTS = 1000
WORKERS = 5


def main() -> None:
    """Run them; nothing comes of it but the counts."""
    pairs = [(order, policy) for order in ORDERINGS.names() for policy in POLICIES.names()]
    workloads = GENERATORS.names()
    for turn, (order, policy) in enumerate(pairs):
        settings = Settings(
            policy=policy,
            order=order,
            workers=WORKERS,
            topology=ENGINE if turn % 4 == 0 else GATEWAY,
            exact_cache=turn % 5 == 0,
            cancel_share=0.05,
        )
        World(generate(workloads[turn % len(workloads)], {}, requests=REQUESTS, seed=turn), settings).run()


if __name__ == "__main__":
    main()
