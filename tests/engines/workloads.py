"""What is sent to the real engine that the simulator is compared with, and how the two are set up."""

from collections.abc import Iterator

from fairlead.trace.generators import generate
from fairlead.trace.model import Trace
from tests.engines.servers import BLOCK_TOKENS, Engine
from tests.engines.stepwise import at_once, named

KV_BLOCKS = 400
"""As vLLM counts them; one of them is its null block, which holds nothing."""
SEQUENCES = 16
BATCHED_TOKENS = 512
REQUESTS = 500
RATE = 60.0

LONE, STEADY, AGAIN, PRESSED, FLOOD, GROWING = "lone", "steady", "again", "pressed", "flood", "growing"


class Workloads:
    """Makes workloads that share no block with each other."""

    def __init__(self) -> None:
        self._made = 0

    def shared_prefix(self, name: str, requests: int, seed: int, **options: float) -> Trace:
        """Prompts of 200 shared tokens and 40 of their own, answers of 20, unless told otherwise."""
        self._made += 1
        usual = {"groups": 12, "shared_tokens": 200, "unique_tokens": 40, "output_tokens": 20, "rate": RATE}
        params = usual | {"block_tokens": BLOCK_TOKENS} | options
        return named(generate("shared-prefix", params, requests=requests, seed=seed), name, self._made)

    def calibration(self) -> Iterator[Trace]:
        """Lone requests, then batches of many sizes and lengths, then traffic."""
        yield self.shared_prefix("warm", 20, 1, rate=30.0, burstiness=0)
        yield self.shared_prefix(LONE, 40, 2, rate=20.0, burstiness=0)
        shape = {"groups": 1, "shared_tokens": 0, "output_tokens": 24}
        for seqs in (1, 2, 3, 5, 8, 12, 16):
            for tokens in (60, 250, 700):
                name = f"batch{seqs}x{tokens}"
                yield at_once(self.shared_prefix(name, seqs, 3, unique_tokens=tokens, **shape))
        yield self.shared_prefix("traffic", 150, 4)

    def compared(self) -> Iterator[Trace]:
        """The workloads of which every decision and every time is compared."""
        for name in (STEADY, AGAIN):
            yield self.shared_prefix(name, REQUESTS, 5)
        # More system prompts than the cache holds beside the rest.
        yield self.shared_prefix(PRESSED, REQUESTS, 6, groups=80)
        yield at_once(self.shared_prefix(FLOOD, REQUESTS, 7))
        # Answers that outgrow the pool, so that requests are preempted.
        shape = {"groups": 4, "shared_tokens": 300, "unique_tokens": 400, "output_tokens": 600}
        yield at_once(self.shared_prefix(GROWING, 24, 8, **shape))


def logging_engine(number: int, log: str) -> Engine:
    """Return a server that writes down its steps."""
    options = {
        "--scheduler-cls": "fairlead.engine.vllm_steps.LoggingScheduler",
        "--max-num-seqs": str(SEQUENCES),
        "--max-num-batched-tokens": str(BATCHED_TOKENS),
        "--num-gpu-blocks-override": str(KV_BLOCKS),
    }
    return Engine(number, options, {"FAIRLEAD_STEP_LOG": log})
