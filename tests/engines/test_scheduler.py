"""vLLM's scheduler against the model of the engine, in virtual time: every moment has to be equal.

Without a model behind it the real scheduler can be driven through loads, pool sizes and its asynchronous
form, which a CPU does not offer. Output is always the same token, so answers share blocks with nothing
but themselves.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fairlead.core.model import Request
from fairlead.engine.model import Engine as Model
from fairlead.engine.profiles import DEFAULT_PROFILE, load_profile
from fairlead.engine.steptime import StepTime
from fairlead.simulate.world.enginerun import IDLE, EngineRun
from fairlead.trace.generators import generate
from fairlead.trace.model import Trace, Turn
from tests.engines.bare_scheduler import Arrival, Bare, Outcome
from tests.engines.servers import BLOCK_TOKENS

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own

TIMES = StepTime(6_000, 3_000, 20, 0, 0, 10, 0, 0, 1_000)
"""In whole microseconds: nothing is rounded on either side."""
SEQUENCES, BUDGET = 32, 2048

SCENARIOS = {
    "calm": (300, 4000, {"unique_tokens": 200, "output_tokens": 60, "rate": 10.0}),
    "saturated": (300, 500, {"shared_tokens": 100, "unique_tokens": 300, "output_tokens": 60, "rate": 60.0}),
    "cache under pressure": (300, 900, {"groups": 60, "unique_tokens": 200, "output_tokens": 60}),
    "short answers": (300, 600, {"unique_tokens": 100, "output_tokens": 3, "spread": 0.9, "rate": 90.0}),
    "long prompts": (100, 900, {"shared_tokens": 64, "unique_tokens": 2500, "output_tokens": 40}),
    "pool outgrown": (80, 300, {"shared_tokens": 200, "unique_tokens": 100, "output_tokens": 500}),
}


def workload(requests: int, options: dict[str, float]) -> Trace:
    usual = {"groups": 8, "shared_tokens": 800, "rate": 20.0, "block_tokens": BLOCK_TOKENS}
    return generate("shared-prefix", usual | options, requests=requests, seed=3)


def prompt_of(turn: Turn, number: int) -> list[int]:
    prompt: list[int] = []
    for key in turn.keys:
        prompt += random.Random(key).choices(range(301, 2000), k=BLOCK_TOKENS)
    rest = turn.prompt_tokens - len(prompt)
    return prompt + random.Random(f"own {number}").choices(range(301, 2000), k=rest)


def arrivals(trace: Trace) -> Iterator[Arrival]:
    for number, session in enumerate(trace.sessions()):
        (turn,) = session.turns
        yield Arrival(session.at, prompt_of(turn, number), turn.output_tokens)


def modelled(trace: Trace, blocks: int, *, ahead: bool) -> Outcome:
    """Serve the workload with the model, taking many steps at a time where that can be."""
    found = Outcome([], {}, {}, {}, 0)
    engine = Model(
        replace(load_profile(DEFAULT_PROFILE), steps=TIMES),
        block_tokens=BLOCK_TOKENS,
        kv_blocks=blocks - 1,
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=BUDGET,
        async_scheduling=ahead,
    )
    run = EngineRun(engine)
    coming = list(enumerate(trace.sessions()))[::-1]
    while coming or run.wake_us != IDLE:
        if coming and (run.wake_us == IDLE or coming[-1][1].at <= run.wake_us):
            number, session = coming.pop()
            turn = session.turns[0]
            run.touch(session.at)
            engine.submit(Request(number, "", turn.prompt_tokens, turn.keys), turn.output_tokens)
            if not coming or coming[-1][1].at > session.at:
                run.start(session.at)
            continue
        now = run.wake_us
        result = run.wake(now)
        for admission in result.admitted:
            if admission.rid not in found.hits:
                found.hits[admission.rid] = admission.cached_tokens
                found.order.append(admission.rid)
        found.first_us.update(dict.fromkeys(result.first, now))
        found.ended_us.update(dict.fromkeys(result.finished, now))
    return found._replace(preemptions=engine.load.preemptions)


@pytest.mark.parametrize("ahead", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_moment_is_the_schedulers(name: str, ahead: bool) -> None:
    requests, blocks, options = SCENARIOS[name]
    trace = workload(requests, options)
    real = Bare(list(arrivals(trace)), TIMES, blocks, SEQUENCES, BUDGET, ahead=ahead).run()
    ours = modelled(trace, blocks, ahead=ahead)
    assert ours.order == real.order
    assert ours.hits == real.hits
    assert ours.first_us == real.first_us
    assert ours.ended_us == real.ended_us
    assert len(real.ended_us) == requests
    # vLLM also counts requests that it preempts when their last token is already on its way.
    assert 0 <= real.preemptions - ours.preemptions <= (0.02 * real.preemptions if ahead else 0)
    print(f"\n{name}: hits {sum(real.hits.values()):,} tokens, {real.preemptions} preemptions")
