"""Every policy of the registry works by its name in the gateway, on real sockets."""

import asyncio

import pytest

from fairlead.core.ordering import ORDERINGS
from fairlead.core.routing import POLICIES
from tests.gateway.mocks import MockWorker, answer, chat, run, serving

PAIRS = [(policy, "dlpm") for policy in POLICIES.names()] + [
    ("marginal", order) for order in ORDERINGS.names()
]


@pytest.mark.parametrize(("policy", "order"), PAIRS)
def test_a_policy_serves_by_its_name(policy: str, order: str) -> None:
    async def main() -> None:
        workers = [MockWorker(answer(delay=0.01)) for _ in range(2)]
        async with serving(*workers, policy=policy, order=order, worker_max_num_seqs=2) as served:
            bodies = [chat(content=f"{n % 3}" * 200, stream=n % 2 == 0) for n in range(12)]
            answers = await asyncio.gather(*[served.post(body) for body in bodies])
            assert [a[0] for a in answers] == [200] * 12
            await served.settled()
            assert sum(len(w.asked) for w in workers) == 12
            served.gateway.dispatcher.check()

    run(main)
